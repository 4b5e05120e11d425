"""Large constants of a model, whatever holds and whatever uses them."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.errors import RecipeError
from graphopt.graph.layers import layer_of
from graphopt.graph.view import operator_of
from graphopt.runtime.session import SessionOptions

Array = np.ndarray[Any, Any]

_READERS: dict[str, tuple[int, ...]] = {"LSTM": (1, 2), "GRU": (1, 2), "RNN": (1, 2), "Gather": (0,)}
"""Operators other than layers that read a weight, with the inputs that may be one."""
_ELEMENTWISE = frozenset({"Add", "Sub", "Mul", "Concat", "Slice", "Reshape", "Transpose", "Unsqueeze", "Expand"})
"""Operators for which any float input may be a folded constant."""
_FOLDING_LIMIT = "optimization.constant_folding_max_output_size_in_bytes"


@dataclass(frozen=True)
class Constant:
    """An initializer, or the output of a Constant node, and where it is used first.

    Attributes:
        value: holds it.
        user: the first node, in order, that uses it.
        anchor: the node of the constant's own graph before which it is first needed: the user, or the node whose subgraph holds the user.
    """

    value: ir.Value
    user: ir.Node
    anchor: ir.Node

    @property
    def name(self) -> str:
        """The value's name."""
        return self.value.name or ""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape; reads no data."""
        return tuple(self._tensor.shape.numpy())

    @property
    def size(self) -> int:
        """Number of elements; reads no data."""
        return int(self._tensor.size)

    @property
    def _tensor(self) -> ir.TensorProtocol:
        tensor = ir.convenience.get_const_tensor(self.value)
        assert tensor is not None, "it is a constant"
        return tensor


def constants_of(model: ir.Model, dtype: ir.DataType) -> list[Constant]:
    """The constants of an element type that nodes use, in the order of their first use; functions are left out, reads no data.

    A default of an input that can be fed is no constant, and neither is a value that is an output of its graph.

    Args:
        model: stays as it is.
        dtype: of the constants.
    """
    found: dict[ir.Value, Constant] = {}
    for node, places in _nodes(model.graph, {}):
        for value in node.inputs:
            if value is None or value in found or value.is_graph_input() or value.is_graph_output():
                continue
            tensor = ir.convenience.get_const_tensor(value)
            producer = value.producer()
            home = value.graph if producer is None else producer.graph
            if tensor is not None and tensor.dtype == dtype and home in places:
                found[value] = Constant(value, node, places[home])
    return list(found.values())


def reads_folded(node: ir.Node, index: int) -> bool:
    """Whether a node's input may be a constant that the runtime makes only when it loads the model."""
    operator, layer = operator_of(node), layer_of(node)
    if layer is not None and index == layer.index:
        return True
    return operator in _ELEMENTWISE or index in _READERS.get(operator, ())


def folding_limit(options: SessionOptions) -> float:
    """Bytes that a constant may have to be folded when a session is made: infinite unless the session's configuration says so."""
    return float(options.config.get(_FOLDING_LIMIT, "inf"))


def choose(constants: Iterable[Constant], include: Sequence[str], exclude: Sequence[str], min_size: int) -> list[Constant]:
    """The constants that globs and a size leave.

    Args:
        constants: to choose from.
        include: globs on the name of a constant or of a node that uses it; all where empty.
        exclude: globs on those that are left out.
        min_size: smallest number of elements.

    Raises:
        RecipeError: a glob matches none.
    """
    every = list(constants)
    for pattern in (*include, *exclude):
        if not any(_matches(one, [pattern]) for one in every):
            present = ", ".join(one.name for one in every[:3]) or "none"
            raise RecipeError(f"no constant, and no node with one, matches {pattern!r}; the first of {len(every)} constants are: {present}")
    chosen = [one for one in every if one.size >= min_size and not _matches(one, exclude)]
    return [one for one in chosen if _matches(one, include)] if include else chosen


def _matches(constant: Constant, patterns: Sequence[str]) -> bool:
    names = {constant.name, *(use.node.name or "" for use in constant.value.uses())}
    return any(fnmatch.fnmatchcase(name, pattern) for name in names for pattern in patterns)


def _nodes(graph: ir.Graph, outer: Mapping[object, ir.Node]) -> Iterator[tuple[ir.Node, Mapping[object, ir.Node]]]:
    """All nodes, each with the node of every surrounding graph that it stands in or is."""
    for node in graph:
        places = {**outer, graph: node}
        yield node, places
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.GRAPH:
                yield from _nodes(attribute.as_graph(), places)
            elif attribute.type == ir.AttributeType.GRAPHS:
                for inner in attribute.as_graphs():
                    yield from _nodes(inner, places)


def narrowed(scale: Array) -> Array:
    """A scale with the axes along which it does not change reduced to length one, those in front dropped."""
    for axis, length in enumerate(scale.shape):
        first = scale.take([0], axis=axis)
        if length > 1 and (scale == first).all():
            scale = first
    while scale.ndim > 1 and scale.shape[0] == 1:
        scale = scale[0]
    return np.ascontiguousarray(scale, np.float32)

"""What values are at each call of a model: extremes and mean squares by channel, and some rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.runtime.session import Feed, SessionOptions, open_session
from graphopt.runtime.statistics.chain import prepared

Array = np.ndarray[Any, Any]

_AXES_AS_INPUT = 18
_PARTS = ("low", "high", "energy", "rows")


@dataclass(frozen=True, eq=False)
class Call:
    """A value at one call, its channels along the last axis.

    Attributes:
        low: ``float32 [K]``, the smallest of each channel.
        high: ``float32 [K]``, the largest.
        energy: ``float32 [K]``, the mean square.
        rows: ``float32 [rows, K]``, spread over the call.
    """

    low: Array
    high: Array
    energy: Array
    rows: Array


def calls_of(model: ir.Model, values: Sequence[str], feeds: Iterable[Feed], options: SessionOptions, rows: int) -> Mapping[str, list[Call]]:
    """What some values are at each of some calls; nothing but the excerpt leaves the runtime.

    Args:
        model: stays as it is.
        values: names of outputs of nodes of the main graph.
        feeds: one a call.
        options: how to run.
        rows: how many are kept of a call at most.

    Returns:
        By value, in the order of the feeds; without calls in which it is empty.

    Raises:
        SessionError: the model does not load or does not run with a feed.
    """
    copy = prepared(model)
    known = {value.name: value for node in copy.graph for value in node.outputs}
    copy.graph.outputs.clear()
    for number, name in enumerate(values):
        _watch(copy.graph, known[name], number, rows)
    session = open_session(copy, "all", options)
    found: dict[str, list[Call]] = {name: [] for name in values}
    for feed in feeds:
        outputs = session.run(feed)
        for number, name in enumerate(values):
            if outputs[_name("rows", number)].size:
                found[name].append(Call(*(outputs[_name(part, number)] for part in _PARTS)))
    return found


def _watch(graph: ir.Graph, value: ir.Value, number: int, rows: int) -> None:
    """Adds what is wanted of a value to the outputs."""
    op = _Maker(graph, number)
    matrix = op.made("matrix", "Flatten", op.made("cast", "Cast", value, to=ir.DataType.FLOAT.value), axis=-1)
    first, end, share = op.constant("first", 0), op.constant("end", np.iinfo(np.int64).max), op.constant("share", rows)
    length = op.made("length", "Gather", op.made("shape", "Shape", matrix), first)
    step = op.made("step", "Div", op.made("more", "Add", length, share), share)
    graph.outputs.extend(
        [
            op.reduced("low", "ReduceMin", matrix),
            op.reduced("high", "ReduceMax", matrix),
            op.reduced("energy", "ReduceMean", op.made("square", "Mul", matrix, matrix)),
            op.made("rows", "Slice", matrix, first, end, first, step),
        ]
    )


@dataclass(frozen=True)
class _Maker:
    """Adds nodes for one of the values to a graph."""

    graph: ir.Graph
    number: int

    def made(self, kind: str, operator: str, *inputs: ir.Value, **attributes: int) -> ir.Value:
        """The output of a new node."""
        node = ir.node(operator, inputs, attributes)
        self.graph.append(node)
        dtype = ir.DataType.INT64 if kind in ("shape", "length", "more", "step") else ir.DataType.FLOAT
        node.outputs[0].name, node.outputs[0].type = _name(kind, self.number), ir.TensorType(dtype)
        return node.outputs[0]

    def constant(self, kind: str, content: int) -> ir.Value:
        """A vector of one integer."""
        name = _name(kind, self.number)
        self.graph.register_initializer(ir.val(name, const_value=ir.tensor(np.array([content], np.int64), name=name)))
        return self.graph.initializers[name]

    def reduced(self, kind: str, operator: str, matrix: ir.Value) -> ir.Value:
        """What a matrix has along its rows."""
        if self.graph.opset_imports.get("", 1) >= _AXES_AS_INPUT:
            return self.made(kind, operator, matrix, self.constant(f"{kind}_axes", 0), keepdims=0)
        reduced = self.made(kind, operator, matrix, keepdims=0)
        node = reduced.producer()
        assert node is not None, "just made"
        node.attributes["axes"] = ir.AttrInt64s("axes", [0])
        return reduced


def _name(kind: str, number: int) -> str:
    return f"graphopt_{kind}:{number}"

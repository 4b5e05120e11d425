"""Layers: linear operators with a constant weight, seen as ``W [groups, out, in]`` whatever operator holds it.

``Y = scale * W X (+ bias)``, where ``out`` counts the output channels of a group and ``X [groups, in, positions]`` is what
:func:`graphopt.graph.unfold.unfold` makes of the input.
"""

from __future__ import annotations

import enum
import fnmatch
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.errors import RecipeError
from graphopt.files.weights import private_map
from graphopt.graph.edits import Names, all_nodes, remove_dead
from graphopt.graph.scratch import tensor_of
from graphopt.graph.view import attribute, input_of, operator_of

Array = np.ndarray[Any, Any]

CONVOLUTIONS = frozenset({"Conv", "com.microsoft::FusedConv"})
GEMMS = frozenset({"Gemm", "com.microsoft::FusedGemm"})
MATMULS = frozenset({"MatMul", "com.microsoft::FusedMatMul"})
OPERATORS = (*sorted(CONVOLUTIONS), "ConvTranspose", *sorted(GEMMS), *sorted(MATMULS))
"""The operators that can hold a layer."""


class Layout(enum.Enum):
    """How an operator stores its weight; ``batch`` are the leading axes of a stack of matrices."""

    CONV = "[groups * out, in, *kernel]"
    CONV_TRANSPOSE = "[groups * in, out, *kernel]"
    OUT_IN = "[*batch, out, in]"
    IN_OUT = "[*batch, in, out]"


@dataclass(frozen=True)
class Layer:
    """One linear operator with a constant weight.

    Attributes:
        graph: the graph or subgraph that holds the node.
        node: the operator.
        index: which of the node's inputs is the weight.
        layout: how the operator stores it.
        groups: number of independent matrices: groups of a convolution, or leading axes of a stacked MatMul.
    """

    graph: ir.Graph
    node: ir.Node
    index: int
    layout: Layout
    groups: int

    @property
    def name(self) -> str:
        """The node's name."""
        return self.node.name or ""

    @property
    def value(self) -> ir.Value:
        """The value that holds the weight; other nodes may use it too."""
        value = self.node.inputs[self.index]
        assert value is not None
        return value

    @property
    def input(self) -> ir.Value:
        """The activation that the weight is applied to."""
        value = self.node.inputs[1 - self.index]
        assert value is not None
        return value

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """The shape of the weight as the operator stores it; reads no data."""
        return tuple(_tensor(self.value).shape.numpy())

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(groups, out, in)``; reads no data."""
        shape, groups = self.stored_shape, self.groups
        if self.layout is Layout.CONV:
            return groups, shape[0] // groups, math.prod(shape[1:])
        if self.layout is Layout.CONV_TRANSPOSE:
            return groups, shape[1], shape[0] // groups * math.prod(shape[2:])
        if len(shape) == 1:
            return 1, 1, shape[0]
        rows, columns = shape[-2:]
        return (groups, rows, columns) if self.layout is Layout.OUT_IN else (groups, columns, rows)

    @property
    def size(self) -> int:
        """Number of weights."""
        return math.prod(self.shape)

    @property
    def scale(self) -> float:
        """What the operator multiplies ``W X`` with: ``alpha`` of Gemm and FusedMatMul, else 1."""
        return attribute(self.node, "alpha", 1.0)

    @property
    def bias_scale(self) -> float:
        """What the operator multiplies the bias with: ``beta`` of Gemm, else 1."""
        return attribute(self.node, "beta", 1.0)

    @property
    def bias(self) -> ir.Value | None:
        """The value that the operator itself adds, one per output channel or one for all; None where there is no such value."""
        value = None if operator_of(self.node) in MATMULS else input_of(self.node, 2)
        if value is None or operator_of(self.node) not in GEMMS:
            return value
        if value.shape is None:
            return None
        rows, columns = (1, 1, *value.shape)[-2:]
        return value if (rows if self.index else columns) == 1 else None

    def weight(self) -> Array:
        """Reads the weight as ``W [groups, out, in]``. The array may be a view of a mapped file: never write to it."""
        tensor = _tensor(self.value)
        # A map of its own goes with the array; the model's would keep in memory whatever was read once.
        return self.as_matrix((private_map(tensor) if isinstance(tensor, ir.ExternalTensor) else tensor).numpy())

    def restore(self, array: Array) -> Array:
        """Brings ``W [groups, out, in]`` back into the layout of the operator; the inverse of :meth:`weight`.

        ``out`` and ``in`` may differ from the layer's own (``in`` of a convolution by whole channels), ``groups`` may not.
        """
        stored = self.stored_shape
        groups, out, width = array.shape
        if self.layout is Layout.CONV:
            return array.reshape(groups * out, -1, *stored[2:])
        if self.layout is Layout.CONV_TRANSPOSE:
            kernel = stored[2:]
            channels = width // math.prod(kernel)
            return array.reshape(groups, out, channels, -1).transpose(0, 2, 1, 3).reshape(groups * channels, out, *kernel)
        if len(stored) == 1 and out == 1:
            return array.reshape(width)
        matrices = array if self.layout is Layout.OUT_IN else array.transpose(0, 2, 1)
        return matrices.reshape(*stored[:-2], *matrices.shape[1:])

    def assign(self, array: Array, names: Names) -> None:
        """Gives the node a weight of its own, in its own element type; other users of the old weight keep it.

        Args:
            array: ``W [groups, out, in]``, as for :meth:`restore`.
            names: of the model.
        """
        stored = self.restore(array).astype(_tensor(self.value).dtype.numpy(), copy=False)
        self.put(tensor_of(stored, self.value.name or f"{self.name}/weight"), names)

    def put(self, tensor: ir.TensorProtocol, names: Names) -> None:
        """The same with a tensor as the operator stores it."""
        old = self.value
        name = names.fresh(old.name or f"{self.name}/weight")
        new = ir.val(name, const_value=tensor)
        self.graph.register_initializer(new)
        self.node.replace_input_with(self.index, new)
        remove_dead([old])

    def on(self, node: ir.Node) -> Layer:
        """The same layer at a node of a clone."""
        assert isinstance(node.graph, ir.Graph), "a layer stands in a graph"
        return replace(self, graph=node.graph, node=node)

    def as_matrix(self, stored: Array) -> Array:
        """Brings an array of the stored weight's shape into the order of ``W [groups, out, in]``."""
        groups = self.groups
        if self.layout is Layout.CONV:
            return stored.reshape(groups, stored.shape[0] // groups, -1)
        if self.layout is Layout.CONV_TRANSPOSE:
            channels, out = stored.shape[0] // groups, stored.shape[1]
            return stored.reshape(groups, channels, out, -1).transpose(0, 2, 1, 3).reshape(groups, out, -1)
        if stored.ndim == 1:
            return stored.reshape(1, 1, -1)
        matrices = stored.reshape(groups, *stored.shape[-2:])
        return matrices if self.layout is Layout.OUT_IN else matrices.transpose(0, 2, 1)


def layers_of(model: ir.Model) -> Iterator[Layer]:
    """Yields the layers of the main graph and its subgraphs in order; functions are left out, reads no data."""
    for node in all_nodes(model):
        layer = layer_of(node)
        if layer is not None:
            yield layer


def layer_of(node: ir.Node) -> Layer | None:
    """The layer that a node is, or None where it is no linear operator or has no constant weight."""
    operator, graph = operator_of(node), node.graph
    if operator not in OPERATORS or not isinstance(graph, ir.Graph):
        return None
    if operator in CONVOLUTIONS or operator == "ConvTranspose":
        if not _is_constant(input_of(node, 1)):
            return None
        layout = Layout.CONV_TRANSPOSE if operator == "ConvTranspose" else Layout.CONV
        return Layer(graph, node, 1, layout, attribute(node, "group", 1))
    if attribute(node, "transBatchA", 0) or attribute(node, "transBatchB", 0):
        return None
    index = next((i for i in (1, 0) if _is_constant(input_of(node, i))), None)
    if index is None:
        return None
    turned = bool(attribute(node, "transB" if index else "transA", 0))
    layout = Layout.OUT_IN if turned == bool(index) else Layout.IN_OUT
    return Layer(graph, node, index, layout, math.prod(_tensor(node.inputs[index]).shape.numpy()[:-2]))


def select(layers: Iterable[Layer], *, operators: Sequence[str] = (), names: Sequence[str] = (), min_size: int = 0) -> list[Layer]:
    """Chooses layers; what is left empty chooses all.

    Args:
        layers: to choose from.
        operators: operator types, such as ``Conv`` or ``com.microsoft::FusedConv``.
        names: globs on the name of the node or of its weight.
        min_size: smallest number of weights.

    Raises:
        RecipeError: an operator type or a glob matches no layer, or none is large enough.
    """
    chosen = list(layers)
    for operator in operators:
        if not any(operator_of(layer.node) == operator for layer in chosen):
            present = ", ".join(sorted({operator_of(layer.node) for layer in chosen})) or "none"
            raise RecipeError(f"no layer is of type {operator!r}; the model's layers are: {present}")
    for pattern in names:
        if not any(_matches(layer, pattern) for layer in chosen):
            present = ", ".join(layer.name for layer in chosen[:3]) or "none"
            raise RecipeError(f"no layer's node or weight name matches {pattern!r}; the first of {len(chosen)} layers are: {present}")
    if operators:
        chosen = [layer for layer in chosen if operator_of(layer.node) in operators]
    if names:
        chosen = [layer for layer in chosen if any(_matches(layer, pattern) for pattern in names)]
    large = [layer for layer in chosen if layer.size >= min_size]
    if chosen and not large:
        raise RecipeError(f"no layer has {min_size} weights; the largest has {max(layer.size for layer in chosen)}")
    return large


def _matches(layer: Layer, pattern: str) -> bool:
    return fnmatch.fnmatchcase(layer.name, pattern) or fnmatch.fnmatchcase(layer.value.name or "", pattern)


def _is_constant(value: ir.Value | None) -> bool:
    if value is None or value.is_graph_input():  # an initializer that is also an input is a default, not a constant
        return False
    return ir.convenience.get_const_tensor(value) is not None


def _tensor(value: ir.Value | None) -> ir.TensorProtocol:
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    assert tensor is not None, "a layer's weight is a constant"
    return tensor

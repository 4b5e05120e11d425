"""Probes: reductions appended to a graph, so that the runtime returns a few numbers instead of an activation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.graph.layers import Layer, Layout
from graphopt.graph.view import attribute

Array = np.ndarray[Any, Any]

_AXES_AS_INPUT = {"ReduceSum": 13}
_AXES_AS_INPUT_ELSE = 18
_GEOMETRY = ("auto_pad", "dilations", "kernel_shape", "output_padding", "output_shape", "pads", "strides")


class Probes:
    """Adds nodes at the end of a graph, and outputs.

    Args:
        graph: to append to.
    """

    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph
        self._opset = graph.opset_imports.setdefault("", graph.opset_imports.get("ai.onnx", 17))
        self._values = {value.name: value for value in graph.inputs} | {v.name: v for node in graph for v in node.outputs}
        self._count = 0

    def floats(self, name: str) -> ir.Value:
        """A value of the graph as float32."""
        return self._op("Cast", self._values[name], to=ir.DataType.FLOAT.value)

    def extremes(self, value: ir.Value, axes: Sequence[int] | None = None) -> list[str]:
        """Names of the outputs that will hold minimum and maximum, over all axes or some."""
        return [self._returned(self._reduce(kind, value, axes)) for kind in ("ReduceMin", "ReduceMax")]

    def sums(self, value: ir.Value) -> list[str]:
        """Names of the outputs that will hold the number of elements, their sum and the sum of their absolute values."""
        nodes = (self._op("Size", value), self._reduce("ReduceSum", value, None), self._reduce("ReduceL1", value, None))
        return [self._returned(result) for result in nodes]

    def moments(self, layer: Layer, value: ir.Value) -> list[str]:
        """Names of the outputs that will hold ``[groups, K]`` sums, ``[groups, K, K]`` products, and the size of ``X``."""
        columns = self._columns(layer, value)
        gram = self._op("MatMul", columns, self._op("Transpose", columns, perm=[0, 2, 1]))
        results = (self._reduce("ReduceSum", columns, [2]), gram, self._op("Size", columns))
        return [self._returned(result) for result in results]

    def _columns(self, layer: Layer, value: ir.Value) -> ir.Value:
        """``X [groups, K, positions]``; positions in any order."""
        groups, _, width = layer.shape
        if layer.layout not in (Layout.CONV, Layout.CONV_TRANSPOSE):
            rows = self._op("Reshape", value, self._constant([1, -1, width]))
            return self._op("Transpose", rows, perm=[0, 2, 1])
        kernel = layer.stored_shape[2:]
        taps = math.prod(kernel)
        channels = groups * width // taps
        if taps > 1 or _moves(layer):
            value = self._taps(layer, value, channels, kernel)
        split = self._op("Reshape", value, self._constant([0, groups, width, -1]))
        ordered = self._op("Transpose", split, perm=[1, 2, 0, 3])
        return self._op("Reshape", ordered, self._constant([groups, width, -1]))

    def _taps(self, layer: Layer, value: ir.Value, channels: int, kernel: tuple[int, ...]) -> ir.Value:
        """Unfolds by a depthwise convolution of the layer's own geometry, each of whose kernels is one at one tap."""
        taps = math.prod(kernel)
        is_conv = layer.layout is Layout.CONV
        ones = np.eye(taps, dtype=np.float32).reshape((*((taps, 1) if is_conv else (1, taps)), *kernel))
        weight = self._constant(np.tile(ones, (channels, 1, *(1,) * len(kernel))))
        kept = {name: layer.node.attributes[name] for name in _GEOMETRY if name in layer.node.attributes}
        return self._op("Conv" if is_conv else "ConvTranspose", value, weight, group=channels, **kept)

    def _reduce(self, kind: str, value: ir.Value, axes: Sequence[int] | None) -> ir.Value:
        if axes is None:
            return self._op(kind, value, keepdims=0)
        if self._opset >= _AXES_AS_INPUT.get(kind, _AXES_AS_INPUT_ELSE):
            return self._op(kind, value, self._constant(list(axes)), keepdims=0)
        return self._op(kind, value, axes=list(axes), keepdims=0)

    def _op(self, op_type: str, *inputs: ir.Value, **attributes: Any) -> ir.Value:
        node = ir.node(op_type, inputs, attributes)
        node.outputs[0].name = self._fresh()
        node.outputs[0].type = ir.TensorType(ir.DataType.INT64 if op_type == "Size" else ir.DataType.FLOAT)
        self._graph.append(node)
        return node.outputs[0]

    def _constant(self, content: Array | list[int]) -> ir.Value:
        array = np.asarray(content, dtype=None if isinstance(content, np.ndarray) else np.int64)
        name = self._fresh()
        value = ir.val(name, const_value=ir.tensor(array, name=name))
        self._graph.register_initializer(value)
        return value

    def _returned(self, value: ir.Value) -> str:
        self._graph.outputs.append(value)
        return value.name or ""

    def _fresh(self) -> str:
        self._count += 1
        return f"graphopt_probe:{self._count}"


def _moves(layer: Layer) -> bool:
    """Whether a kernel of one tap still pads or leaves places out."""
    places = len(layer.stored_shape) - 2
    pads, strides = attribute(layer.node, "pads", (0,) * 2 * places), attribute(layer.node, "strides", (1,) * places)
    extra = ("output_padding", "output_shape")
    return any(pads) or any(stride != 1 for stride in strides) or any(name in layer.node.attributes for name in extra)

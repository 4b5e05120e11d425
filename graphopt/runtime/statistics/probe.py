"""Probes: reductions appended to a graph, so that the runtime returns a few numbers instead of an activation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

Array = np.ndarray[Any, Any]

_AXES_AS_INPUT = {"ReduceSum": 13}
_AXES_AS_INPUT_ELSE = 18


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
        low = self._reduce("ReduceMin", value, axes)
        # ONNX Runtime 1.20 has a minimum of nothing, infinity, but fails at its maximum.
        high = self._op("Neg", self._reduce("ReduceMin", self._op("Neg", value), axes))
        return [self._returned(low), self._returned(high)]

    def sums(self, value: ir.Value) -> list[str]:
        """Names of the outputs that will hold the number of elements and their sum."""
        return [self._returned(result) for result in (self._op("Size", value), self._reduce("ReduceSum", value, None))]

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

"""Requests: which values and layers statistics are wanted of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import onnx_ir as ir

from graphopt.graph.layers import OPERATORS, layers_of
from graphopt.graph.view import View, operator_of

FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE})
"""Element types that statistics are taken of."""

QUANTIZABLE = frozenset(
    {
        *OPERATORS,
        *("Add", "Mul", "Concat", "Where", "Relu", "Clip", "LeakyRelu", "Sigmoid", "HardSigmoid", "Softmax"),
        *("AveragePool", "GlobalAveragePool", "MaxPool", "Resize", "Pad"),
    }
)
"""Operators that some runtime executes on quantized values."""


@dataclass(frozen=True)
class Request:
    """What is wanted; all names are those of the main graph.

    Attributes:
        values: values whose extremes and means are wanted.
        histograms: values whose histograms are wanted besides.
        channels: values whose extremes along an axis are wanted besides, with the axis.
        layers: nodes whose input moments are wanted.
    """

    values: tuple[str, ...] = ()
    histograms: tuple[str, ...] = ()
    channels: Mapping[str, int] = field(default_factory=dict)
    layers: tuple[str, ...] = ()

    @property
    def all_values(self) -> tuple[str, ...]:
        """The values that anything is wanted of, each once."""
        return tuple(dict.fromkeys((*self.values, *self.histograms, *self.channels)))

    @classmethod
    def whole(cls, model: ir.Model) -> Request:
        """Extremes, means and histograms of all quantizable values, and the moments of all layers."""
        return cls(histograms=quantizable(model), layers=tuple(layer.name for layer in layers_of(model) if layer.name))


def quantizable(model: ir.Model) -> tuple[str, ...]:
    """The floating values of the main graph that a quantizable operator reads or makes; constants are left out."""
    view = View(model)
    found: dict[str, None] = {}
    for node in model.graph:
        if operator_of(node) not in QUANTIZABLE:
            continue
        for value in (*node.inputs, *node.outputs):
            if value is not None and value.name and not view.is_constant(value) and view.dtype(value) in FLOATS:
                found[value.name] = None
    return tuple(found)

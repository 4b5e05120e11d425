"""What stands between QuantizeLinear and DequantizeLinear in a model that comes quantized."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from graphopt.graph.view import View, input_of, operator_of

QUANTIZE = ("QuantizeLinear", "com.microsoft::QuantizeLinear")
DEQUANTIZE = ("DequantizeLinear", "com.microsoft::DequantizeLinear")
_PASSES_THROUGH = frozenset(
    """
    DepthToSpace Expand Flatten Gather Identity MaxPool Reshape Slice SpaceToDepth Split Squeeze Tile Transpose Unsqueeze
    """.split()
)
"""Operators that only move codes about, or take the largest."""


@dataclass(frozen=True)
class Island:
    """What happens to the codes of one QuantizeLinear, up to the DequantizeLinear nodes that end it.

    Attributes:
        start: the QuantizeLinear.
        inner: nodes that move the codes about.
        ends: the DequantizeLinear nodes.
        obstacle: why it is not as whole as that; empty where it is.
    """

    start: ir.Node
    inner: tuple[ir.Node, ...]
    ends: tuple[ir.Node, ...]
    obstacle: str


def island_of(start: ir.Node) -> Island:
    """Follows the codes of a QuantizeLinear."""
    inner: list[ir.Node] = []
    ends: list[ir.Node] = []
    obstacle = ""
    pending = [*start.outputs]
    while pending:
        value = pending.pop(0)
        if value.is_graph_output():
            obstacle = "its codes are an output"
        for use in value.uses():
            operator = operator_of(use.node)
            if operator in DEQUANTIZE and use.idx == 0:
                ends.append(use.node)
            elif operator in _PASSES_THROUGH and use.idx == 0:
                if use.node not in inner:
                    inner.append(use.node)
                    pending.extend(use.node.outputs)
            else:
                obstacle = f"{operator} reads its codes"
    return Island(start, tuple(inner), tuple(ends), obstacle)


def grid_of(node: ir.Node, view: View) -> tuple[float, float] | None:
    """Scale and zero point of a node, where each is one constant."""
    scale, given = view.scalar(node.inputs[1]), input_of(node, 2)
    zero_point = 0.0 if given is None else view.scalar(given)
    return None if scale is None or zero_point is None else (scale, zero_point)

"""Operands that are attributes in some opsets and inputs in others, read and written in the form that the model's opset wants."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphopt.graph.edits import Builder
from graphopt.graph.view import View, attribute, input_of


def numbers_operand(node: ir.Node, view: View, name: str, index: int) -> tuple[int, ...] | None:
    """Integers given as an attribute or as a constant input.

    Args:
        node: the node.
        view: the model.
        name: of the attribute.
        index: of the input.

    Returns:
        The integers; ``()`` where neither is there; None where the input is not constant.
    """
    value = input_of(node, index)
    if value is not None:
        return view.integers(value)
    return attribute(node, name, ())


def axes_of(node: ir.Node, view: View) -> tuple[int, ...] | None:
    """The axes of a Squeeze, an Unsqueeze or a reduction as they are written; ``()`` where absent, None where not constant."""
    return numbers_operand(node, view, "axes", 1)


def numbers_constant(op: Builder, numbers: Sequence[int]) -> ir.Value:
    """An int64 vector."""
    return op.constant(np.array(numbers, dtype=np.int64))


def reshape(op: Builder, value: ir.Value, target: Sequence[int]) -> ir.Value:
    """A Reshape to a constant target in which 0 stands for the input's length."""
    return op.op("Reshape", value, numbers_constant(op, target))


@dataclass(frozen=True)
class SliceParts:
    """The constant bounds of a Slice, one entry per sliced axis.

    Attributes:
        starts: first indices, as written.
        ends: indices after the last, as written.
        axes: the sliced axes, as written (they may be negative).
        steps: strides.
    """

    starts: tuple[int, ...]
    ends: tuple[int, ...]
    axes: tuple[int, ...]
    steps: tuple[int, ...]


def slice_parts(node: ir.Node, view: View) -> SliceParts | None:
    """The bounds of a Slice, where all of them are constant."""
    starts = numbers_operand(node, view, "starts", 1)
    ends = numbers_operand(node, view, "ends", 2)
    axes = numbers_operand(node, view, "axes", 3)
    steps = () if input_of(node, 4) is None else view.integers(node.inputs[4])
    if starts is None or ends is None or axes is None or steps is None:
        return None
    return SliceParts(starts, ends, axes or tuple(range(len(starts))), steps or (1,) * len(starts))


def slice_by(op: Builder, view: View, value: ir.Value, parts: SliceParts) -> ir.Value:
    """A Slice with constant bounds."""
    if view.opset < 10:
        return op.op("Slice", value, starts=parts.starts, ends=parts.ends, axes=parts.axes)
    bounds = [numbers_constant(op, part) for part in (parts.starts, parts.ends, parts.axes)]
    strides = [] if all(step == 1 for step in parts.steps) else [numbers_constant(op, parts.steps)]
    return op.op("Slice", value, *bounds, *strides)


def pads_of(node: ir.Node, view: View) -> tuple[int, ...] | None:
    """The pads of a Pad for all axes, begins first; None where they are not constant or name axes of an unknown rank."""
    pads = numbers_operand(node, view, "pads", 1)
    if pads is None or input_of(node, 3) is None:
        return pads
    axes, rank = view.integers(node.inputs[3]), view.rank(node.inputs[0])
    if axes is None or rank is None:
        return None
    full = [0] * (2 * rank)
    for position, axis in enumerate(axes):
        full[axis % rank] = pads[position]
        full[rank + axis % rank] = pads[len(axes) + position]
    return tuple(full)


def pad_value(node: ir.Node, view: View) -> float | None:
    """What a Pad fills with; None where it does not fill with a constant number."""
    if attribute(node, "mode", "constant") != "constant":
        return None
    if input_of(node, 2) is not None:
        return view.scalar(node.inputs[2])
    return float(attribute(node, "value", 0.0))


def clip_bounds(node: ir.Node, view: View) -> tuple[float, float] | None:
    """The bounds of a Clip, infinite where absent; None where they are not constant."""
    if view.opset < 11:
        return float(attribute(node, "min", -np.inf)), float(attribute(node, "max", np.inf))
    low, high = (bound if bound is None else view.scalar(bound) for bound in (input_of(node, 1), input_of(node, 2)))
    low = -np.inf if input_of(node, 1) is None else low
    high = np.inf if input_of(node, 2) is None else high
    return None if low is None or high is None else (low, high)

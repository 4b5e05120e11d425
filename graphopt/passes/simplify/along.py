"""Which operators make what lies at an index of an axis from what lies at the same index of their operands, and along which axes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import onnx_ir as ir

from graphopt.graph.forms import axes_of, slice_parts
from graphopt.graph.shapes.dims import Dim
from graphopt.graph.view import View, attribute, input_of, operator_of
from graphopt.passes.simplify.views import BINARY, UNARY, perm_of

Axes = Mapping[int, int]
"""Axes by the positions of the inputs that are cut along them; the other inputs stay whole."""

VIEWS = frozenset({"Transpose", "Reshape", "Squeeze", "Unsqueeze", "Concat", "Slice", "Cast", "Identity"})
"""Those of them that compute nothing."""

PRODUCTS = frozenset({"MatMul", "Gemm"})
"""Those of them that multiply matrices."""


def axes_above(node: ir.Node, axis: int, view: View) -> Axes | None:
    """The axes along which a node's inputs are cut where only a part of its first output along an axis is wanted.

    Args:
        node: the node; nobody may use its other outputs.
        axis: of the first output, counted from the front.
        view: the model.

    Returns:
        The axes, counted from the front; None where a part of the output takes more than the same part of the inputs, or
        where that is not known.
    """
    find = _RULES.get(operator_of(node))
    shape = view.shape(node.outputs[0])
    if find is None or shape is None or any(output.uses() or output.is_graph_output() for output in node.outputs[1:]):
        return None
    return find(node, axis, view)


def _same(node: ir.Node, axis: int, view: View) -> Axes | None:
    return {0: axis}


def _broadcast(node: ir.Node, axis: int, view: View) -> Axes | None:
    """Operands along whose axis there is one element, or that lack it, stay whole."""
    shapes = [shape for value in node.inputs if (shape := view.shape(value)) is not None]
    if len(shapes) < len(node.inputs) or view.opset < 7:
        return None
    return _from_behind(axis, view.shape(node.outputs[0]) or (), shapes)


def _from_behind(axis: int, whole: Sequence[Dim], shapes: Sequence[Sequence[Dim]]) -> Axes | None:
    """Where an axis of a whole lies in operands that are broadcast to it; those without it, or with one element along it, are left out."""
    found = {}
    for index, shape in enumerate(shapes):
        place = axis - len(whole) + len(shape)
        if place < 0 or (shape[place] == 1 and whole[axis] != 1):
            continue
        if shape[place] != whole[axis]:
            return None
        found[index] = place
    return found or None


def _rows(node: ir.Node, axis: int, view: View) -> Axes | None:
    """Softmax and normalizations, over their axis and, but for Softmax from opset 13 on, all behind it."""
    rank = view.rank(node.outputs[0]) or 0
    default = 1 if node.op_type.endswith("Softmax") and view.opset < 13 else -1
    reduced = attribute(node, "axis", default) % rank
    is_single = node.op_type.endswith("Softmax") and view.opset >= 13
    return {0: axis} if axis < reduced or (is_single and axis != reduced) else None


def _reduction(node: ir.Node, axis: int, view: View) -> Axes | None:
    axes, rank = axes_of(node, view), view.rank(node.outputs[0]) or 0
    kept = attribute(node, "keepdims", 1) and axes and axis not in {each % rank for each in axes}
    return {0: axis} if kept else None


def _product(node: ir.Node, axis: int, view: View) -> Axes | None:
    """Rows of a product take the same rows of its first operand; matrices of a batch take the same of both."""
    whole, shapes = view.shape(node.outputs[0]) or (), [view.shape(value) for value in node.inputs]
    left, right = shapes
    if left is None or right is None or len(left) < 2 or len(right) < 2 or axis == len(whole) - 1:
        return None
    if axis == len(whole) - 2:
        return {0: len(left) - 2}
    return _from_behind(axis, whole, (left, right))


def _gemm(node: ir.Node, axis: int, view: View) -> Axes | None:
    bias = input_of(node, 2)
    shape = () if bias is None else view.shape(bias)
    if axis != 0 or attribute(node, "transA", 0) or shape is None or (len(shape) == 2 and shape[0] != 1):
        return None
    return {0: 0}


def _transpose(node: ir.Node, axis: int, view: View) -> Axes | None:
    perm = perm_of(node, view)
    return None if perm is None else {0: perm[axis]}


def _reshape(node: ir.Node, axis: int, view: View) -> Axes | None:
    """An axis that stays where it is, behind the same axes, or in front of the same ones; the target must be constant."""
    before, after = view.shape(node.inputs[0]), view.shape(node.outputs[0])
    if before is None or after is None or view.integers(node.inputs[1]) is None:
        return None
    if before[: axis + 1] == after[: axis + 1]:
        return {0: axis}
    place = axis - len(after) + len(before)
    copies = 0 in (view.integers(node.inputs[1]) or ())
    return {0: place} if place >= 0 and before[place:] == after[axis:] and not copies else None


def _squeeze(node: ir.Node, axis: int, view: View) -> Axes | None:
    axes, rank = axes_of(node, view), view.rank(node.inputs[0])
    if not axes or rank is None:
        return None
    return {0: [place for place in range(rank) if place not in {each % rank for each in axes}][axis]}


def _unsqueeze(node: ir.Node, axis: int, view: View) -> Axes | None:
    axes, rank = axes_of(node, view), view.rank(node.outputs[0])
    if axes is None or rank is None:
        return None
    new = {each % rank for each in axes}
    return None if axis in new else {0: axis - sum(place < axis for place in new)}


def _concat(node: ir.Node, axis: int, view: View) -> Axes | None:
    rank = view.rank(node.outputs[0]) or 0
    return None if attribute(node, "axis", 0) % rank == axis else dict.fromkeys(range(len(node.inputs)), axis)


def _slice(node: ir.Node, axis: int, view: View) -> Axes | None:
    parts, rank = slice_parts(node, view), view.rank(node.outputs[0]) or 0
    return None if parts is None or axis in {each % rank for each in parts.axes} else {0: axis}


_RULES: Mapping[str, Callable[[ir.Node, int, View], Axes | None]] = {
    **dict.fromkeys(UNARY - {"Dropout"}, _same),
    **dict.fromkeys(("com.microsoft::Gelu", "com.microsoft::QuickGelu"), _same),
    **dict.fromkeys((*BINARY, "Sum", "Where", "PRelu", "Xor", "Mod"), _broadcast),
    **dict.fromkeys(("Softmax", "LogSoftmax", "LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization"), _rows),
    **dict.fromkeys(("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL2", "ReduceSumSquare"), _reduction),
    "MatMul": _product,
    "Gemm": _gemm,
    "Transpose": _transpose,
    "Reshape": _reshape,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Concat": _concat,
    "Slice": _slice,
}

"""Rules for operators that cut tensors apart and join them: Slice, Split, Concat, Pad."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from graphopt.graph.edits import Builder
from graphopt.graph.forms import SliceParts, pad_value, pads_of, slice_by, slice_parts
from graphopt.graph.view import View, attribute
from graphopt.passes.rules import Change, Miss, rule
from graphopt.passes.simplify.identities import keep


def drop_full_slice(node: ir.Node, view: View) -> Change | None:
    """Replaces a Slice that takes everything with its input.

    When its steps are 1 and the shape, symbolic lengths included, stays the same. Exact; one copy less.
    """
    parts, value, shape = slice_parts(node, view), node.inputs[0], view.shape(node.outputs[0])
    if parts is None or value is None or any(step != 1 for step in parts.steps):
        return None
    takes_all = all(start == 0 and end >= (1 << 31) - 1 for start, end in zip(parts.starts, parts.ends, strict=True))
    return keep(value) if takes_all or (shape is not None and view.shape(value) == shape) else None


def merge_slices(node: ir.Node, view: View) -> Change | None:
    """Replaces Slice(Slice(x)) along different axes with one Slice.

    When all bounds are constant and the inner one has no other use. Exact; one copy less.
    """
    inner = view.producer(node.inputs[0], "Slice")
    if inner is None or inner.inputs[0] is None or not view.is_private(inner.outputs[0]):
        return None
    first, second, value, rank = slice_parts(inner, view), slice_parts(node, view), inner.inputs[0], view.rank(node.inputs[0])
    if first is None or second is None or not _are_disjoint(first.axes, second.axes, rank):
        return None
    merged = SliceParts(first.starts + second.starts, first.ends + second.ends, first.axes + second.axes, first.steps + second.steps)
    return Change(lambda op: slice_by(op, view, value, merged))


def merge_concats(node: ir.Node, view: View) -> Change | None:
    """Replaces Concat(Concat(a, b), c) along one axis with Concat(a, b, c).

    When the inner one has no other use. Exact; one copy of a and b less.
    """
    axis = _positive(attribute(node, "axis", 0), view.rank(node.outputs[0]))
    inputs: list[ir.Value | None] = []
    for value in node.inputs:
        inner = view.producer(value, "Concat")
        is_same = inner is not None and axis == _positive(attribute(inner, "axis", 0), view.rank(inner.outputs[0]))
        inputs.extend(inner.inputs if inner is not None and value is not None and is_same and view.is_private(value) else [value])
    return None if len(inputs) == len(node.inputs) else Change(lambda op: op.copy(node, *inputs))


def drop_empty_parts(node: ir.Node, view: View) -> Change | None:
    """Replaces Concat(a, nothing, b) with Concat(a, b).

    When a part has length zero along the axis and another one is left. Exact.
    """
    rank = view.rank(node.outputs[0])
    axis = _positive(attribute(node, "axis", 0), rank)
    parts = [value for value in node.inputs if (shape := view.shape(value)) is None or len(shape) != rank or shape[axis] != 0]
    return Change(lambda op: op.copy(node, *parts)) if parts and len(parts) < len(node.inputs) else None


def cancel_split(node: ir.Node, view: View) -> Change | None:
    """Replaces Concat of all parts of a Split, in order and along its axis, with what was split.

    Exact; two copies less.
    """
    split = view.producer(node.inputs[0], "Split")
    if split is None or split.inputs[0] is None or list(node.inputs) != list(split.outputs):
        return None
    rank = view.rank(node.outputs[0])
    same = _positive(attribute(node, "axis", 0), rank) == _positive(attribute(split, "axis", 0), rank)
    return keep(split.inputs[0]) if same else None


def fold_pad(node: ir.Node, view: View) -> Change | Miss | None:
    """Replaces Conv(Pad(x)) and AveragePool(Pad(x)) with a Conv or AveragePool that pads.

    When the Pad puts constant zeros around the spatial axes only and has no other use; an AveragePool must count them.
    Exact; one copy less.
    """
    pad = view.producer(node.inputs[0], "Pad")
    if pad is None or pad.inputs[0] is None:
        return None
    value, pads, rank = pad.inputs[0], pads_of(pad, view), view.rank(pad.outputs[0])
    if pads is None or rank is None or len(pads) != 2 * rank or pad_value(pad, view) != 0:
        return Miss("the pads are not constant, or not zeros")
    if not view.is_private(pad.outputs[0]):
        return Miss("the padded value has other uses")
    if attribute(node, "auto_pad", "NOTSET") not in ("NOTSET", "VALID") or any(pads[:2]) or any(pads[rank : rank + 2]) or min(pads) < 0:
        return Miss("the pads are not on spatial axes only, or are chosen by auto_pad")
    own: tuple[int, ...] = attribute(node, "pads", ()) or (0,) * (2 * rank - 4)
    if node.op_type == "AveragePool" and (attribute(node, "ceil_mode", 0) or (any(own) and not attribute(node, "count_include_pad", 0))):
        return Miss("the average would count other elements")
    total = [a + b for a, b in zip(own, pads[2:rank] + pads[rank + 2 :], strict=True)]
    window: tuple[int, ...] = attribute(node, "kernel_shape", ())
    if node.op_type == "AveragePool" and any(pad >= size for pad, size in zip(total, 2 * window, strict=True)):
        return Miss("the runtime takes no pads as wide as the window")
    return Change(lambda op: _padding(op, node, value, total))


def _padding(op: Builder, node: ir.Node, value: ir.Value, pads: Sequence[int]) -> ir.Value:
    counted = {"count_include_pad": 1} if node.op_type == "AveragePool" else {}
    return op.copy(node, value, *node.inputs[1:], pads=list(pads), auto_pad=None, **counted)[0]


def _are_disjoint(a: Sequence[int], b: Sequence[int], rank: int | None) -> bool:
    if rank is None:
        return all(axis >= 0 for axis in (*a, *b)) and not set(a) & set(b)
    return not {axis % rank for axis in a} & {axis % rank for axis in b}


def _positive(axis: int, rank: int | None) -> int:
    """An axis counted from the front where the rank is known, else as it is written."""
    return axis % rank if rank else axis


RULES = (
    rule(drop_full_slice, "Slice"),
    rule(merge_slices, "Slice"),
    rule(drop_empty_parts, "Concat"),
    rule(merge_concats, "Concat"),
    rule(cancel_split, "Concat"),
    rule(fold_pad, "Conv", "AveragePool"),
)
"""The table of this module."""

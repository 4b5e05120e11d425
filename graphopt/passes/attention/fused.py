"""A whole attention in the standard's own operator, of values that are laid out by heads."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from graphopt.graph.attention import AttentionView, attention_at, masks_come_last
from graphopt.graph.edits import Builder
from graphopt.graph.forms import reshape
from graphopt.graph.masks import why_row_may_vanish
from graphopt.graph.view import View
from graphopt.passes.rules import Change, Miss, rule

_FLOATS = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.FLOAT, ir.DataType.DOUBLE)


def fuse_attention(node: ir.Node, view: View) -> Change | Miss | None:
    """Replaces softmax(scale * q kᵀ + mask) v with Attention(q, k, v, mask).

    When the model's opset has the operator (23), q, k and v are [batch, heads, length, size], masks are added and surely
    hide no row whole (which gives NaN in parts, and not in every kernel of the operator), and nothing in between is used
    elsewhere. Rounding-level. For portable results, so that any runtime can choose its kernel; on ONNX Runtime's CPU 1.0 to
    1.7 times as fast as the parts with repeated keys.
    """
    softmax = view.producer(node.inputs[0], "Softmax", "Reshape")
    if softmax is not None and softmax.op_type == "Reshape":
        softmax = view.producer(softmax.inputs[0], "Softmax")
    found = None if softmax is None or view.opset < 23 else attention_at(softmax, view)
    if found is None or softmax is None or found.output is not node.outputs[0]:
        return None
    reason = why_not_fused(found, softmax, view) or why_row_may_vanish(found.masks, view)
    if reason:
        return Miss(reason)
    result = view.shape(node.outputs[0]) or ()
    turned = any(step.op_type == "Transpose" for step in found.nodes)
    kv_heads, width = found.kv_heads or 0, result[-1]

    def build(op: Builder) -> ir.Value:
        keys = found.key if turned else op.op("Transpose", found.key, perm=[0, 1, 3, 2])
        made = op.op("Attention", found.query, keys, found.value, *summed(op, found.masks), scale=found.scale)
        grouped = result[1] != found.heads
        return reshape(op, made, [0, kv_heads, -1, width if isinstance(width, int) else 0]) if grouped else made

    return Change(build)


def summed(op: Builder, masks: Sequence[ir.Value]) -> list[ir.Value]:
    """One mask in the place of several; none where there are none."""
    mask: ir.Value | None = None
    for part in masks:
        mask = part if mask is None else op.op("Add", mask, part)
    return [] if mask is None else [mask]


def why_not_fused(found: AttentionView, softmax: ir.Node, view: View) -> str:
    """What keeps an attention from being the standard operator, rows apart that masks hide whole; empty where nothing does."""
    if any(step.op_type in ("IsNaN", "Where") for step in found.nodes):
        return "rows or scores are chosen by a condition"
    if any(step.op_type == "Cast" for step in found.nodes) or not masks_come_last(softmax, found.masks, view):
        return "scores change their type, or are changed after they were masked"
    inner = (step for step in found.nodes if step.outputs[0] is not found.output)
    if not all(view.is_private(step.outputs[0]) for step in inner):
        return "an intermediate result is used elsewhere"
    if any(view.dtype(mask) != view.dtype(found.query) or not 2 <= (view.rank(mask) or 0) <= 4 for mask in found.masks):
        return "a mask is not one that is added to the scores"
    values = (found.query, found.key, found.value, softmax.outputs[0])
    shapes = [shape for value in values if (shape := view.shape(value)) is not None and len(shape) == 4]
    if len(shapes) < len(values) or view.dtype(found.query) not in _FLOATS:
        return "queries, keys or values are not of rank 4"
    query, key, value, scores = shapes
    if found.heads is None or found.kv_heads is None or (query[1], key[1], value[1]) != (found.heads, found.kv_heads, found.kv_heads):
        return "the heads are not on the second axis"
    if scores[1:3] != query[1:3] or found.heads % found.kv_heads:
        return "the scores are laid out in another way"
    masks = [view.shape(mask) or () for mask in found.masks]
    if masks and any(all(mask[axis] != scores[axis] for mask in masks) for axis in (-1, -2)):
        return "the masks broadcast along queries or keys, where the runtime's kernel does not"
    return ""


RULES = (rule(fuse_attention, "MatMul", targets=("portable",)),)
"""The table of this module."""

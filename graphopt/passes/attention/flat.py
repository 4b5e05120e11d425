"""A whole attention in the standard's own operator, of values whose heads lie side by side."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from graphopt.graph.attention import AttentionView, attention_at
from graphopt.graph.edits import Builder, all_nodes
from graphopt.graph.forms import numbers_constant
from graphopt.graph.masks import why_row_may_vanish
from graphopt.graph.shapes.dims import at_least
from graphopt.graph.view import View, attribute
from graphopt.passes.attention.fused import summed, why_not_fused
from graphopt.passes.rules import Change, Miss, rule

OPSET = 23
"""The first with the operator."""

_RANK = 3
_LONG = 1024
_MULTI_HEAD = "com.microsoft::MultiHeadAttention"
_TO_HEADS, _TO_KEYS = (0, 2, 1, 3), (0, 2, 3, 1)


@dataclass(frozen=True)
class _Flat:
    """An attention of values ``[batch, length, heads * size]``.

    Attributes:
        found: the attention between the transpositions.
        query, key, value: the Reshapes that split them into heads.
        visible: ``[batch, 1, queries, 1]``, 0 for the rows that see nothing and whose masks are 0 instead; None where all see something.
    """

    found: AttentionView
    query: ir.Node
    key: ir.Node
    value: ir.Node
    visible: ir.Value | None

    @property
    def operands(self) -> tuple[ir.Value | None, ...]:
        """Queries, keys and values before they are split."""
        return self.query.inputs[0], self.key.inputs[0], self.value.inputs[0]


def fuse_flat_attention(node: ir.Node, view: View) -> Change | Miss | None:
    """Replaces an attention, with the Reshapes and Transposes that split and join its heads, with Attention on what is not split.

    When the model's opset has the operator (23; the pass raises it for this), batch and lengths are known not to be 0, every
    head has keys of its own, masks are added and hide no row whole (or such rows are multiplied by zero, which then is done
    after the operator), and nothing in between is used elsewhere. Exact to the bit in most shapes. On ONNX Runtime's CPU the
    kernel reads heads where they lie: measured on the core of attentions at 1 thread 1.4 to 1.5 times as fast for 8 to 32
    positions, 1.1 to 1.3 times for 49 to 512; at 2 threads 1.1 to 2.5 times. With a cache, or of heads that are turned in
    between, it is slower than the parts.
    """
    flat = _flat(node, view)
    if not isinstance(flat, _Flat):
        return flat
    if reason := _why_empty(flat, view):
        return Miss(reason)
    if view.opset < OPSET:
        return None
    if not view.runs("Attention", flat.operands[0]):
        return Miss("the runtime has no Attention for its element type")
    found, visible = flat.found, flat.visible

    def build(op: Builder) -> ir.Value:
        heads, operands = found.heads, (*flat.operands, *summed(op, found.masks))
        made = op.op("Attention", *operands, scale=found.scale, q_num_heads=heads, kv_num_heads=heads)
        seen = made if visible is None else op.op("Mul", made, op.op("Squeeze", visible, numbers_constant(op, [1])))
        return _laid_out(op, seen, node, view)

    return Change(build, kernels=("::Attention",))


def fuse_long_attention(node: ir.Node, view: View) -> Change | Miss | None:
    """Replaces an attention without masks, with the Reshapes and Transposes of its heads, with MultiHeadAttention.

    When there are known to be at least 1,024 keys and nothing in between is used elsewhere. Its kernel goes over the keys in
    blocks, as FlashAttention (arXiv:2205.14135) does, and never holds all scores. Rounding-level. Measured on the core of
    attentions with 1,500 keys 1.2 times as fast; with few keys, or a mask, it is no faster than the standard's Attention.
    """
    flat = _flat(node, view)
    if not isinstance(flat, _Flat) or flat.found.masks or flat.visible is not None:
        return None
    length = (view.shape(flat.operands[1]) or (None, None))[1]
    if not isinstance(length, int) or length < _LONG or not view.runs(_MULTI_HEAD, flat.operands[0]):
        return None

    def build(op: Builder) -> ir.Value:
        heads, scale = flat.found.heads, flat.found.scale
        made = op.op("MultiHeadAttention", *flat.operands, domain="com.microsoft", scale=scale, num_heads=heads)
        return _laid_out(op, made, node, view)

    return Change(build, kernels=(_MULTI_HEAD,))


def _laid_out(op: Builder, value: ir.Value, joined: ir.Node, view: View) -> ir.Value:
    """An attention's result [batch, length, width] as the Reshape that joins the heads lays it out."""
    return value if view.rank(joined.outputs[0]) == _RANK else op.op("Reshape", value, joined.inputs[1])


def has_flat_attentions(model: ir.Model) -> bool:
    """Whether a model has attentions that the rule would replace at an opset that has the operator."""
    view = View(model)
    found = (_flat(node, view) for node in all_nodes(model) if node.op_type == "Reshape")
    return any(isinstance(flat, _Flat) and not _why_empty(flat, view) for flat in found)


def _why_empty(flat: _Flat, view: View) -> str:
    """Why batch or lengths may be 0, which ONNX Runtime's kernel refuses; empty where they surely are not.

    A Reshape to a -1 beside a length of its input refuses 0 too.
    """
    for split in (flat.query, flat.key):
        lengths, target = view.shape(split.inputs[0]) or (), view.integers(split.inputs[1]) or ()
        refuses = -1 in target and not attribute(split, "allowzero", 0)
        copied = [axis for axis, entry in enumerate(target) if entry == 0 and refuses]
        if not all(at_least(length, 1) or axis in copied for axis, length in enumerate(lengths[:2])):
            return "the batch or a length may be 0, which the runtime's kernel refuses"
    return ""


def _flat(joined: ir.Node, view: View) -> _Flat | Miss | None:
    """The attention whose heads a Reshape joins."""
    turn = view.producer(joined.inputs[0], "Transpose")
    product = None if turn is None else view.producer(turn.inputs[0], "MatMul")
    if turn is None or product is None or tuple(attribute(turn, "perm", ())) != _TO_HEADS:
        return None
    weights, visible = product.inputs[0], None
    if (guard := view.producer(weights, "Mul")) is not None:
        weights, visible = guard.inputs
    softmax = view.producer(weights, "Softmax")
    found = None if softmax is None else attention_at(softmax, view)
    if softmax is None or found is None or found.output is not product.outputs[0]:
        return None
    reason = why_not_fused(found, softmax, view) or _why_rows_may_vanish(found, visible, view)
    if reason:
        return Miss(reason)
    heads = found.heads or 0
    query, value = (_splitting(split, heads, _TO_HEADS, view) for split in (found.query, found.value))
    key = _splitting(found.key, heads, _TO_HEADS, view) or _splitting(found.key, heads, _TO_KEYS, view)
    if query is None or key is None or value is None or found.kv_heads != heads:
        return Miss("queries, keys or values are not split into heads right before")
    if not _joins(joined, view) or not view.is_private(found.output):
        return Miss("the heads are not joined right after")
    return _Flat(found, query, key, value, visible)


def _splitting(value: ir.Value, heads: int, perm: tuple[int, ...], view: View) -> ir.Node | None:
    """The Reshape that splits [batch, length, heads * size] into what is turned into a value; None where there is none."""
    turn = view.producer(value, "Transpose")
    split = None if turn is None else view.producer(turn.inputs[0], "Reshape")
    if turn is None or split is None or tuple(attribute(turn, "perm", ())) != perm:
        return None
    before, after = view.shape(split.inputs[0]), view.shape(split.outputs[0])
    if before is None or after is None or len(before) != _RANK:
        return None
    return split if before[:2] == after[:2] and after[2] == heads else None


def _joins(joined: ir.Node, view: View) -> bool:
    """Whether a Reshape of [batch, length, heads, size] makes [batch, length, heads * size] of it, or could as well be one of that."""
    before, after, target = view.shape(joined.inputs[0]), view.shape(joined.outputs[0]), view.integers(joined.inputs[1])
    if before is None or after is None or len(after) == _RANK:
        return before is not None and after is not None and after[:2] == before[:2]
    return target is not None and 0 not in target[2:] and not attribute(joined, "allowzero", 0)


def _why_rows_may_vanish(found: AttentionView, visible: ir.Value | None, view: View) -> str:
    """Why the scores of a row may be minus infinity throughout; empty where they surely are not."""
    if visible is None:
        return why_row_may_vanish(found.masks, view)
    ones = view.producer(visible, "Where")
    shown = view.producer(found.masks[0], "Where") if len(found.masks) == 1 else None
    hidden = None if shown is None else view.producer(shown.inputs[0], "IsInf")
    most = None if hidden is None else view.producer(hidden.inputs[0], "ReduceMax")
    shape = view.shape(visible) or ()
    if ones is None or shown is None or most is None or len(shape) != 4 or (shape[1], shape[3]) != (1, 1):
        return "probabilities are multiplied by something"
    zeros = view.scalar(ones.inputs[1]) == view.scalar(shown.inputs[1]) == 0
    same = ones.inputs[0] is shown.inputs[0] and most.inputs[0] is shown.inputs[2]
    return "" if zeros and same else "probabilities are multiplied by something"


RULES = (rule(fuse_long_attention, "Reshape", targets=("cpu",)), rule(fuse_flat_attention, "Reshape", targets=("cpu",)))
"""The table of this module."""

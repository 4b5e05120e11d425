"""Attention, whatever operators hold it: decomposed by an exporter, the standard operator, or one of ONNX Runtime's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import onnx_ir as ir

from graphopt.graph.edits import all_nodes
from graphopt.graph.masks import causal_offset
from graphopt.graph.view import View, attribute, input_of, operator_of

PRODUCTS = ("MatMul", "com.microsoft::FusedMatMul", "Einsum")
FUSED = (
    "Attention",
    "com.microsoft::Attention",
    "com.microsoft::QAttention",
    "com.microsoft::MultiHeadAttention",
    "com.microsoft::DecoderMaskedMultiHeadAttention",
    "com.microsoft::GroupQueryAttention",
)
"""Operators that are a whole attention each."""
_VIEWS = ("Reshape", "Unsqueeze", "Squeeze", "Flatten", "Cast", "Identity")
_DEEPEST = 12


@dataclass(frozen=True)
class AttentionView:
    """One attention: ``softmax(scale * query keyᵀ + masks) value``.

    Attributes:
        anchor: the Softmax of a decomposed attention, else the fused operator.
        query, key, value: what is multiplied, before scaling, transposition and repetition of heads; of an operator
            that holds the projections itself, its input.
        scale: the factor of the scores, wherever the model applies it; None where a fused operator chooses it.
        masks: what is added to the scores, or the conditions that hide some of them; innermost first.
        heads: number of query heads; None where it is not known.
        kv_heads: number of key and value heads; fewer than ``heads`` where heads share them.
        is_causal: whether a position is known to see only itself and those before it, and all of them.
        output: the weighted values.
        nodes: the operators from the scores to the output, in no particular order.
        past: the cached keys and values that new ones are appended to; empty where there are none.
        present: keys and values with the new ones appended.
    """

    anchor: ir.Node
    query: ir.Value
    key: ir.Value
    value: ir.Value
    scale: float | None
    masks: tuple[ir.Value, ...]
    heads: int | None
    kv_heads: int | None
    is_causal: bool
    output: ir.Value
    nodes: tuple[ir.Node, ...]
    past: tuple[ir.Value, ...] = ()
    present: tuple[ir.Value, ...] = ()


def attentions_of(model: ir.Model) -> list[AttentionView]:
    """All attentions of a model and its subgraphs, in order of their anchors."""
    view = View(model)
    return [found for node in all_nodes(model) if (found := attention_at(node, view)) is not None]


def attention_at(node: ir.Node, view: View) -> AttentionView | None:
    """The attention whose anchor a node is: a Softmax between two products, or a fused operator; else None."""
    operator = operator_of(node)
    if operator == "Softmax":
        return _decomposed(node, view)
    return _fused(node, view) if operator in FUSED else None


def masks_come_last(softmax: ir.Node, masks: Sequence[ir.Value], view: View) -> bool:
    """Whether nothing but sums stands between a Softmax and the masks that are added, so that they are not scaled with the scores."""
    left, value = {mask for mask in masks if view.dtype(mask) != ir.DataType.BOOL}, softmax.inputs[0]
    while left:
        node = view.producer(value, "Add")
        mask = None if node is None else next((operand for operand in node.inputs if operand in left), None)
        if node is None or mask is None:
            return False
        left.discard(mask)
        value = node.inputs[1 if node.inputs[0] is mask else 0]
    return True


@dataclass
class _Scores:
    """What the way up from a Softmax to the product of queries and keys meets."""

    scale: float = 1.0
    masks: list[ir.Value] = field(default_factory=list)
    nodes: list[ir.Node] = field(default_factory=list)


def _decomposed(softmax: ir.Node, view: View) -> AttentionView | None:
    axis = attribute(softmax, "axis", -1 if view.opset >= 13 else 1)
    if axis != -1 and axis != (view.rank(softmax.outputs[0]) or 0) - 1:
        return None
    scores = _Scores(nodes=[softmax])
    product = _product_above(softmax.inputs[0], view, scores, 0)
    last = None if product is None else _product_below(softmax.outputs[0], scores)
    if product is None or last is None:
        return None
    query, key, value = product.inputs[0], product.inputs[1], last.inputs[1]
    if query is None or key is None or value is None or view.is_constant(key) or view.is_constant(value):
        return None
    nodes = [product, *scores.nodes, last]
    scale = scores.scale * float(attribute(product, "alpha", 1.0))
    kv_shape = view.shape(key)
    query, factor = _unscaled(query, view, nodes)
    key, factor_of_key = _unscaled(key, view, nodes)
    key, value = repeated_from(key, view, nodes), repeated_from(value, view, nodes)
    kv_heads = _kv_heads(value, kv_shape, view)
    query, heads = _heads_of(query, softmax, kv_heads, view)
    caches = [found for found in (_cache(key, view), _cache(value, view)) if found is not None]
    return AttentionView(
        anchor=softmax,
        query=query,
        key=key,
        value=value,
        scale=scale * factor * factor_of_key,
        masks=tuple(reversed(scores.masks)),
        heads=heads,
        kv_heads=kv_heads,
        is_causal=len(scores.masks) == 1 and _is_causal(scores.masks[0], view),
        output=last.outputs[0],
        nodes=tuple(dict.fromkeys(nodes)),
        past=tuple(past for past, _ in caches) if len(caches) == 2 else (),
        present=tuple(present for _, present in caches) if len(caches) == 2 else (),
    )


def _product_above(value: ir.Value | None, view: View, scores: _Scores, depth: int) -> ir.Node | None:
    """The product of queries and keys behind scaled, masked and reshaped scores."""
    node = view.producer(value, *PRODUCTS, *_VIEWS, "Mul", "Div", "Add", "Where")
    if node is None or depth > _DEEPEST:
        return None
    if operator_of(node) in PRODUCTS:
        constant = len(node.inputs) != 2 or any(view.is_constant(operand) for operand in node.inputs[1:])
        return None if constant else node
    branches = range(1, 3) if node.op_type == "Where" else range(1) if node.op_type in (*_VIEWS, "Div") else range(2)
    for index in branches:
        below = _Scores()
        product = _product_above(node.inputs[index], view, below, depth + 1)
        if product is None or not _note(node, index, view, below):
            continue
        scores.nodes.extend((node, *below.nodes))
        scores.masks.extend(below.masks)
        scores.scale *= below.scale
        return product
    return None


def _note(node: ir.Node, index: int, view: View, scores: _Scores) -> bool:
    """Takes down what a node on the way does to the scores at one of its inputs; False where that is no attention."""
    if node.op_type in _VIEWS:
        return True
    if node.op_type in ("Mul", "Div"):
        factor = view.scalar(node.inputs[1 - index])
        scores.scale *= 0.0 if not factor else factor if node.op_type == "Mul" else 1 / factor
        return bool(factor)
    mask = node.inputs[0] if node.op_type == "Where" else node.inputs[1 - index]
    if mask is not None:
        scores.masks.insert(0, mask)
    return mask is not None


def _product_below(value: ir.Value, scores: _Scores) -> ir.Node | None:
    """The product with the values that probabilities go into, past what dropped rows, types and shapes need."""
    for _ in range(_DEEPEST):
        users = [user for user in dict.fromkeys(use.node for use in value.uses()) if user.op_type != "Shape"]
        guards = [user for user in users if user.op_type == "IsNaN"]
        ways = [user for user in users if user.op_type in (*_VIEWS, "Where", "Mul", "Dropout") or operator_of(user) in PRODUCTS]
        if len(ways) != 1 or len(guards) + 1 < len(users):
            return None
        scores.nodes.extend(guards)
        node = ways[0]
        if operator_of(node) in PRODUCTS:
            return node if len(node.inputs) == 2 and node.inputs[0] is value else None
        scores.nodes.append(node)
        value = node.outputs[0]
    return None


def _unscaled(value: ir.Value, view: View, nodes: list[ir.Node]) -> tuple[ir.Value, float]:
    """A value before multiplications by one number and a transposition of its last axes, and the product of these numbers."""
    factor = 1.0
    while (node := view.producer(value, "Mul", "Div", "Transpose", "Reshape")) is not None:
        if node.op_type == "Reshape":
            inner = _swapped_flat(node, view, nodes)
        elif node.op_type == "Transpose":
            perm: tuple[int, ...] = attribute(node, "perm", ())
            inner = node.inputs[0] if perm[-2:] == (len(perm) - 1, len(perm) - 2) else None
        else:
            places = (1,) if node.op_type == "Div" else (1, 0)
            place = next((index for index in places if view.scalar(node.inputs[index])), None)
            number = None if place is None else view.scalar(node.inputs[place])
            inner = None if place is None else node.inputs[1 - place]
            if number is not None and inner is not None:
                factor *= number if node.op_type == "Mul" else 1 / number
        if inner is None:
            break
        nodes.append(node)
        value = inner
    return value, factor


def _swapped_flat(last: ir.Node, view: View, nodes: list[ir.Node]) -> ir.Value | None:
    """What Reshape(Transpose(Reshape(x))) swaps the last axes of, where the other axes are one for the time of it; else None."""
    swap = view.producer(last.inputs[0], "Transpose")
    first = None if swap is None else view.producer(swap.inputs[0], "Reshape")
    inner = None if first is None else first.inputs[0]
    before, after = view.shape(inner), view.shape(last.outputs[0])
    if (
        swap is None
        or first is None
        or before is None
        or after is None
        or len(before) < 3
        or tuple(attribute(swap, "perm", ())) != (0, 2, 1)
    ):
        return None
    flat = view.shape(first.outputs[0])
    if flat is None or flat[1:] != before[-2:] or after != (*before[:-2], before[-1], before[-2]):
        return None
    nodes.extend((swap, first))
    return inner


def repeated_from(value: ir.Value, view: View, nodes: list[ir.Node] | None = None) -> ir.Value:
    """The value [batch, kv heads, length, size] whose heads a value [batch, heads, length, size] repeats; itself where there is none.

    Args:
        value: Reshape(Expand(Unsqueeze(x))), or the same with Tile.
        view: the model.
        nodes: takes up the operators in between.
    """
    merged = view.producer(value, "Reshape")
    spread = None if merged is None else view.producer(merged.inputs[0], "Expand", "Tile")
    opened = None if spread is None else view.producer(spread.inputs[0], "Unsqueeze", "Reshape")
    inner = None if opened is None else opened.inputs[0]
    if merged is None or spread is None or opened is None or inner is None:
        return value
    few, one, many, flat = (view.shape(v) for v in (inner, opened.outputs[0], spread.outputs[0], value))
    if few is None or one is None or many is None or flat is None or (len(few), len(one), len(many), len(flat)) != (4, 5, 5, 4):
        return value
    heads, group, repeated = few[1], many[2], flat[1]
    if not isinstance(heads, int) or not isinstance(group, int) or not isinstance(repeated, int):
        return value
    tail = few[2:]
    if one != (few[0], heads, 1, *tail) or many[1:] != (heads, group, *tail) or flat[1:] != (heads * group, *tail):
        return value
    if many[0] != few[0] or flat[0] != few[0]:
        return value
    if nodes is not None:
        nodes.extend((merged, spread, opened))
    return inner


def _kv_heads(value: ir.Value, key_shape: tuple[object, ...] | None, view: View) -> int | None:
    shape = view.shape(value)
    found = shape[-3] if shape is not None and len(shape) >= 4 else key_shape[-3] if key_shape is not None and len(key_shape) >= 4 else None
    return found if isinstance(found, int) else None


def _heads_of(query: ir.Value, softmax: ir.Node, kv_heads: int | None, view: View) -> tuple[ir.Value, int | None]:
    """The query before its heads were grouped or merged with the batch, and their number."""
    shape = view.shape(softmax.outputs[0]) or ()
    heads = shape[-3] if len(shape) >= 4 else None
    merged = view.producer(query, "Reshape")
    before = None if merged is None else merged.inputs[0]
    several = view.shape(before)
    if before is not None and several is not None and len(several) == 4 and isinstance(several[1], int):
        grouped = kv_heads is not None and several[1] % kv_heads == 0 and (not isinstance(heads, int) or several[1] >= heads)
        if grouped and several[-1] == (view.shape(query) or several)[-1]:
            return before, several[1]
    return query, heads if isinstance(heads, int) else None


def _cache(value: ir.Value, view: View) -> tuple[ir.Value, ir.Value] | None:
    """What a value appends to a graph input along its third axis, and itself."""
    node = view.producer(value, "Concat")
    if node is None or len(node.inputs) != 2 or attribute(node, "axis", 0) not in (2, -2):
        return None
    past = node.inputs[0]
    return (past, value) if past is not None and past.is_graph_input() else None


def _is_causal(mask: ir.Value, view: View) -> bool:
    where = view.producer(mask, "Where", "Expand")
    while where is not None and where.op_type == "Expand":
        where = view.producer(where.inputs[0], "Where", "Expand")
    return causal_offset(mask if where is None else where.inputs[0], view) is not None


def _fused(node: ir.Node, view: View) -> AttentionView | None:
    operator = operator_of(node)
    whole = operator in ("com.microsoft::Attention", "com.microsoft::QAttention")
    first = input_of(node, 0)
    query, key, value = (first, first, first) if whole else (first, input_of(node, 1) or first, input_of(node, 2) or first)
    if query is None or key is None or value is None:
        return None
    mask_at, past_at = {
        "Attention": ((3,), (4, 5)),
        "com.microsoft::Attention": ((3, 5), (4,)),
        "com.microsoft::QAttention": ((5,), (8,)),
        "com.microsoft::MultiHeadAttention": ((4, 5), (6, 7)),
        "com.microsoft::DecoderMaskedMultiHeadAttention": ((3, 4), (5, 6)),
        "com.microsoft::GroupQueryAttention": ((10,), (3, 4)),
    }[operator]
    masks = tuple(found for index in mask_at if (found := input_of(node, index)) is not None)
    past = tuple(found for index in past_at if (found := input_of(node, index)) is not None)
    heads = attribute(node, "q_num_heads", 0) or attribute(node, "num_heads", 0) or _axis_length(query, view)
    kv_heads = attribute(node, "kv_num_heads", 0) or (_axis_length(key, view) if operator == "Attention" else 0) or heads
    causal = bool(attribute(node, "is_causal", 0) or attribute(node, "unidirectional", 0)) or operator.endswith("GroupQueryAttention")
    present = tuple(output for output in node.outputs[1 : 1 + len(past_at)] if output.name)
    scale = float(attribute(node, "scale", 0.0))
    return AttentionView(
        anchor=node,
        query=query,
        key=key,
        value=value,
        scale=scale or None,
        masks=masks,
        heads=heads or None,
        kv_heads=kv_heads or None,
        is_causal=causal,
        output=node.outputs[0],
        nodes=(node,),
        past=past,
        present=present,
    )


def _axis_length(value: ir.Value, view: View) -> int:
    """The number of heads of a value [batch, heads, length, size]; 0 where it is not laid out so."""
    shape = view.shape(value)
    return shape[1] if shape is not None and len(shape) == 4 and isinstance(shape[1], int) else 0

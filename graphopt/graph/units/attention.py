"""Fused attention and rotary positions: whole heads go together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from graphopt.graph.units.step import Axes, Rule, Step, UnknownError
from graphopt.graph.units.ties import Axis
from graphopt.graph.view import attribute


def rotary(step: Step) -> Sequence[Axes]:
    """Positions turn pairs within a head: heads stay whole."""
    axes = list(step.axes())
    for index in range(1, len(step.node.inputs)):
        if step.has(index):
            step.pin(*step.axes(index))
    if len(axes) == 4:
        step.pin(axes[-1])
        return [axes]
    heads = attribute(step.node, "num_heads", 0)
    if not heads:
        raise UnknownError
    return [[*axes[:-1], _spread(_heads(step, axes[-1], heads), axes[-1], heads)]]


def attention(step: Step) -> Sequence[Axes]:
    """Native Attention: queries, keys and values as ``[batch, heads, length, width]`` or ``[batch, length, heads * width]``."""
    rest = [step.axes(index) for index in range(3, len(step.node.inputs)) if step.has(index)]
    for axes in rest:
        step.pin(*axes)
    if len(step.axes(0)) == 4:
        query, key, value = (step.axes(index) for index in range(3))
        step.tie(query[3], key[3])
        heads = _grouped(step, query[1], key[1], value[1])
        made: Axes = [query[0], heads, query[2], value[3]]
        if rest:  # a mask may have a length for each head
            step.pin(heads)
        return _outputs(step, made)
    queries, keys = (attribute(step.node, name, 0) for name in ("q_num_heads", "kv_num_heads"))
    return _outputs(step, _flat(step, queries, keys))


def multi_head(step: Step) -> Sequence[Axes]:
    """com.microsoft attention over separate ``[batch, length, heads * width]``."""
    for index in range(3, len(step.node.inputs)):
        if step.has(index):
            step.pin(*step.axes(index))
    if any(not step.has(index) or len(step.axes(index)) != 3 for index in range(3)):
        raise UnknownError
    queries = attribute(step.node, "num_heads", 0)
    return _outputs(step, _flat(step, queries, attribute(step.node, "kv_num_heads", queries)))


def packed(step: Step) -> Sequence[Axes]:
    """com.microsoft::Attention: one weight makes queries, keys and values, one section after the other."""
    heads = attribute(step.node, "num_heads", 0)
    for index in range(3, len(step.node.inputs)):
        if step.has(index):
            step.pin(*step.axes(index))
    source, weight = step.axes(0), step.axes(1)
    step.tie(source[-1], weight[0])
    made = step.tie(weight[1], step.axes(2)[0]) if step.has(2) else weight[1]
    if made is None or not heads or attribute(step.node, "qkv_hidden_sizes", ()):
        raise UnknownError
    sections = made.reshape(3, heads, -1)
    step.ties.tie_rows(np.moveaxis(sections, 1, 0).reshape(heads, -1))
    return _outputs(step, [source[0], source[1], sections[2].reshape(-1)])


def _flat(step: Step, queries: int, keys: int) -> Axes:
    query, key, value = (step.axes(index) for index in range(3))
    if not queries or not keys:
        raise UnknownError
    by_head = [_heads(step, axes[-1], count) for axes, count in ((query, queries), (key, keys), (value, keys))]
    merged = _grouped(step, *by_head)
    if merged is None or value[-1] is None:
        step.pin(query[-1], key[-1], value[-1])
        return [query[0], query[1], None]
    return [query[0], query[1], np.repeat(merged, value[-1].size // keys)]


def _grouped(step: Step, query: Axis, key: Axis, value: Axis) -> Axis:
    """Heads: those of queries go with the head of keys and values that they share."""
    step.tie(key, value)
    if query is not None and key is not None and query.size != key.size:
        step.tie(query.reshape(key.size, -1), key[:, None])
        return query
    return step.tie(query, key)


def _heads(step: Step, axis: Axis, count: int) -> Axis:
    return None if axis is None else step.ties.tie_rows(axis.reshape(count, -1))


def _spread(heads: Axis, axis: Axis, count: int) -> Axis:
    return None if heads is None or axis is None else np.repeat(heads, axis.size // count)


def _outputs(step: Step, made: Axes) -> Sequence[Axes]:
    """What was made; caches that go out keep all heads."""
    others = [value for value in step.node.outputs[1:] if value.name]
    if others:
        for index in range(min(3, len(step.node.inputs))):
            if step.has(index):
                step.pin(*step.axes(index)[1:])
    return [made, *([None] * len(step.length_of(value)) for value in others)]


ATTENTION: Mapping[str, Rule] = {
    "Attention": attention,
    "RotaryEmbedding": rotary,
    "com.microsoft::RotaryEmbedding": rotary,
    "com.microsoft::MultiHeadAttention": multi_head,
    "com.microsoft::GroupQueryAttention": multi_head,
    "com.microsoft::Attention": packed,
}
"""Rules by operator."""

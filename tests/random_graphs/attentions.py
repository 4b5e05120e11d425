"""Attention as exporters write it: the patterns of the pass ``attention`` but for rotations, and near misses of them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from tests.random_graphs.grower import Grower
from tests.random_graphs.masks import hiding, masked
from tests.random_graphs.operators import Step
from tests.random_graphs.values import Shape, Size, Value, fixed, is_static, replaced


@dataclass(frozen=True)
class _Lengths:
    """Lengths of an attention.

    Attributes:
        batch, queries, keys, size: of the axes.
        heads: of the queries.
        groups: heads of keys and values, of which each serves as many heads of queries.
    """

    batch: Size
    heads: int
    groups: int
    queries: Size
    keys: Size
    size: int


def _lengths(g: Grower) -> _Lengths:
    queries = g.choices.one_of([(5, 4), (3, 3), (1, 7), (1, 1)])
    keys = queries if g.choices.chance(40) else g.choices.one_of([(1, 7), (5, 4), (6, 6)])
    heads, groups = g.choices.one_of([(4, 2), (4, 4), (2, 1), (6, 2)])
    return _Lengths(g.choices.one_of([(2, 3), (2, 2), (1, 1)]), heads, groups, queries, keys, g.choices.one_of([4, 8]))


def decomposed(g: Grower) -> None:
    """softmax(scale * q kᵀ + mask) v with factors in all places, a guard against hidden rows, and heads that share keys."""
    n = _lengths(g)
    query, (key, value) = _input(g, n, n.heads, n.queries), (_input(g, n, n.groups, n.keys) for _ in range(2))
    turned_first = g.choices.chance(30)
    key = _turned(g, key, n) if turned_first else key
    key, value = (_repeated(g, each, n) if n.groups < n.heads else each for each in (key, value))
    key = key if turned_first else _turned(g, key, n)
    if g.choices.chance(60):
        query = _scaled(g, query)
    if g.choices.chance(50):
        key = _scaled(g, key)
    shape = (n.batch, (n.heads, n.heads), n.queries, n.keys)
    scores = g.op("MatMul", [query, key], shape, bound=100.0)
    scores = _scaled(g, scores) if g.choices.chance(40) else scores
    scores = masked(g, g.tamed(scores, 40.0) if g.choices.chance(30) else scores)
    if g.choices.chance(5):
        scores = _scaled(g, scores)
    chosen = _probabilities(g, scores)
    result = g.op("MatMul", [chosen, value], (*shape[:3], fixed(n.size)[0]), bound=4.0)
    if g.choices.chance(50):
        back = g.op("Transpose", [result], (n.batch, n.queries, shape[1], result.shape[3]), perm=[0, 2, 1, 3])
        g.op("Reshape", [back, g.integers([0, 0, n.heads * n.size])], (*back.shape[:2], (n.heads * n.size,) * 2))


def _input(g: Grower, n: _Lengths, heads: int, length: Size) -> Value:
    shape = (n.batch, (heads, heads), length, (n.size, n.size))
    if g.choices.chance(25):
        flat = g.tamed(g.fresh(3, shape=(n.batch, length, (heads * n.size,) * 2)), 4.0)
        parts = g.op("Reshape", [flat, g.integers([0, 0, heads, n.size])], (n.batch, length, (heads, heads), (n.size, n.size)))
        return g.op("Transpose", [parts], shape, perm=[0, 2, 1, 3])
    return g.fresh(4, shape=shape)


def _turned(g: Grower, key: Value, n: _Lengths) -> Value:
    """The last two axes of keys swapped; as matrices in one batch at times."""
    batch, heads, length, size = key.shape
    shape = (batch, heads, size, length)
    if g.choices.chance(25):
        many = (batch[0] * heads[0], batch[1] * heads[1])
        flat = g.op("Reshape", [key, _target(g, key, [-1, None, n.size])], (many, length, size))
        swapped = g.op("Transpose", [flat], (many, size, length), perm=[0, 2, 1])
        if is_static(length):
            return g.op("Reshape", [swapped, g.integers([-1, heads[0], n.size, length[0]])], shape)
        if is_static(batch):
            return g.op("Reshape", [swapped, g.integers([batch[0], heads[0], n.size, -1])], shape)
    return g.op("Transpose", [key], shape, perm=[0, 1, 3, 2])


def _target(g: Grower, value: Value, lengths: list[int | None]) -> Value:
    """A target of a Reshape in which None stands for the length of the value's last axis but one, read at run time."""
    at = value.rank - 2
    parts: list[Value] = []
    for length in lengths:
        known = value.shape[at][0] if length is None and is_static(value.shape[at]) else length
        parts.append(_length(g, value, at) if known is None else g.integers([known]))
    return g.op("Concat", parts, fixed(len(parts)), "int64", axis=0)


def _length(g: Grower, value: Value, axis: int) -> Value:
    """The length of an axis as a vector of one number."""
    whole = g.op("Shape", [value], fixed(value.rank), "int64")
    if g.choices.chance(50):
        number = g.op("Gather", [whole, g.integer(axis)], (), axis=0)
        return g.with_axes("Unsqueeze", number, [0], fixed(1), 13)
    return g.op("Slice", [whole, g.integers([axis]), g.integers([axis + 1]), g.integers([0])], fixed(1))


def _repeated(g: Grower, value: Value, n: _Lengths) -> Value:
    """Each head several times, one after the other; or all heads one after the other, which is another order."""
    count = n.heads // n.groups
    batch, groups, *rest = value.shape
    place = 2 if g.choices.chance(92) else 1
    opened_shape: Shape = (batch, (1, 1), groups, *rest) if place == 1 else (batch, groups, (1, 1), *rest)
    opened = g.with_axes("Unsqueeze", value, [place], opened_shape, 13)
    spread_shape = replaced(opened_shape, place, (count, count))
    kind = g.choices.one_of(["ones", "Tile", "computed"])
    if kind == "ones":
        spread = g.op("Expand", [opened, g.integers([count if axis == place else 1 for axis in range(5)])], spread_shape)
    elif kind == "Tile":
        spread = g.op("Tile", [opened, g.integers([count if axis == place else 1 for axis in range(5)])], spread_shape)
    else:
        parts = [
            g.integers([size[0]]) if is_static(size) else _length(g, value, 0 if axis == 0 else axis - 1)
            for axis, size in enumerate(spread_shape)
        ]
        spread = g.op("Expand", [opened, g.op("Concat", parts, fixed(5), "int64", axis=0)], spread_shape)
    merged = (batch, (n.heads, n.heads), *rest)
    if sum(not is_static(size) for size in rest) == 0 or g.choices.chance(50):
        tail = [size[0] if is_static(size) else -1 for size in rest]
        return g.op("Reshape", [spread, g.integers([0, n.heads, *tail])], merged)
    parts = [g.integers([size[0]]) if is_static(size) else _length(g, value, axis) for axis, size in enumerate(merged)]
    return g.op("Reshape", [spread, g.op("Concat", parts, fixed(4), "int64", axis=0)], merged)


def _scaled(g: Grower, value: Value) -> Value:
    factor = g.number(g.choices.one_of([0.5, 0.35, 2.0]), value, rank=g.choices.one_of([0, 0, 1]))
    if g.choices.chance(30):
        return g.op("Div", [value, factor], value.shape, bound=3 * value.bound)
    return g.op("Mul", g.choices.shuffled([value, factor]), value.shape, bound=2 * value.bound)


def _probabilities(g: Grower, scores: Value) -> Value:
    """A Softmax, with zeros for rows that are hidden whole at times."""
    axis = g.choices.one_of([-1, -1, 3, 3, 2 if g.choices.chance(20) else -1])
    shares = g.op("Softmax", [scores], scores.shape, bound=1.0, axis=axis)
    if g.choices.chance(40):
        return shares
    missing = g.op("IsNaN", [shares], shares.shape, "bool")
    other = g.number(g.choices.one_of([0] * 12 + [1]), shares, rank=g.choices.one_of([0, 0, 0, 1]))
    return g.op("Where", [missing, other, shares], shares.shape, shares.dtype)


def layers(g: Grower) -> None:
    """Several attentions with one mask that may hide whole rows."""
    length = g.choices.one_of([(5, 4), (3, 3)])
    batch = (2, 3)
    x, keys = (g.fresh(4, shape=(batch, (2, 2), length, (4, 4))) for _ in range(2))
    mask = hiding(g, (batch, (1, 1), length, length), x)
    turned = g.op("Transpose", [keys], (batch, (2, 2), (4, 4), length), perm=[0, 1, 3, 2])
    for _ in range(g.choices.one_of([4, 5, 4, 3])):
        scores = g.op("MatMul", [x, turned], (batch, (2, 2), length, length), bound=60.0)
        summed = g.op("Add", g.choices.shuffled([scores, mask]), scores.shape, bound=math.inf)
        shares = g.op("Softmax", [summed], scores.shape, bound=1.0, axis=-1)
        missing = g.op("IsNaN", [shares], shares.shape, "bool")
        kept = g.op("Where", [missing, g.number(0, x), shares], shares.shape, x.dtype)
        x = g.op("MatMul", [kept, keys], x.shape, bound=4.0)


def side_by_side(g: Grower) -> None:
    """Heads that are split right before an attention and joined right after, of few keys or of very many, masked or not."""
    heads, size = g.choices.one_of([(2, 4), (1, 8), (3, 4)])
    many = g.choices.chance(25)
    batch = g.choices.one_of([(2, 3), (2, 2), (2, 2)])
    queries = g.choices.one_of([(3, 3), (3, 3), (5, 4)])
    keys = (1024, 1024) if many else g.choices.one_of([(3, 3), (6, 6), (5, 4)])
    split = g.integers([0, 0, g.choices.one_of([-1, heads]), size])
    parts = []
    for length, order in ((queries, (0, 2, 1, 3)), (keys, g.choices.one_of([(0, 2, 3, 1), (0, 2, 1, 3)])), (keys, (0, 2, 1, 3))):
        flat = g.tamed(g.fresh(3, shape=(batch, length, (heads * size,) * 2)), 4.0)
        shape = (batch, length, (heads,) * 2, (size, size))
        opened = g.op("Reshape", [flat, split], shape)
        parts.append(g.op("Transpose", [opened], tuple(shape[axis] for axis in order), perm=list(order)))
    query, key, value = parts
    if key.shape[-1] == (size, size):
        key = g.op("Transpose", [key], (*key.shape[:2], key.shape[3], key.shape[2]), perm=[0, 1, 3, 2])
    shape = (batch, (heads,) * 2, queries, keys)
    scores = _scaled(g, g.op("MatMul", [query, key], shape, bound=100.0))
    scores = scores if many or g.choices.chance(50) else masked(g, scores)
    result = g.op("MatMul", [_probabilities(g, scores), value], (*shape[:3], (size, size)), bound=4.0)
    back = g.op("Transpose", [result], (batch, queries, shape[1], (size, size)), perm=[0, 2, 1, 3])
    joined = (*back.shape[:2], (heads * size,) * 2)
    g.op("Reshape", [back, g.integers([0, 0, g.choices.one_of([-1, heads * size])])], joined)


def whole(g: Grower) -> None:
    """The standard operator, or ONNX Runtime's own, with a constant mask that hides nothing or something."""
    if g.opset < 23 and g.model.kind != "float32":
        return
    n = _lengths(g)
    heads = n.groups if g.choices.chance(50) else n.heads
    queries, keys = 3, g.choices.one_of([3, 5])
    standard = g.opset >= 23
    shown = g.choices.chance(80)
    lengths = [g.choices.one_of([1, queries]), keys if g.choices.chance(90) else keys - 1]
    lengths = [*g.choices.one_of([[1, 1], [1], []]), *lengths]
    if standard and g.choices.chance(50):
        mask = g.constant(np.ones(lengths, bool) if shown else g.model.numbers.random(lengths) < 0.8)
    else:
        lengths = lengths if standard else [1, 1, queries, keys]
        mask = g.constant(np.zeros(lengths, g.model.kind)) if shown else g.weights(*lengths)
    if standard:
        query = g.fresh(4, shape=(n.batch, (n.heads, n.heads), *fixed(queries, n.size)))
        key, value = (g.fresh(4, shape=(n.batch, (heads, heads), *fixed(keys, n.size))) for _ in range(2))
        g.op("Attention", [query, key, value, mask], query.shape, scale=g.choices.one_of([None, 0.5]))
        return
    query = g.fresh(3, shape=(n.batch, *fixed(queries, n.heads * n.size)))
    key, value = (g.fresh(3, shape=(n.batch, *fixed(keys, n.heads * n.size))) for _ in range(2))
    inputs = [query, key, value, None, None, mask]
    g.op("MultiHeadAttention", inputs, query.shape, domain="com.microsoft", num_heads=n.heads, scale=g.choices.one_of([None, 0.5]))


STEPS_OF_ATTENTIONS: tuple[Step, ...] = (decomposed, whole, layers, side_by_side, decomposed, decomposed, side_by_side, decomposed)
"""All of them."""

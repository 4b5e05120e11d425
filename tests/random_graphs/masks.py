"""Masks of attention scores: of what they are made, and what of a row they may hide."""

from __future__ import annotations

import math

import numpy as np

from tests.random_graphs.grower import Grower
from tests.random_graphs.values import Shape, Size, Value, fixed, is_static

_ENDLESS = math.inf
"""The bound of what is masked: whoever else takes it must tame it."""


def masked(g: Grower, scores: Value) -> Value:
    """Scores [batch, heads, queries, keys] with no mask, one or two; added, or chosen by a condition."""
    kind = g.choices.one_of(["none", "finite", "causal", "hiding", "given", "constant", "chosen", "two", "causal", "finite", "none"])
    if kind == "none":
        return scores
    batch, _, queries, keys = scores.shape
    if kind == "chosen":
        condition = g.fresh(4, "bool", (batch, (1, 1), queries, keys))
        return g.op("Where", [condition, scores, g.number(_lowest(g), scores)], scores.shape, scores.dtype, _ENDLESS)
    mask = _mask(g, kind, scores)
    result = g.op("Add", g.choices.shuffled([scores, mask]), scores.shape, bound=_ENDLESS)
    return g.op("Add", [result, _mask(g, "given", scores)], scores.shape, bound=_ENDLESS) if kind == "two" else result


def _mask(g: Grower, kind: str, scores: Value) -> Value:
    batch, _, queries, keys = scores.shape
    shape = g.choices.one_of([(batch, (1, 1), queries, keys), (batch, (1, 1), (1, 1), keys)])
    if kind == "given":
        return g.fresh(4, shape=shape)
    if kind == "hiding":
        return hiding(g, shape, scores)
    if kind == "causal":
        choices = [_causal(g, scores), g.number(0, scores), g.number(_lowest(g), scores)]
        return g.op("Where", choices, scores.shape[2:], scores.dtype, _ENDLESS)
    if kind == "constant" and is_static(queries) and is_static(keys):
        hidden = np.where(g.model.numbers.random((queries[0], keys[0])) < 0.3, -np.inf, 0)
        return g.constant(hidden.astype(scores.dtype), bound=_ENDLESS)
    condition = g.fresh(4, "bool", shape)
    if g.choices.chance(40):
        numbers = g.op("Cast", [condition], shape, scores.dtype, bound=1.0, to=_code(scores.dtype))
        share = g.op("Sub", [g.number(1, scores), numbers], shape)
        return g.op("Mul", [share, g.number(_finite(g), scores)], shape, bound=_ENDLESS)
    return g.op("Where", [condition, g.number(0, scores), g.number(_finite(g), scores)], shape, scores.dtype, _ENDLESS)


def hiding(g: Grower, shape: Shape, like: Value) -> Value:
    """A mask of zeros and of minus infinity, as some input says."""
    condition = g.fresh(4, "bool", shape)
    return g.op("Where", [condition, g.number(0, like), g.number(-np.inf, like)], shape, like.dtype, _ENDLESS)


def _finite(g: Grower) -> float:
    return {"float16": -6e4, "float32": -3e38, "float64": -1e300}[g.model.kind] if g.choices.chance(70) else -3e4


def _lowest(g: Grower) -> float:
    return -np.inf if g.choices.chance(60) else _finite(g)


def _code(dtype: str) -> int:
    return {"float32": 1, "float16": 10, "float64": 11}[dtype]


def _causal(g: Grower, scores: Value) -> Value:
    """Whether a key's position is not behind a query's, both counted from zero; or it is so, or is before it."""
    queries, keys = (_positions(g, scores, axis) for axis in (2, 3))
    shape = (scores.shape[2], scores.shape[3])
    rows = g.with_axes("Unsqueeze", queries, [1], (shape[0], (1, 1)), 13)
    columns = g.with_axes("Unsqueeze", keys, [0], ((1, 1), shape[1]), 13)
    names = ["LessOrEqual", "GreaterOrEqual"] if g.opset >= 12 else ["Less", "Greater"]
    kind = g.choices.one_of([*names, "Not", names[0], "wrong"])
    if kind == names[0]:
        return g.op(kind, [columns, rows], shape, "bool")
    if kind == names[1]:
        return g.op(kind, [rows, columns], shape, "bool")
    if kind == "Not":
        return g.op("Not", [g.op("Greater", [columns, rows], shape, "bool")], shape, "bool")
    return g.op("Less", [columns, rows], shape, "bool")


def _positions(g: Grower, scores: Value, axis: int) -> Value:
    """0, 1, 2, … as many as an axis is long; from another number at times."""
    size: Size = scores.shape[axis]
    if is_static(size) and g.choices.chance(60):
        return g.constant(np.arange(size[0]))
    whole = g.op("Shape", [scores], fixed(4), "int64")
    length = g.op("Gather", [whole, g.integer(axis)], (), axis=0)
    counted = g.op("Range", [g.integer(0), length, g.integer(1)], (size,), "int64")
    return g.op("Add", [counted, g.integer(1)], (size,)) if g.choices.chance(8) else counted

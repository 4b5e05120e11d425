"""Rotary position embeddings as exporters write them, and near misses of them."""

from __future__ import annotations

import numpy as np

from tests.random_graphs.grower import Grower
from tests.random_graphs.operators import Step
from tests.random_graphs.values import Size, Value, fixed, is_static

_ENDLESS = np.iinfo(np.int64).max


def rotation(g: Grower) -> None:
    """x * cos + concat(-x2, x1) * sin, of queries and at times of keys by the same tables."""
    batch, positions = g.choices.one_of([(2, 3), (2, 2), (1, 1)]), g.choices.one_of([(5, 4), (3, 3), (1, 7), (1, 1)])
    heads, half = g.choices.one_of([2, 1, 4]), g.choices.one_of([2, 4, 3])
    x = g.fresh(4, shape=(batch, (heads, heads), positions, (2 * half,) * 2))
    cosine, sine = _tables(g, x, half)
    _turned(g, x, cosine, sine, half)
    if g.choices.chance(40):
        _turned(g, g.fresh(4, shape=x.shape), cosine, sine, half)


def _turned(g: Grower, x: Value, cosine: Value, sine: Value, half: int) -> Value:
    low, high = _halves(g, x, half)
    negated = g.op("Neg", [high], high.shape)
    swapped = g.op("Concat", [negated, low], x.shape, axis=g.choices.one_of([-1, 3]))
    plain = x if g.choices.chance(96) else g.op("Tanh", [x], x.shape)
    parts = [g.op("Mul", g.choices.shuffled([a, b]), x.shape, bound=4.0) for a, b in ((plain, cosine), (swapped, sine))]
    return g.op("Add", g.choices.shuffled(parts), x.shape, bound=8.0)


def _halves(g: Grower, x: Value, half: int) -> tuple[Value, Value]:
    """The halves of the last axis, or a cut at another place."""
    cut = half if g.choices.chance(94) else half - 1
    shapes = [(*x.shape[:3], (n, n)) for n in (cut, 2 * half - cut)]
    axis = g.choices.one_of([-1, 3])
    if g.choices.chance(50):
        ends = [[0, cut], [cut, g.choices.one_of([_ENDLESS, 2 * half])]]
        parts = [
            g.op("Slice", [x, g.integers([start]), g.integers([end]), g.integers([axis])], shape)
            for (start, end), shape in zip(ends, shapes, strict=True)
        ]
        return parts[0], parts[1]
    results = [g.result(shape, x.dtype, x.bound) for shape in shapes]
    if g.opset < 13:
        g.ops("Split", [x], results, axis=axis, split=[cut, 2 * half - cut])
    elif g.opset >= 18 and cut == half and g.choices.chance(50):
        g.ops("Split", [x], results, axis=axis, num_outputs=2)
    else:
        g.ops("Split", [x, g.integers([cut, 2 * half - cut])], results, axis=axis)
    return results[0], results[1]


def _tables(g: Grower, x: Value, half: int) -> tuple[Value, Value]:
    """Cosines and sines for each position, of rank 2, 3 or 4."""
    positions = x.shape[2]
    if is_static(positions) and g.choices.chance(30):
        angles = np.outer(np.arange(positions[0]), 0.5 ** np.arange(half))
        twice = np.concatenate([angles, angles if g.choices.chance(90) else -angles], axis=-1)
        lead = (1,) * g.choices.integer(0, 2)
        tables = [g.constant(f(twice).reshape(*lead, *twice.shape).astype(x.dtype)) for f in (np.cos, np.sin)]
        return tables[0], tables[1]
    angles_value = _angles(g, x, half)
    other = angles_value if g.choices.chance(94) else g.op("Neg", [angles_value], angles_value.shape)
    wide = (*angles_value.shape[:-1], (2 * half,) * 2)
    joined = g.op("Concat", [angles_value, other], wide, axis=-1 if g.choices.chance(60) else len(wide) - 1)
    made = [_table(g, name, joined) for name in ("Cos", "Sin")]
    return made[0], made[1]


def _table(g: Grower, name: str, joined: Value) -> Value:
    value = g.op(name, [joined], joined.shape, bound=1.0)
    if g.choices.chance(30):
        value = g.op("Mul", g.choices.shuffled([value, g.number(1.25, value)]), value.shape, bound=1.3)
    if value.rank == 3:
        batch, positions, size = value.shape
        value = g.with_axes("Unsqueeze", value, [1], (batch, (1, 1), positions, size), 13)
    return value


def _angles(g: Grower, x: Value, half: int) -> Value:
    """Positions times frequencies: [positions, size / 2] or [batch or 1, positions, size / 2]."""
    batch, positions = x.shape[0], x.shape[2]
    frequencies = 0.5 ** np.arange(half)
    if g.choices.chance(50):
        counted = _counted(g, x, positions)
        if g.choices.chance(40):
            column = _cast(g, g.with_axes("Unsqueeze", counted, [1], (positions, (1, 1)), 13), x.dtype)
            return g.op("Mul", [column, g.constant(frequencies.astype(x.dtype))], (positions, (half, half)), bound=8.0)
        given, batch = g.with_axes("Unsqueeze", counted, [0], ((1, 1), positions), 13), (1, 1)
    else:
        batch = batch if g.choices.chance(80) else (1, 1)
        given = g.fresh(2, "int64", (batch, positions))
    if g.choices.chance(50):
        column = _cast(g, g.with_axes("Unsqueeze", given, [2], (batch, positions, (1, 1)), 13), x.dtype)
        return g.op("Mul", [column, g.constant(frequencies.astype(x.dtype))], (batch, positions, (half, half)), bound=8.0)
    row = _cast(g, g.with_axes("Unsqueeze", given, [1], (batch, (1, 1), positions), 13), x.dtype)
    factors = g.constant(frequencies.reshape(1, half, 1).astype(x.dtype))
    product = g.op("MatMul", [factors, row], (batch, (half, half), positions), bound=8.0)
    return g.op("Transpose", [product], (batch, positions, (half, half)), perm=[0, 2, 1])


def _counted(g: Grower, x: Value, size: Size) -> Value:
    whole = g.op("Shape", [x], fixed(4), "int64")
    length = g.op("Gather", [whole, g.integer(2)], (), axis=0)
    return g.op("Range", [g.integer(0), length, g.integer(1)], (size,), "int64")


def _cast(g: Grower, value: Value, dtype: str) -> Value:
    return g.op("Cast", [value], value.shape, dtype, bound=8.0, to={"float32": 1, "float16": 10, "float64": 11}[dtype])


STEPS_OF_ROTATIONS: tuple[Step, ...] = (rotation,)
"""All of them."""

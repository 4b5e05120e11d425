"""Views and pieces: Reshape, Transpose, Slice, Split, Pad, Expand, and the patterns that rules make simpler in them."""

from __future__ import annotations

import numpy as np

from tests.random_graphs.grower import Grower
from tests.random_graphs.networks import image
from tests.random_graphs.operators import Step, some_axes
from tests.random_graphs.values import Shape, Size, Value, each, fixed, is_static, product, replaced

_ENDLESS = np.iinfo(np.int64).max


def reshaped(g: Grower, value: Value, target: list[int], shape: Shape) -> Value:
    """A Reshape to a constant target."""
    return g.exactly("Reshape", value, g.integers(target), shape=shape)


def merged_axes(g: Grower, value: Value) -> Value:
    """Two neighbouring axes as one, by Reshape or Flatten."""
    axis = g.choices.integer(0, value.rank - 2)
    shape = (*value.shape[:axis], product(value.shape[axis : axis + 2]), *value.shape[axis + 2 :])
    if axis and value.rank == axis + 2 == 3 and g.choices.chance(30):
        flat = (product(value.shape[:1]), product(value.shape[1:]))
        return g.exactly("Flatten", value, shape=flat, axis=1)
    tail = [size[0] if is_static(size) else None for size in shape[axis + 1 :]]
    if None in tail:
        return value
    return reshaped(g, value, [*[0] * axis, -1, *[n for n in tail if n is not None]], shape)


def divided_axis(g: Grower, value: Value) -> Value:
    """A static even axis as two."""
    axes = [axis for axis in g.static_axes(value) if value.shape[axis][0] in (4, 6, 8, 12, 24)]
    tail = value.shape[axes[0] + 1 :] if axes else ()
    if not axes or not all(map(is_static, tail)):
        return value
    axis, half = axes[0], value.shape[axes[0]][0] // 2
    parts = g.choices.one_of([(2, half), (half, 2)])
    target = [*[0] * axis, *parts, *(size[0] for size in tail)]
    return reshaped(g, value, target, (*value.shape[:axis], *fixed(*parts), *tail))


def squeezed(g: Grower, value: Value) -> Value:
    """Without its axes of length one, or with one more."""
    ones = [axis for axis, size in enumerate(value.shape) if size == (1, 1)]
    if ones and g.choices.chance(60):
        shape = tuple(size for axis, size in enumerate(value.shape) if axis not in ones)
        result = g.with_axes("Squeeze", value, ones, shape, 13)
    else:
        axis = g.choices.integer(0, value.rank)
        result = g.with_axes("Unsqueeze", value, [axis], (*value.shape[:axis], (1, 1), *value.shape[axis:]), 13)
    return _exact_like(g, result, value)


def some_order(g: Grower, dtype: str, rank: int) -> list[int]:
    """Axes in some order; in half precision the first one stays.

    The runtime fuses a Transpose that moves it into a MatMul with a constant, and dies while it loads that.
    """
    if dtype == "float16" and rank:
        return [0, *g.choices.shuffled(range(1, rank))]
    return g.choices.shuffled(range(rank))


def transposed(g: Grower, value: Value, perm: list[int] | None = None) -> Value:
    """Axes in another order; without a perm at times where all are reversed."""
    perm = some_order(g, value.dtype, value.rank) if perm is None else perm
    written = None if not perm or (perm == list(range(value.rank))[::-1] and g.choices.chance(50)) else perm
    return g.exactly("Transpose", value, shape=tuple(value.shape[axis] for axis in perm), perm=written)


def _exact_like(g: Grower, result: Value, value: Value) -> Value:
    kept = Value(result.name, result.dtype, result.shape, value.bound, value.exact)
    g.pool[g.pool.index(result)] = kept
    return kept


def view_chain(g: Grower) -> None:
    """Several views one after the other."""
    value = g.float_value(1, 4)
    for _ in range(g.choices.integer(2, 4)):
        kinds = [transposed, squeezed, divided_axis, *([merged_axes] if value.rank > 1 else [])]
        found = g.choices.one_of(kinds)(g, value)
        value = found if found.rank < 6 else value


def same_view(g: Grower) -> None:
    """A view that changes nothing."""
    value = g.float_value(1, 4)
    if g.choices.chance(50):
        transposed(g, value, list(range(value.rank)))
        return
    dynamic = [axis for axis, size in enumerate(value.shape) if not is_static(size)]
    target = [size[0] if is_static(size) else 0 for size in value.shape]
    if len(dynamic) == 1 and g.choices.chance(50):
        target[dynamic[0]] = -1
    reshaped(g, value, target, value.shape)


def there_and_back(g: Grower) -> None:
    """A Transpose, Reshape or Unsqueeze, elementwise operators, and the way back."""
    value = g.float_value(0, 4)
    kind = g.choices.integer(0, 2) if value.rank > 1 else 2
    perm = some_order(g, value.dtype, value.rank)
    if kind == 0:
        inside = transposed(g, value, perm)
    elif kind == 1:
        inside = merged_axes(g, value)
    else:
        axis = min(value.rank, 1)
        inside = _exact_like(g, g.with_axes("Unsqueeze", value, [axis], (*value.shape[:axis], (1, 1), *value.shape[axis:]), 13), value)
    for _ in range(g.choices.integer(0, 3)):
        inside = _elementwise(g, inside)
    if kind == 0:
        transposed(g, inside, [perm.index(axis) for axis in range(value.rank)])
    elif kind == 1 and sum(not is_static(size) for size in value.shape) <= 1:
        reshaped(g, inside, [size[0] if is_static(size) else -1 for size in value.shape], value.shape)
    elif kind == 2:
        _exact_like(g, g.with_axes("Squeeze", inside, [min(value.rank, 1)], value.shape, 13), inside)


def _elementwise(g: Grower, value: Value) -> Value:
    name = g.choices.one_of(["Relu", "Mul", "Tanh", "Add", "Clip", "Neg", "Max", "vector"])
    if name in ("Mul", "Add", "Max"):
        operands = [value, g.number(g.choices.one_of([2, 0.5, 1.5]), value, g.choices.integer(0, min(value.rank, 2)))]
        return g.op(name, g.choices.shuffled(operands), value.shape, bound=2 * value.bound + 2)
    if name == "Clip":
        return g.exactly(name, value, g.number(-1, value), g.number(2, value))
    if name == "vector" and value.rank and is_static(value.shape[-1]):
        return g.op("Add", [value, g.weights(value.shape[-1][0], dtype=value.dtype)], value.shape, bound=value.bound + 1)
    if name == "Tanh":
        return g.op(name, [value], value.shape, bound=1.0)
    return g.exactly("Relu" if name == "vector" else name, value)


def slices(g: Grower) -> None:
    """One or two Slices with constant bounds, some of which take everything."""
    value = g.float_value(1, 4)
    axes = g.choices.shuffled(range(value.rank)) if g.choices.chance(75) else [g.choices.integer(0, value.rank - 1)] * 3
    for axis in axes[: g.choices.integer(1, 3)]:
        value = _one_slice(g, value, axis)


def _one_slice(g: Grower, value: Value, axis: int) -> Value:
    size = value.shape[axis]
    written = axis - value.rank if g.choices.chance(40) else axis
    kind = g.choices.integer(0, 5)
    step = 1
    if kind == 0:
        start, end, length = 0, _ENDLESS, size
    elif kind == 1 and is_static(size):
        start, end, length = 0, size[0], size
    elif kind == 2 and min(size) >= 2:
        start, end, length = 1, _ENDLESS, each(lambda n: n - 1, size)
    elif kind == 3 and min(size) >= 2:
        start, end, length = 0, -1, each(lambda n: n - 1, size)
    elif kind == 4:
        start, end, step, length = -1, -_ENDLESS, -1, size
    else:
        start, end, length = 0, 2, each(lambda n: min(n, 2), size)
    bounds: list[Value | None] = [g.integers([start]), g.integers([end]), g.integers([written])]
    if step != 1 or g.choices.chance(30):
        bounds.append(g.integers([step]))
    return g.exactly("Slice", value, *bounds, shape=replaced(value.shape, axis, length))


def concats(g: Grower) -> None:
    """A Concat of Concats, of one value, or with an empty part."""
    value = g.float_value(1, 4)
    axis = g.choices.integer(0, value.rank - 1)
    other = g.op("Tanh", [value], value.shape, bound=1.0)
    kind = g.choices.integer(0, 2)
    if kind == 0:
        g.exactly("Concat", value, shape=value.shape, axis=axis)
    elif kind == 1:
        bounds = [g.integers([1]), g.integers([1]), g.integers([axis])]
        nothing = g.op("Slice", [value, *bounds], replaced(value.shape, axis, (0, 0)))
        g.op(
            "Concat",
            g.choices.shuffled([value, nothing, other]),
            replaced(value.shape, axis, each(lambda n: 2 * n, value.shape[axis])),
            axis=axis,
        )
    else:
        parts = g.op("Concat", [value, other], replaced(value.shape, axis, each(lambda n: 2 * n, value.shape[axis])), axis=axis)
        outer = axis if g.choices.chance(80) else 0
        if outer == axis:
            shape = replaced(value.shape, axis, each(lambda n: 3 * n, value.shape[axis]))
            g.op("Concat", [*g.choices.shuffled([parts, value])], shape, axis=outer - value.rank)
        else:
            g.op("Concat", [parts, parts], replaced(parts.shape, 0, each(lambda n: 2 * n, parts.shape[0])), axis=0)


def splits(g: Grower) -> None:
    """A Split, and at times a Concat of its parts in order or out of order."""
    value = g.float_value(1, 4)
    axes = [axis for axis in g.static_axes(value) if value.shape[axis][0] > 1]
    if not axes:
        return
    axis = g.choices.one_of(axes)
    length = value.shape[axis][0]
    sizes = g.choices.one_of([[length], [1, length - 1], [length - 1, 1], [length // 2, length - length // 2]])
    results = [g.result(replaced(value.shape, axis, (n, n)), value.dtype, value.bound, value.exact) for n in sizes]
    if g.opset < 13:
        g.ops("Split", [value], results, axis=axis, split=sizes)
    else:
        g.ops("Split", [value, g.integers(sizes)], results, axis=axis)
    if g.choices.chance(60):
        parts = g.choices.shuffled(results) if g.choices.chance(30) else results
        g.exactly("Concat", parts[0], *parts[1:], shape=value.shape, axis=axis - value.rank if g.choices.chance(50) else axis)


def pads(g: Grower) -> None:
    """A Pad of nothing or something, in each mode; from opset 18 on by axes at times."""
    value = g.float_value(1, 4)
    axes = some_axes(g, value.rank)
    widths = {axis: (g.choices.integer(0, 1), g.choices.integer(0, 2)) for axis in axes}
    if g.choices.chance(55):
        widths = dict.fromkeys(axes, (0, 0))
    shape = tuple(each(lambda n, wide=sum(widths.get(axis, ())): n + wide, size) for axis, size in enumerate(value.shape))  # noqa: B008
    mode = g.choices.one_of(["constant", "edge", "constant"])
    fill = g.number(g.choices.one_of([0, 0.5]), value) if mode == "constant" and g.choices.chance(70) else None
    if g.opset >= 18 and g.choices.chance(50):
        amounts = [widths[axis][side] for side in (0, 1) for axis in axes]
        g.exactly("Pad", value, g.integers(amounts), fill, g.integers([axis - value.rank for axis in axes]), shape=shape, mode=mode)
    else:
        amounts = [widths.get(axis, (0, 0))[side] for side in (0, 1) for axis in range(value.rank)]
        inputs = [g.integers(amounts)] if fill is None else [g.integers(amounts), fill]
        g.exactly("Pad", value, *inputs, shape=shape, mode=mode)


def padded_window(g: Grower) -> None:
    """A Pad of the spatial axes before a Conv or an AveragePool."""
    value = image(g)
    channels = value.shape[1][0]
    width = g.choices.integer(0, 2)
    fill = [] if g.choices.chance(50) else [g.number(g.choices.one_of([0, 0, 1]), value)]
    around = [0, g.choices.one_of([0, 0, 0, 1]), width, 1, 0, 0, 1, width]
    padded = tuple(each(lambda n, a=around[axis] + around[axis + 4]: n + a, size) for axis, size in enumerate(value.shape))
    before = g.exactly("Pad", value, g.integers(around), *fill, shape=padded)
    own = g.choices.one_of([0, 1])
    sides = [each(lambda n: n + 2 * own - 1, size) for size in padded[2:]]
    if g.choices.chance(50):
        counts = g.choices.one_of([None, 1, 0])
        g.op("AveragePool", [before], (*padded[:2], *sides), kernel_shape=[2, 2], pads=[own] * 4, count_include_pad=counts)
    else:
        weight = g.weights(3, channels + around[1], 2, 2)
        g.op("Conv", [before, weight], (padded[0], (3, 3), *sides), bound=4 * channels * value.bound, pads=[own] * 4)


def expands(g: Grower) -> None:
    """An Expand or a Tile: to the same shape, before an operator that broadcasts, before one that does not."""
    value = g.float_value(1, 3)
    ones = [axis for axis, size in enumerate(value.shape) if size == (1, 1)]
    if not ones and g.choices.chance(60):
        value = _exact_like(g, g.with_axes("Unsqueeze", value, [0], ((1, 1), *value.shape), 13), value)
        ones = [0]
    if g.choices.chance(20):
        g.exactly("Tile", value, g.integers([1] * value.rank), shape=value.shape)
        return
    wide: list[Size] = [(4, 4) if axis in ones and g.choices.chance(70) else size for axis, size in enumerate(value.shape)]
    target = [size[0] if is_static(size) else 1 for size in wide]
    big = g.exactly("Expand", value, g.integers(target), shape=tuple(wide))
    kind = g.choices.integer(0, 3)
    if kind == 0:
        same = g.weights(*[size[0] if is_static(size) else 1 for size in wide], dtype=value.dtype)
        g.op("Mul", g.choices.shuffled([big, same]), big.shape, bound=value.bound)
    elif kind == 1:
        g.op(g.choices.one_of(["Tanh", "Sigmoid"]), [big], big.shape, bound=1.0)
    elif kind == 2:
        g.op("Add", [big, g.number(0.5, value)], big.shape, bound=value.bound + 1)


STEPS_OF_VIEWS: tuple[Step, ...] = (
    view_chain, same_view, there_and_back, slices, concats, splits, pads, padded_window, expands, there_and_back, view_chain,
    slices, slices, concats, concats, splits, splits, pads, padded_window, expands,
)  # fmt: skip
"""All of them."""

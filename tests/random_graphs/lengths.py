"""Shape arithmetic: the patterns of the pass ``shapes``."""

from __future__ import annotations

import numpy as np
from onnx import numpy_helper

from tests.random_graphs.grower import Grower
from tests.random_graphs.operators import Step, cast_to
from tests.random_graphs.values import Shape, Size, Value, each, fixed, is_static, product, total
from tests.random_graphs.views import some_order


def lengths_of(g: Grower, value: Value) -> Value:
    """The shape of a value as a vector, read in one of several ways."""
    source = g.op("Tanh", [value], value.shape, bound=1.0) if g.choices.chance(20) else value
    return g.op("Shape", [source], fixed(value.rank), "int64", 9, exact=True)


def length_of(g: Grower, value: Value, axis: int, *, scalar: bool) -> Value:
    """One length as a scalar or as a vector of one, as exporters compute it."""
    if not scalar and g.opset >= 15 and g.choices.chance(30):
        return g.op("Shape", [value], fixed(1), "int64", 9, exact=True, start=axis, end=axis + 1)
    lengths = lengths_of(g, value)
    if g.choices.chance(30):
        part = g.op("Slice", [lengths, g.integers([axis]), g.integers([axis + 1]), g.integers([0])], fixed(1), exact=True)
        return _exactly(g, g.with_axes("Squeeze", part, [0], (), 13)) if scalar else part
    written = axis - value.rank if g.choices.chance(20) else axis
    one = g.op("Gather", [lengths, g.integer(written)], (), exact=True, axis=0)
    return one if scalar else _exactly(g, g.with_axes("Unsqueeze", one, [0], fixed(1), 13))


def _exactly(g: Grower, value: Value) -> Value:
    kept = Value(value.name, value.dtype, value.shape, value.bound, exact=True)
    g.pool[g.pool.index(value)] = kept
    return kept


def computed_reshape(g: Grower) -> None:
    """A Reshape whose target is computed: to the same shape, with axes merged, divided, moved or of length one."""
    value = g.float_value(1, 4)
    parts: list[Value] = []
    shape: list[Size] = []
    free = True
    axis = 0
    while axis < value.rank:
        size = value.shape[axis]
        kind = g.choices.integer(0, 5)
        if kind == 0 and axis + 1 < value.rank:
            pair = [length_of(g, value, axis + n, scalar=True) for n in (0, 1)]
            merged = g.op("Mul", pair, (), bound=99, exact=True)
            parts.append(_exactly(g, g.with_axes("Unsqueeze", merged, [0], fixed(1), 13)))
            shape.append(product(value.shape[axis : axis + 2]))
            axis += 2
            continue
        if kind == 1 and is_static(size) and size[0] % 2 == 0 and size[0]:
            parts.append(g.integers([2, size[0] // 2]))
            shape.extend(fixed(2, size[0] // 2))
        elif kind == 2 and free:
            free = False
            parts.append(g.integers([-1]))
            shape.append(size)
        elif kind == 3:
            parts.extend([g.integers([1]), length_of(g, value, axis, scalar=False)])
            shape.extend([(1, 1), size])
        elif is_static(size) and g.choices.chance(50):
            parts.append(g.integers([size[0]]))
            shape.append(size)
        else:
            parts.append(length_of(g, value, axis, scalar=False))
            shape.append(size)
        axis += 1
    target = parts[0] if len(parts) == 1 else g.op("Concat", parts, fixed(len(shape)), exact=True, axis=0)
    g.exactly("Reshape", value, target, shape=tuple(shape))


def computed_expand(g: Grower) -> None:
    """A constant or a value that is expanded to a computed shape, and meets what it was expanded for."""
    value = g.float_value(1, 3)
    lengths = lengths_of(g, value)
    kind = g.choices.integer(0, 2)
    if kind == 0:
        filled = g.op("ConstantOfShape", [lengths], value.shape, "float32", 0.0, exact=True)
        small = cast_to(g, filled, value.dtype)
    else:
        shape: Shape = tuple((1, 1) if g.choices.chance(70) else size for size in value.shape)
        if not all(map(is_static, shape)):
            shape = ((1, 1),) * value.rank
        small = g.exactly("Expand", g.weights(*(size[0] for size in shape), dtype=value.dtype), lengths, shape=value.shape)
        if g.choices.chance(50):
            small = g.op(g.choices.one_of(["Sigmoid", "Tanh"]), [small], value.shape, bound=1.0)
    g.op(g.choices.one_of(["Add", "Mul"]), g.choices.shuffled([value, small]), value.shape, bound=value.bound * 1.5 + 1)


def split_heads(g: Grower) -> None:
    """Reshape, Transpose, Reshape, where the first one merges axes that move together."""
    value = g.float_value(3, 4)
    if sum(not is_static(size) for size in value.shape) > 1:
        value = g.fresh(4, shape=((2, 3), (2, 2), (3, 3), (4, 4)))
    at = g.choices.integer(0, value.rank - 2)
    merged = (*value.shape[:at], product(value.shape[at : at + 2]), *value.shape[at + 2 :])
    first = g.exactly("Reshape", value, g.integers(_target(merged)), shape=merged)
    perm = some_order(g, first.dtype, len(merged))
    turned = g.exactly("Transpose", first, shape=tuple(merged[axis] for axis in perm), perm=perm)
    order = [axis for group in perm for axis in ([at, at + 1] if group == at else [group + (group > at)])]
    last = tuple(value.shape[axis] for axis in order)
    if g.choices.chance(40):
        last = (product(last[:2]), *last[2:])
    g.exactly("Reshape", turned, g.integers(_target(last)), shape=last)


def _target(shape: Shape) -> list[int]:
    return [size[0] if is_static(size) else -1 for size in shape]


def arithmetic(g: Grower) -> None:
    """Sums and products of lengths that end as a scalar, a vector, floats, a Range, the bound of a Slice."""
    value = g.float_value(1, 3)
    axis = g.choices.integer(0, value.rank - 1)
    size = value.shape[axis]
    length = length_of(g, value, axis, scalar=True)
    for _ in range(g.choices.integer(0, 3)):
        name, number = g.choices.one_of([("Add", 2), ("Mul", 2), ("Sub", 1), ("Add", -1), ("Mul", 1), ("Div", 2), ("Max", 3)])
        if name == "Max" and g.opset < 12:
            continue
        by = {"Add": int.__add__, "Sub": int.__sub__, "Mul": int.__mul__, "Div": int.__floordiv__, "Max": max}[name]
        size = each(lambda n, by=by, number=number: by(n, number), size)
        length = g.op(name, [length, g.integer(number)], (), bound=99, exact=True)
    if min(size) < 0 or max(size) > 60:
        return
    kind = g.choices.integer(0, 4)
    if kind == 0:
        scaled = cast_to(g, length, g.model.kind)
        g.op("Mul", [value, scaled], value.shape, bound=value.bound * 40)
    elif kind == 1:
        counted = g.op("Range", [g.integer(0), length, g.integer(1)], (size,), "int64", 60, exact=True)
        cast_to(g, counted, g.model.kind)
    elif kind == 2:
        end = _exactly(g, g.with_axes("Unsqueeze", length, [0], fixed(1), 13))
        shape = (*value.shape[:axis], each(min, size, value.shape[axis]), *value.shape[axis + 1 :])
        g.exactly("Slice", value, g.integers([0]), end, g.integers([axis]), shape=shape)
    elif kind == 3:
        vector = _exactly(g, g.with_axes("Unsqueeze", length, [0], fixed(1), 13))
        g.op("Concat", [vector, lengths_of(g, value), g.integers([7])], fixed(value.rank + 2), bound=99, exact=True, axis=0)
    else:
        g.op("Mod", [length, g.integer(3)], (), bound=3, exact=True)


def two_inputs(g: Grower) -> None:
    """A length of one value as the sum of lengths of others, through Concat, and back through Slice or Reshape."""
    value = g.fresh(2, shape=(g.choices.one_of([(2, 3), (5, 4)]), (4, 4)))
    other = g.fresh(2, shape=(g.choices.one_of([(5, 4), (2, 3), (3, 3)]), (4, 4)))
    joined = g.op("Concat", [value, other], (total([value.shape[0], other.shape[0]]), (4, 4)), exact=True, axis=0)
    if g.choices.chance(50):
        first = length_of(g, value, 0, scalar=False)
        g.exactly("Slice", joined, first, g.integers([9999]), g.integers([0]), shape=other.shape)
    else:
        count = length_of(g, joined, 0, scalar=False)
        target = g.op("Concat", [count, g.integers([2, 2])], fixed(3), exact=True, axis=0)
        g.exactly("Reshape", joined, target, shape=(joined.shape[0], (2, 2), (2, 2)))


def masks(g: Grower) -> None:
    """A causal mask: ranges that are compared, expanded, and chosen by."""
    value = g.fresh(3, shape=((2, 3), (5, 4), (5, 4)))
    length = length_of(g, value, 1, scalar=True)
    rows = g.op("Range", [g.integer(0), length, g.integer(1)], ((5, 4),), "int64", 9, exact=True)
    across = _exactly(g, g.with_axes("Unsqueeze", rows, [0], ((1, 1), (5, 4)), 13))
    down = _exactly(g, g.with_axes("Unsqueeze", rows, [1], ((5, 4), (1, 1)), 13))
    mask = g.op("Less", [down, across], ((5, 4), (5, 4)), "bool", exact=True)
    target = lengths_of(g, value)
    if g.choices.chance(60):
        mask = g.exactly("Expand", mask, target, shape=value.shape)
    g.op("Where", [mask, g.number(-4, value), value], value.shape, value.dtype)


def comparisons(g: Grower) -> None:
    """A length that is compared with a number, and chooses between values or target lengths."""
    value = g.float_value(1, 3)
    lengths = lengths_of(g, value)
    wanted = g.choices.shuffled([size[0] if is_static(size) and g.choices.chance(50) else -1 for size in value.shape])
    same = g.op("Equal", [g.integers(wanted), g.integers([-1])], fixed(value.rank), "bool", exact=True)
    ones = g.op("ConstantOfShape", [g.integers([value.rank])], fixed(value.rank), "int64", 1, exact=True, value=_one())
    target = g.op("Where", [same, ones, lengths], fixed(value.rank), "int64", 9, exact=True)
    g.exactly("Expand", value, target, shape=value.shape)


def _one() -> object:
    return numpy_helper.from_array(np.array([1], np.int64))


STEPS_OF_LENGTHS: tuple[Step, ...] = (
    computed_reshape, computed_expand, split_heads, arithmetic, two_inputs, masks, comparisons, computed_reshape, arithmetic,
)  # fmt: skip
"""All of them."""

"""Identities, chains of constants, and what folds: the patterns of the pass ``simplify`` that are no views."""

from __future__ import annotations

import numpy as np

from tests.random_graphs.grower import Grower
from tests.random_graphs.networks import image
from tests.random_graphs.operators import Step, boolean_value, cast_to, integer_value, partner_of_bool
from tests.random_graphs.values import Value, broadcast, fixed, is_static, replaced


def neutral(g: Grower) -> None:
    """x + 0, x * 1 and their kin, in any order, with constants that may widen the shape, or are not quite neutral."""
    value = g.float_value(0, 4) if g.choices.chance(70) else integer_value(g)
    name, number = g.choices.one_of([("Add", 0), ("Sub", 0), ("Mul", 1), ("Div", 1), ("Pow", 1), ("Mul", 0), ("Add", 1)])
    lengths = [size[0] if is_static(size) and g.choices.chance(50) else 1 for size in value.shape]
    if g.choices.chance(10):
        lengths = (
            [1, *lengths] if g.choices.chance(50) else [3 if size == (1, 1) else n for n, size in zip(lengths, value.shape, strict=True)]
        )
    kept = lengths[g.choices.integer(0, len(lengths)) :] if len(lengths) <= value.rank else lengths
    constant = g.constant(np.full(kept, number, value.dtype))
    pair = [value, constant] if name in ("Sub", "Div", "Pow") or g.choices.chance(50) else [constant, value]
    if name == "Sub" and g.choices.chance(20):
        pair.reverse()
    shape = broadcast(value.shape, constant.shape)
    assert shape is not None
    g.op(name, pair, shape, bound=value.bound + 1, exact=value.exact and name != "Pow")


def neutral_logic(g: Grower) -> None:
    """And with true, Or with false, and with other values."""
    value = boolean_value(g)
    name = g.choices.one_of(["And", "Or"])
    constant = g.constant(np.full((1,) * g.choices.integer(0, value.rank), g.choices.chance(50)))
    other = constant if g.choices.chance(80) else partner_of_bool(g, value)
    g.op(name, g.choices.shuffled([value, other]), value.shape, "bool", exact=True)


def idle(g: Grower) -> None:
    """Identity, Dropout, Cast to the same type, or an operator that takes many inputs and gets one."""
    value = g.float_value(0, 4)
    kind = g.choices.one_of(["Identity", "Dropout", "Cast", "CastLike", "Max", "Sum", "Mean", "Min", "Dropout", "Dropout", "Dropout"])
    if kind == "Dropout":
        mask = g.result(value.shape, "bool", 1, exact=True) if g.choices.chance(20) else None
        ratio = g.constant(np.array(0.3, np.float32)) if g.opset >= 12 and g.choices.chance(60) else None
        training = [g.constant(np.array(False))] if g.opset >= 12 and ratio is not None and g.choices.chance(40) else []
        result = g.result(value.shape, value.dtype, value.bound, value.exact)
        g.ops(kind, [value, *([] if ratio is None else [ratio]), *training], [result, *([] if mask is None else [mask])])
    elif kind == "Cast":
        cast_to(g, value, value.dtype)
    elif kind == "CastLike":
        if g.opset >= 15:
            g.exactly(kind, value, g.number(1, value))
    else:
        g.exactly(kind, value)


def chains(g: Grower) -> None:
    """Two or three additions or multiplications with constants."""
    value = g.float_value(0, 4, bound=20)
    names = g.choices.one_of([["Add", "Sub"], ["Mul", "Div"], ["Add", "Mul"]])
    for _ in range(g.choices.integer(2, 3)):
        name = g.choices.one_of(names)
        wide = value.rank and is_static(value.shape[-1]) and g.choices.chance(40)
        constant = g.weights(value.shape[-1][0], dtype=value.dtype, low=0.5, high=2) if wide else _number(g, value)
        pair = [value, constant]
        if name in ("Add", "Mul") or g.choices.chance(15):
            pair = g.choices.shuffled(pair)
        if name == "Div" and pair[0] is constant:
            pair.reverse()
        value = g.op(name, pair, value.shape, bound=value.bound * 2 + 2)


def _number(g: Grower, value: Value) -> Value:
    return g.number(g.choices.one_of([2, 0.5, 3, -1.5, 0.75]), value, g.choices.integer(0, min(1, value.rank)))


def rounding(g: Grower) -> None:
    """A large number that is added and taken away again, which rounds to integers."""
    value = g.float_value(0, 4, exact=True, bound=20)
    if value.dtype == "float32":
        large = g.number(12582912, value)
        shifted = g.op("Add", [value, large], value.shape, bound=1.3e7, exact=True)
        g.op("Sub", [shifted, large], value.shape, bound=value.bound + 1, exact=True)


def chosen(g: Grower) -> None:
    """Where by a constant condition, or of one value twice."""
    value = g.float_value(1, 4)
    other = g.op("Tanh", [value], value.shape, bound=1.0) if g.choices.chance(70) else g.number(0.5, value)
    lengths = [size[0] if is_static(size) and g.choices.chance(40) else 1 for size in value.shape]
    kind = g.choices.integer(0, 3)
    if kind == 3:
        condition = g.op("Greater", [value, g.number(0, value)], value.shape, "bool") if value.exact else g.constant(np.array(True))
        g.exactly("Where", condition, value, value, shape=value.shape)
        g.pool[-1] = Value(g.pool[-1].name, value.dtype, value.shape, value.bound, value.exact)
        g.nodes[-1].input[:] = [condition.name, value.name, value.name]
        return
    content = np.full(lengths, kind == 0) if kind < 2 else np.resize([True, False], lengths)
    g.op("Where", [g.constant(content), *g.choices.shuffled([value, other])], value.shape, value.dtype, bound=max(value.bound, other.bound))


def resized(g: Grower) -> None:
    """A Resize to the size that is there: by scales of one, or by sizes, which may come from Shape."""
    value = image(g)
    if value.dtype != "float32":
        return
    region = g.constant(np.zeros(0, np.float32)) if g.opset < 13 else None
    mode = g.choices.one_of(["nearest", "linear"])
    kind = g.choices.integer(0, 2)
    if kind == 0 or (value.static is None and kind == 1):
        g.op("Resize", [value, region, g.constant(np.ones(4, np.float32))], value.shape, mode=mode)
        return
    sizes = g.integers(value.static) if kind == 1 and value.static else g.op("Shape", [value], fixed(4), "int64", 9, exact=True)
    scales = g.constant(np.zeros(0, np.float32)) if g.opset < 13 else None
    g.op("Resize", [value, region, scales, sizes], value.shape, mode=mode)


def constants(g: Grower) -> None:
    """Operators on constants alone, whose result meets a value."""
    value = g.float_value(1, 4)
    last = value.shape[-1]
    length = last[0] if is_static(last) and last[0] else 1
    result = g.weights(length, low=0.5, high=1.5)
    for _ in range(g.choices.integer(1, 4)):
        result = _on_constants(g, result, length)
    g.op(g.choices.one_of(["Add", "Mul"]), [value, result], value.shape, value.dtype, bound=value.bound * 3 + 3)


def _on_constants(g: Grower, value: Value, length: int) -> Value:
    """A vector of the same length from a vector, by operators on constants alone."""
    return g.choices.one_of(_CONSTANT_STEPS)(g, value, length)


def _turned(g: Grower, value: Value, length: int) -> Value:
    row = g.with_axes("Unsqueeze", value, [0], fixed(1, length), 13)
    return g.with_axes("Squeeze", g.op("Transpose", [row], fixed(length, 1)), [1], fixed(length), 13)


def _multiplied(g: Grower, value: Value, length: int) -> Value:
    return g.op("Tanh", [g.op("MatMul", [value, g.weights(length, length)], fixed(length))], fixed(length), bound=1.0)


def _averaged(g: Grower, value: Value, length: int) -> Value:
    mean = g.with_axes("ReduceMean", value, [0], fixed(1), 18, keepdims=1)
    return g.op("Add", [value, mean], fixed(length), bound=2 * value.bound)


def _doubled(g: Grower, value: Value, length: int) -> Value:
    both = g.op("Concat", [value, value], fixed(2 * length), axis=0)
    return g.op("Slice", [both, g.integers([length]), g.integers([2 * length])], fixed(length))


def _mixed(g: Grower, value: Value, length: int) -> Value:
    condition = g.constant(np.resize([True, False], length))
    return g.op("Where", [condition, value, g.number(1, value)], fixed(length), value.dtype, bound=value.bound)


def _cast(g: Grower, value: Value, _: int) -> Value:
    return cast_to(g, cast_to(g, value, "float64"), value.dtype)


def _counted(g: Grower, value: Value, length: int) -> Value:
    numbers = g.op("Range", [g.integer(0), g.integer(length), g.integer(1)], fixed(length), "int64", length, exact=True)
    return g.op("Mul", [value, g.op("Tanh", [cast_to(g, numbers, value.dtype)], fixed(length), bound=1.0)], fixed(length))


def _reversed(g: Grower, value: Value, length: int) -> Value:
    return g.op("Slice", [value, g.integers([-1]), g.integers([-99]), g.integers([0]), g.integers([-1])], fixed(length))


def _expanded(g: Grower, value: Value, length: int) -> Value:
    return g.op("Mul", [value, g.op("Expand", [g.number(0.5, value, 1), g.integers([length])], fixed(length))], fixed(length))


def _divided(g: Grower, value: Value, length: int) -> Value:
    if length == 1:
        return g.op("Mul", [value, value], fixed(length), bound=value.bound**2)
    parts = [g.result(fixed(n), value.dtype, value.bound) for n in (1, length - 1)]
    if g.opset < 13:
        g.ops("Split", [value], parts, axis=0, split=[1, length - 1])
    else:
        g.ops("Split", [value, g.integers([1, length - 1])], parts, axis=0)
    return g.op("Concat", parts[::-1], fixed(length), axis=0)


def _of_integers(g: Grower, value: Value, length: int) -> Value:
    numbers = g.constant(g.model.numbers.integers(-9, 10, length))
    name = g.choices.one_of(["Div", "Mod", "Mul", "Sub", "Max", "ReduceMax"])
    if name == "ReduceMax" or (name == "Max" and g.opset < 12):
        found = g.op("CumSum", [numbers, g.integer(0)], fixed(length), bound=99, exact=True)
    else:
        found = g.op(name, [numbers, g.integers([g.choices.one_of([2, 3, -2, -4])])], fixed(length), bound=99, exact=True)
    return g.op("Mul", [value, g.op("Sin", [cast_to(g, found, value.dtype)], fixed(length), bound=1.0)], fixed(length))


_CONSTANT_STEPS = (_turned, _multiplied, _averaged, _doubled, _mixed, _cast, _counted, _reversed, _expanded, _divided, _of_integers)


def twice(g: Grower) -> None:
    """The same node twice, with operands swapped where that is the same, or almost the same node."""
    value = g.float_value(1, 4)
    other = g.float_value(1, 4)
    if broadcast(value.shape, other.shape) is None:
        other = value
    shape = broadcast(value.shape, other.shape)
    assert shape is not None
    kind = g.choices.one_of(["Add", "Sub", "Softmax", "Concat"])
    results = []
    for turn in (0, 1):
        pair = [value, other] if turn == 0 or g.choices.chance(50) else [other, value]
        if kind in ("Add", "Sub"):
            results.append(g.op(kind, pair, shape, bound=value.bound + other.bound))
        elif kind == "Softmax":
            results.append(g.op(kind, [value], value.shape, bound=1.0, axis=g.choices.one_of([-1, 0])))
        else:
            longer = replaced(value.shape, 0, (2 * value.shape[0][0], 2 * value.shape[0][1]))
            results.append(g.op(kind, [value, value], longer, axis=0))
    g.op("Max", results, results[0].shape, bound=max(r.bound for r in results))


def equal_weights(g: Grower) -> None:
    """One content in two constants, of the same or of another shape."""
    value = g.float_value(1, 4)
    last = value.shape[-1]
    if not is_static(last):
        return
    content = g.model.numbers.uniform(0.5, 1.5, last[0]).astype(value.dtype)
    for name in ("Mul", "Add"):
        shape = (1, *content.shape) if value.rank > 1 and g.choices.chance(20) else content.shape
        value = g.op(name, [value, g.constant(content.reshape(shape))], value.shape, bound=2 * value.bound)
        value = g.op("Sin", [value], value.shape, bound=1.0)


STEPS_OF_SIMPLE: tuple[Step, ...] = (
    neutral, neutral_logic, idle, chains, chosen, resized, constants, twice, rounding, equal_weights, neutral, chains, constants,
    idle, idle, resized,
)  # fmt: skip
"""All of them; the ones with many variants more often."""

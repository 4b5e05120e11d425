"""Single operators with random operands and attributes: what stands between the planted patterns."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tests.random_graphs.grower import DTYPES, Grower
from tests.random_graphs.values import Shape, Size, Value, broadcast, fixed, is_static, product, replaced, total

Step = Callable[[Grower], object]

SMOOTH = {
    "Tanh": 1, "Sigmoid": 1, "Erf": 1, "Sin": 1, "Cos": 1, "Atan": 1, "Elu": 1, "Selu": 1, "LeakyRelu": 1, "HardSigmoid": 1,
    "Softplus": 1, "Softsign": 1, "Celu": 12, "HardSwish": 14, "Mish": 18, "Gelu": 20, "Swish": 24,
}  # fmt: skip
"""Elementwise operators, with the first opset that has them."""
ORDERED = ("Relu", "Neg", "Abs", "Identity")
STEPS = ("Floor", "Ceil", "Round", "Sign")
REDUCTIONS = {
    "ReduceSum": 13, "ReduceMean": 18, "ReduceMax": 18, "ReduceMin": 18, "ReduceL1": 18, "ReduceL2": 18, "ReduceSumSquare": 18,
    "ReduceLogSumExp": 18, "ReduceProd": 18,
}  # fmt: skip
"""Reductions, with the first opset in which their axes are an input."""


def unary(g: Grower) -> None:
    """A smooth elementwise operator, or one that keeps the order of numbers."""
    value = g.float_value()
    if g.choices.chance(50):
        g.exactly(g.choices.one_of(ORDERED), value)
    else:
        name = g.choices.one_of([name for name, since in SMOOTH.items() if since <= g.opset])
        g.op(name, [value], value.shape, bound=max(1.0, value.bound))


def step(g: Grower) -> None:
    """A step function, of exact numbers only."""
    g.exactly(g.choices.one_of(STEPS), g.float_value(exact=True))


def guarded(g: Grower) -> None:
    """Exp, Sqrt, Log, Reciprocal, Div or Pow of what is safe for it."""
    value = g.float_value(bound=3.0)
    one = g.number(1, value)
    positive = g.op("Add", [g.op("Abs", [value], value.shape), one], value.shape, bound=4.0)
    name = g.choices.one_of(["Exp", "Sqrt", "Log", "Reciprocal", "Div", "Pow"])
    if name == "Exp":
        g.op(name, [value], value.shape, bound=21.0)
    elif name == "Pow":
        g.op(name, [positive, g.number(g.choices.one_of([2, 1, 0.5, -1, 3]), value)], value.shape, bound=64.0)
    elif name == "Div":
        g.op(name, [value, positive], value.shape)
    else:
        g.op(name, [positive], value.shape)


def partner(g: Grower, value: Value) -> Value:
    """A value that broadcasts with another one: a value, a part of its shape as a constant, or a number."""
    if g.choices.chance(50):
        found = g.pick(lambda v: v.dtype == value.dtype and broadcast(v.shape, value.shape) is not None)
        if found is not None:
            return found
    lengths = [size[0] if is_static(size) and g.choices.chance(60) else 1 for size in value.shape]
    kept = lengths[g.choices.integer(0, len(lengths)) :]
    return g.weights(*kept, dtype=value.dtype, low=0.5, high=2.0) if value.is_float else g.constant(np.full(kept, 2, value.dtype))


def binary(g: Grower) -> None:
    """Arithmetic of two or three values that broadcast."""
    first = g.float_value(bound=20)
    second = g.tamed(partner(g, first), 20) if first.is_float else first
    pair = g.choices.shuffled([first, second])
    shape = broadcast(first.shape, second.shape)
    assert shape is not None
    name = g.choices.one_of(["Add", "Sub", "Mul", "Max", "Min", "Sum", "Mean"])
    bound = first.bound * second.bound if name == "Mul" else first.bound + second.bound
    exact = name in ("Max", "Min") and first.exact and second.exact
    if name in ("Max", "Min", "Sum", "Mean") and g.choices.chance(30):
        pair.append(pair[0])
        bound += first.bound + second.bound
    g.op(name, pair, shape, bound=bound, exact=exact)


def prelu(g: Grower) -> None:
    """PRelu with a slope per channel."""
    value = g.float_value(2, 4)
    g.op("PRelu", [value, g.weights(*(1,) * (value.rank - 1), low=0.1, high=0.5)], value.shape)


def integers(g: Grower) -> None:
    """Arithmetic on integers."""
    value = integer_value(g)
    name = g.choices.one_of(["Add", "Sub", "Mul", "Div", "Mod", "Neg", "Abs", "Max", "Sign"])
    if name in ("Neg", "Abs", "Sign"):
        g.exactly(name, value)
    else:
        constant = g.constant(np.array(g.choices.one_of([2, 1, 3, 0 if name in ("Add", "Sub", "Mul") else 5]), value.dtype))
        g.op(name, [value, constant], value.shape, bound=value.bound * 3 + 5, exact=True)


def integer_value(g: Grower) -> Value:
    """An exact integer tensor of small numbers."""
    found = g.pick(lambda v: v.dtype in ("int64", "int32") and v.exact and v.bound < 1000)
    if found is not None and g.choices.chance(80):
        return found
    return g.fresh(g.choices.integer(1, 3), g.choices.one_of(["int64", "int32"]))


def boolean_value(g: Grower) -> Value:
    """A bool tensor: what is there, a comparison, an input."""
    found = g.pick(lambda v: v.dtype == "bool")
    if found is not None and g.choices.chance(60):
        return found
    if g.choices.chance(30):
        return g.fresh(g.choices.integer(1, 3), "bool")
    value = g.float_value(exact=True)
    name = g.choices.one_of(["Greater", "Less", "Equal", *(["GreaterOrEqual", "LessOrEqual"] if g.opset >= 12 else [])])
    return g.op(name, [value, g.number(0.25, value)], value.shape, "bool", exact=True)


def logic(g: Grower) -> None:
    """And, Or, Xor, Not, IsNaN, IsInf."""
    value = boolean_value(g)
    name = g.choices.one_of(["And", "Or", "Xor", "Not", "IsNaN", "IsInf"])
    if name == "Not":
        g.exactly(name, value)
    elif name in ("IsNaN", "IsInf"):
        operand = g.float_value()
        if name == "IsNaN" or operand.dtype != "float16":
            g.op(name, [operand], operand.shape, "bool", exact=True)
    else:
        g.op(name, [value, partner_of_bool(g, value)], value.shape, exact=True)


def partner_of_bool(g: Grower, value: Value) -> Value:
    """A bool value of the same shape, or a constant."""
    found = g.pick(lambda v: v.dtype == "bool" and v.shape == value.shape)
    return found if found is not None and g.choices.chance(60) else g.constant(np.array(g.choices.chance(50)))


def where(g: Grower) -> None:
    """Where by a value or a comparison."""
    value = g.float_value()
    found = g.pick(lambda v: v.dtype == "bool" and broadcast(v.shape, value.shape) is not None)
    condition = boolean_value(g) if found is None else found
    if broadcast(condition.shape, value.shape) is None:
        return
    other = partner(g, value)
    shape = broadcast(condition.shape, value.shape, other.shape) if broadcast(value.shape, other.shape) else None
    if shape is not None:
        g.op("Where", [condition, *g.choices.shuffled([value, other])], shape, value.dtype, bound=max(value.bound, other.bound))


def cast(g: Grower) -> None:
    """A Cast to another type, of exact numbers where it rounds."""
    value = g.pick(lambda v: v.exact or v.dtype == "bool") or g.fresh(2)
    to = g.choices.one_of(["float32", "int64", "int32", "float64", "bool", "float16"])
    if g.model.kind != "float32" and to.startswith("float"):
        to = g.model.kind
    cast_to(g, value, to)


def cast_to(g: Grower, value: Value, dtype: str) -> Value:
    """A value in another type."""
    return g.op("Cast", [value], value.shape, dtype, exact=value.exact or value.dtype == "bool", to=DTYPES[dtype])


def reduce(g: Grower) -> None:
    """A reduction over some axes."""
    value = g.float_value(1, 4, bound=4.0)
    axes = some_axes(g, value.rank)
    keep = g.choices.chance(50)
    shape = reduced(value.shape, axes, keep=keep)
    name = g.choices.one_of(list(REDUCTIONS))
    if name == "ReduceProd":
        value = g.op("Sigmoid", [value], value.shape, bound=1.0)
    written = [axis - value.rank if g.choices.chance(30) else axis for axis in axes]
    result = g.with_axes(name, value, written, shape, REDUCTIONS[name], keepdims=int(keep))
    g.pool[-1] = Value(result.name, result.dtype, result.shape, 500.0)


def some_axes(g: Grower, rank: int) -> list[int]:
    """A few axes in order, at least one."""
    chosen = [axis for axis in range(rank) if g.choices.chance(40)]
    return chosen or [g.choices.integer(0, rank - 1)]


def reduced(shape: Shape, axes: list[int], *, keep: bool) -> Shape:
    """A shape after a reduction."""
    lengths: list[Size | None] = [((1, 1) if keep else None) if axis in axes else size for axis, size in enumerate(shape)]
    return tuple(size for size in lengths if size is not None)


def gather(g: Grower) -> None:
    """Gather, GatherElements or GatherND with constant indices."""
    value = g.float_value(1, 4)
    axis = g.choices.integer(0, value.rank - 1)
    name = g.choices.one_of(["Gather", "GatherElements", "GatherND"])
    if name == "Gather":
        index = np.array(g.choices.one_of([[0, 0], [0], 0, [[0]], -1]), np.int64)
        shape = (*value.shape[:axis], *fixed(*index.shape), *value.shape[axis + 1 :])
        g.exactly(name, value, g.constant(index), shape=shape, axis=axis)
    elif name == "GatherElements" and value.static is not None:
        lengths = (*value.static[:axis], 2, *value.static[axis + 1 :])
        g.exactly(name, value, g.constant(np.zeros(lengths, np.int64)), shape=fixed(*lengths), axis=axis)
    else:
        g.exactly("GatherND", value, g.constant(np.zeros((2, 1), np.int64)), shape=((2, 2), *value.shape[1:]))


def scatter(g: Grower) -> None:
    """ScatterElements or ScatterND with constant indices."""
    value = g.float_value(1, 3)
    if value.static is None or not all(value.static):
        return
    if g.choices.chance(50):
        updates = g.weights(1, *value.static[1:], dtype=value.dtype)
        g.exactly("ScatterND", value, g.constant(np.array([[0]], np.int64)), updates)
    else:
        index = g.constant(np.zeros((1,) * value.rank, np.int64))
        g.exactly("ScatterElements", value, index, g.weights(*(1,) * value.rank, dtype=value.dtype), axis=0)


def sorting(g: Grower) -> None:
    """TopK, ArgMax, ArgMin, CumSum, OneHot, Trilu, NonZero, EyeLike, ReverseSequence."""
    value = g.float_value(1, 3, exact=True)
    axis = g.choices.integer(0, value.rank - 1)
    name = g.choices.one_of(["CumSum", "TopK", "ArgMax", "ArgMin", "Trilu", "OneHot", "NonZero", "EyeLike"])
    if name == "TopK":
        results = [g.result(replaced(value.shape, axis, (1, 1)), dtype, value.bound, exact=True) for dtype in (value.dtype, "int64")]
        g.ops(name, [value, g.integers([1])], results, axis=axis)
    elif name in ("ArgMax", "ArgMin"):
        g.op(name, [value], replaced(value.shape, axis, (1, 1)), "int64", 7, exact=True, axis=axis)
    elif name == "CumSum" and value.dtype != "float16":
        g.op(name, [value, g.integer(axis)], value.shape, bound=7 * value.bound, exclusive=int(g.choices.chance(50)))
    elif name == "Trilu" and g.opset >= 14 and value.rank >= 2:
        g.exactly(name, value, upper=int(g.choices.chance(50)))
    elif name == "OneHot":
        index = g.constant(np.array([0, 2, 1], np.int64))
        g.op(name, [index, g.integer(4), g.constant(np.array([0, 1], g.model.kind))], fixed(3, 4), g.model.kind, 1.0, exact=True)
    elif name == "NonZero":
        found = g.op(name, [g.constant(np.array([[1, 0], [1, 1]], np.float32))], fixed(2, 3), "int64", 1, exact=True)
        g.exactly("Abs", found)
    elif name == "EyeLike" and value.rank == 2 and value.dtype != "float16":
        g.op(name, [value], value.shape, bound=1.0, exact=True)


def concat(g: Grower) -> None:
    """Concat of values that agree in all other axes."""
    value = g.float_value(1, 4)
    axis = g.choices.integer(0, value.rank - 1)
    same = g.pick(
        lambda v: v.dtype == value.dtype and v.rank == value.rank and replaced(v.shape, axis, (0, 0)) == replaced(value.shape, axis, (0, 0))
    )
    parts = [value, same or value, *([value] if g.choices.chance(30) else [])]
    shape = replaced(value.shape, axis, total(part.shape[axis] for part in parts))
    g.op(
        "Concat",
        parts,
        shape,
        bound=max(p.bound for p in parts),
        exact=all(p.exact for p in parts),
        axis=axis - value.rank * g.choices.integer(0, 1),
    )


def matrix_sizes(g: Grower) -> None:
    """Size and ConstantOfShape of a value, and a Range as long as one of its axes."""
    value = g.float_value(1, 3)
    count = g.op("Size", [value], (), "int64", 500, exact=True)
    g.op("Mul", [count, g.integer(2)], (), bound=1000, exact=True)
    lengths = g.op("Shape", [value], fixed(value.rank), "int64", 9, exact=True)
    if product(value.shape) < (400, 400):
        zeros = g.op("ConstantOfShape", [lengths], value.shape, "float32", 0.0, exact=True)
        cast_to(g, zeros, g.model.kind)
    first = g.op("Gather", [lengths, g.integer(0)], (), bound=9, exact=True, axis=0)
    g.op("Range", [g.integer(0), first, g.integer(1)], (value.shape[0],), "int64", 9, exact=True)


STEPS_OF_ONE: tuple[Step, ...] = (
    unary, binary, step, guarded, prelu, integers, logic, where, cast, reduce, gather, scatter, sorting, concat, matrix_sizes, unary,
    binary, binary, reduce,
)  # fmt: skip
"""All of them; the common ones more often."""

"""Powers, divisions, contractions and convolutions along one axis: the patterns of the pass ``algebra``, and near misses of them."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.random_graphs.grower import Array, Grower
from tests.random_graphs.operators import Step, integer_value, reduced
from tests.random_graphs.values import Shape, Size, Value, each, fixed, is_static

_EXPONENTS = (2, 0.5, -1, -0.5, 2, 3, 1.5, 0, 1)
_LENGTHS: dict[str, tuple[Size, ...]] = {
    "b": ((2, 3), (2, 2)), "h": ((2, 2), (3, 3)), "i": ((5, 4), (3, 3)), "j": ((1, 7), (4, 4)), "d": ((4, 4), (6, 6)),
    "k": ((3, 3), (5, 4)),
}  # fmt: skip
_EQUATIONS = (
    "bid,bjd->bij", "bhid,bhjd->bhij", "bhij,bhjd->bhid", "bihd,bjhd->bhij", "bhij,bjhd->bihd", "ij,jk->ik", "i j, j k -> k i",
    "bid,dk->bik", "bid,kd->bik", "bid,hdk->bihk", "bid,hdk->bhik", "bihd,hdk->bik", "bid,d->bi", "i,j->ij", "bhid,bhjd->bij",
    "ij,ij->ij", "bi,bi->b", "bij,bjk,bkd->bid", "ij->ji", "...id,...jd->...ij", "bdi,bdj->bij",
)  # fmt: skip
_CONSTANT_FROM = 7
"""The place of the first equation in the list whose second operand may be a weight."""


def power(g: Grower) -> None:
    """Pow by a constant, of positive numbers where it must be; before a mean at times."""
    if g.choices.chance(8):
        value = integer_value(g)
        limited = g.op("Clip", [value, g.constant(_whole(-9, value)), g.constant(_whole(9, value))], value.shape, bound=9.0, exact=True)
        g.op("Pow", [limited, g.constant(_whole(2, value))], value.shape, bound=81.0, exact=True)
        return
    value = g.float_value(0, 4, bound=8.0)
    exponent = g.choices.one_of(_EXPONENTS)
    if exponent not in (0, 1, 2, 3):
        value = g.op("Add", [g.op("Abs", [value], value.shape), g.number(0.5, value)], value.shape, bound=value.bound + 0.5)
    rank = g.choices.one_of([0, 0, 1, 1, 4])
    shape = (*fixed(*(1,) * (rank - value.rank)), *value.shape)
    result = g.op("Pow", [value, g.number(exponent, value, rank=rank)], shape, bound=max(2.0, value.bound**exponent))
    if g.choices.chance(15) and result.rank:
        g.with_axes("ReduceMean", result, [-1], reduced(result.shape, [result.rank - 1], keep=True), 18, keepdims=1)


def _whole(number: int, like: Value) -> Array:
    return np.array(number, like.dtype)


def division(g: Grower) -> None:
    """Div by a constant, which may be large or another node's too."""
    value = g.float_value(0, 4, bound=8.0)
    width = value.shape[-1][0] if value.rank and is_static(value.shape[-1]) and g.choices.chance(60) else 1
    divisor = g.weights(*([width] if value.rank else []), dtype=value.dtype, low=0.4, high=g.choices.one_of([4.0, 0.5]))
    if g.choices.chance(40):
        divisor = g.number(g.choices.one_of([2, 3, 8, 1e30 if value.dtype != "float16" else 1e3]), value)
    result = g.op("Div", [value, divisor], value.shape, bound=value.bound * 3 + 3)
    if g.choices.chance(20):
        g.op("Mul", [result, divisor], value.shape, bound=value.bound)


def contraction(g: Grower) -> None:
    """Einsum of values, or of a value and a weight in either place; an index that is summed may have length 1 in one operand."""
    if g.opset < 12:
        return
    number = g.choices.integer(0, len(_EQUATIONS) - 1)
    equation = _EQUATIONS[number]
    inputs, result = equation.replace(" ", "").split("->")
    lengths = {index: g.choices.one_of(options) for index, options in _LENGTHS.items()}
    terms = inputs.split(",")
    operands = []
    for place, term in enumerate(terms):
        shape = _shape(term, lengths)
        if place and g.choices.chance(6):
            shape = tuple(g.choices.one_of([size, (1, 1)]) for size in shape)
        static = all(map(is_static, shape))
        if place and static and g.choices.chance(70 if number >= _CONSTANT_FROM else 15):
            operands.append(g.weights(*(size[0] for size in shape)))
        else:
            operands.append(g.tamed(g.fresh(len(shape), shape=shape), 4.0))
    if len(terms) == 2 and g.choices.chance(40):
        operands, terms = operands[::-1], terms[::-1]
        equation = f"{','.join(terms)}->{result}"
    g.op("Einsum", operands, _shape(result, lengths), g.model.kind, bound=500.0, equation=equation)


def _shape(term: str, lengths: dict[str, Size]) -> Shape:
    return tuple(lengths[index] for index in term.replace("...", "b"))


def signal(g: Grower) -> None:
    """A convolution along one axis, one filter a channel, for many channels or few."""
    channels, multiple = g.choices.one_of([32, 32, 64, 16, 33]), g.choices.one_of([1, 1, 1, 1, 1, 2])
    length = g.choices.one_of([(5, 4), (9, 9), (5, 4)])
    data = g.fresh(3, shape=(g.choices.one_of([(2, 3), (1, 1)]), (channels, channels), length))
    width = g.choices.one_of([3, 1, 2])
    weight = g.weights(channels * multiple, 1, width)
    bias = [g.weights(channels * multiple)] if g.choices.chance(60) else []
    stride, dilation, low, high = (g.choices.one_of(options) for options in ([1, 1, 2], [1, 1, 2], [0, 1], [0, 1]))
    if g.choices.chance(30):
        automatic = g.choices.one_of(["SAME_UPPER", "SAME_LOWER", "VALID"])
        span = 0 if automatic != "VALID" else (width - 1)
        after = each(lambda n: -(-(n - span) // stride), length)
        more: dict[str, Any] = {"auto_pad": automatic}
        dilation = 1
    else:
        after = each(lambda n: (n + low + high - dilation * (width - 1) - 1) // stride + 1, length)
        more = {"pads": [low, high]} if low or high or g.choices.chance(30) else {}
    if min(after) < 1:
        return
    more |= {"kernel_shape": [width]} if g.choices.chance(50) else {}
    more |= {"strides": [stride]} if stride > 1 else {}
    more |= {"dilations": [dilation]} if dilation > 1 else {}
    for _ in range(2 if g.choices.chance(8) else 1):  # the second one shares the weight
        g.op("Conv", [data, weight, *bias], (data.shape[0], (channels * multiple,) * 2, after), bound=20.0, group=channels, **more)


STEPS_OF_ALGEBRA: tuple[Step, ...] = (power, division, contraction, signal)
"""All of them."""

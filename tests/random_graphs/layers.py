"""Layers with constant weights beside scales and shifts: the patterns of the pass ``affine``."""

from __future__ import annotations

from typing import Any

from tests.random_graphs.grower import Grower
from tests.random_graphs.networks import image
from tests.random_graphs.operators import Step
from tests.random_graphs.values import Value, each, is_static, replaced


def convolved(g: Grower, value: Value) -> Value:
    """A Conv or ConvTranspose with groups, pads, strides and a bias at times."""
    channels = value.shape[1][0]
    groups = g.choices.one_of([1, 1, *(n for n in (2, channels) if channels % n == 0)])
    out = groups * g.choices.integer(1, 2)
    pad = g.choices.integer(0, 1)
    if g.choices.chance(75):
        weight = g.weights(out, channels // groups, 3, 3)
        sides = [each(lambda n: n + 2 * pad - 2, size) for size in value.shape[2:]]
        name, more = "Conv", _pads(pad) if pad or g.choices.chance(50) else {}
        if pad and g.choices.chance(30):
            more = {"auto_pad": "SAME_UPPER"}
    else:
        weight = g.weights(channels, out // groups, 3, 3)
        sides = [each(lambda n: n + 2 - 2 * pad, size) for size in value.shape[2:]]
        name, more = "ConvTranspose", _pads(pad)
    bias = [g.weights(out)] if g.choices.chance(50) else []
    group = groups if groups > 1 or g.choices.chance(30) else None
    shape = (value.shape[0], (out, out), *sides)
    result = g.op(name, [value, weight, *bias], shape, bound=9 * channels * value.bound, group=group, **more)
    return (
        g.op("Mul", [result, g.number(0.05, result)], shape, bound=result.bound / 20)
        if result.bound > 60 and g.choices.chance(30)
        else result
    )


def _pads(width: int) -> dict[str, Any]:
    return {"pads": [width] * 4}


def multiplied(g: Grower, value: Value) -> Value:
    """A MatMul, with a bias at times, or a Gemm with its factors."""
    size = value.shape[-1][0]
    out = g.choices.one_of([4, 2, 8, 3])
    shape = (*value.shape[:-1], (out, out))
    bound = size * value.bound
    if value.rank == 2 and g.choices.chance(60):
        turned = g.choices.chance(40)
        weight = g.weights(*((out, size) if turned else (size, out)))
        bias = [g.weights(*g.choices.one_of([(out,), (1, out), (1,), ()]))] if g.choices.chance(70) else []
        factors: dict[str, Any] = {"alpha": g.choices.one_of([0.5, 2.0])} if g.choices.chance(40) else {}
        if g.choices.chance(30):
            factors["beta"] = g.choices.one_of([0.5, 2.0, 0.0])
        return g.op("Gemm", [value, weight, *bias], shape, bound=2 * bound, transB=int(turned) or None, **factors)
    product_ = g.op("MatMul", [value, g.weights(size, out)], shape, bound=bound)
    if g.choices.chance(50):
        bias_value = g.weights(*g.choices.one_of([(out,), (1,), (1, out)]))
        product_ = g.op("Add", g.choices.shuffled([product_, bias_value]), shape, bound=bound + 1)
    return product_


def scaled(g: Grower, value: Value, axis: int) -> Value:
    """A scale or shift per channel or of one number, or a BatchNormalization."""
    channels = value.shape[axis][0]
    kind = g.choices.one_of(["Mul", "BatchNormalization", "Add", "Div", "Sub", "BatchNormalization", "flipped"])
    value = g.tamed(value, 2000)
    if kind == "BatchNormalization":
        if axis != 1:
            kind = "Mul"
        else:
            return normalized(g, value)
    tail = value.rank - 1 - axis % value.rank
    wide = (channels, *(1,) * tail)
    lengths = g.choices.one_of([wide, (1, *wide) if len(wide) < value.rank else wide, (), (1,)])
    constant = g.weights(*lengths, dtype=value.dtype, low=0.5, high=2.0)
    if kind == "flipped":
        return g.op("Sub", [constant, value], value.shape, bound=value.bound + 2)
    pair = g.choices.shuffled([value, constant]) if kind in ("Mul", "Add") else [value, constant]
    return g.op(kind, pair, value.shape, bound=2 * value.bound + 2)


def normalized(g: Grower, value: Value) -> Value:
    """A BatchNormalization with constant statistics."""
    channels = value.shape[1][0]
    statistics = [g.weights(channels, low=low, high=1.5) for low in (0.5, -1.0, -1.0, 0.5)]
    return g.op("BatchNormalization", [value, *statistics], value.shape, bound=2 * value.bound + 4, epsilon=g.choices.one_of([1e-5, 1e-3]))


def scaled_convolution(g: Grower) -> None:
    """Scales and shifts before and behind a convolution."""
    value = image(g)
    for _ in range(g.choices.integer(0, 2)):
        value = scaled(g, value, 1)
    value = convolved(g, g.tamed(value, 60))
    for _ in range(g.choices.integer(0, 2)):
        value = scaled(g, value, 1)
    g.tamed(value, 60)


def scaled_product(g: Grower) -> None:
    """Scales and shifts before and behind a Gemm or MatMul."""
    value = g.float_value(2, 3)
    if not is_static(value.shape[-1]) or not value.shape[-1][0]:
        return
    axis = 1 if value.rank == 2 else -1
    for _ in range(g.choices.integer(0, 2)):
        value = scaled(g, value, axis)
    value = multiplied(g, g.tamed(value, 60))
    for _ in range(g.choices.integer(0, 2)):
        value = scaled(g, value, axis)
    g.tamed(value, 60)


def scaled_behind_views(g: Grower) -> None:
    """A factor behind a product that was reshaped and transposed."""
    value = g.fresh(3, shape=((2, 3), (5, 4), (4, 4)))
    result = g.op("MatMul", [value, g.weights(4, 8)], ((2, 3), (5, 4), (8, 8)), bound=16)
    if g.choices.chance(50):
        result = g.op("Add", [result, g.weights(8)], result.shape, bound=17)
    result = g.op("Reshape", [result, g.integers([0, 0, 2, 4])], ((2, 3), (5, 4), (2, 2), (4, 4)))
    if g.choices.chance(70):
        result = g.op("Transpose", [result], ((2, 3), (2, 2), (5, 4), (4, 4)), perm=[0, 2, 1, 3])
    factor = g.number(g.choices.one_of([0.5, 2, 0.35355339, 0]), result, g.choices.integer(0, 1))
    name = g.choices.one_of(["Mul", "Mul", "Div"]) if factor.bound else "Mul"
    g.op(name, g.choices.shuffled([result, factor]) if name == "Mul" else [result, factor], result.shape, bound=40)


def two_norms(g: Grower) -> None:
    """BatchNormalizations and scales in a row, with no layer beside them."""
    value = g.tamed(image(g) if g.choices.chance(70) else g.fresh(2, shape=((2, 3), (4, 4))), 20)
    value = g.op("Sin", [value], value.shape, bound=1.0) if g.choices.chance(50) else value
    for _ in range(g.choices.integer(2, 3)):
        value = normalized(g, value) if g.choices.chance(50) else scaled(g, value, 1)
    g.tamed(value, 60)


def two_products(g: Grower) -> None:
    """Two MatMuls of constants in a row."""
    value = g.float_value(2, 3, bound=8)
    if not is_static(value.shape[-1]) or not value.shape[-1][0]:
        return
    sizes = g.choices.one_of([(8, 2), (16, 4), (2, 8), (4, 4)])
    for size in sizes:
        shape = replaced(value.shape, value.rank - 1, (size, size))
        value = g.op("MatMul", [value, g.weights(value.shape[-1][0], size)], shape, bound=value.shape[-1][0] * value.bound)
    g.tamed(value, 60)


def shared_weights(g: Grower) -> None:
    """One weight in two layers, one of which is scaled."""
    value = g.float_value(2, 3, bound=8)
    if not is_static(value.shape[-1]) or not value.shape[-1][0]:
        return
    size = value.shape[-1][0]
    weight = g.weights(size, size)
    first = g.op("MatMul", [value, weight], value.shape, bound=size * value.bound)
    second = g.op("MatMul", [g.op("Tanh", [first], first.shape, bound=1.0), weight], value.shape, bound=size)
    scaled(g, g.choices.one_of([first, second]), 1 if value.rank == 2 else -1)


def classifier(g: Grower) -> None:
    """A convolution, a norm, an activation, a pool, Flatten and Gemm."""
    value = image(g)
    value = normalized(g, convolved(g, g.tamed(value, 4)))
    value = g.exactly("Relu", g.tamed(value, 30))
    batch, channels = value.shape[:2]
    pooled = g.op("GlobalAveragePool", [value], (batch, channels, (1, 1), (1, 1)))
    flat = g.exactly("Flatten", pooled, shape=(batch, channels), axis=1)
    multiplied(g, g.tamed(flat, 20))


STEPS_OF_LAYERS: tuple[Step, ...] = (
    scaled_convolution, scaled_product, scaled_behind_views, two_norms, two_products, shared_weights, classifier, scaled_convolution,
    scaled_product,
)  # fmt: skip
"""All of them."""

"""Normalizations as exporters write them, and fused ones: the patterns of the pass ``normalize``, and near misses of them."""

from __future__ import annotations

from tests.random_graphs.grower import Grower
from tests.random_graphs.networks import image
from tests.random_graphs.operators import Step, reduced
from tests.random_graphs.values import Shape, Value, fixed, is_static


def written(g: Grower) -> None:
    """(x - mean) / sqrt(variance + epsilon) * scale + shift, or the same without a mean, in one of many spellings."""
    data = _rows(g)
    if g.choices.chance(25):
        _within_casts(g, data)
        return
    scale = _vector(g, data) if g.choices.chance(85) else None
    inside = scale is not None and g.choices.chance(20)
    result = _normalized(g, data, scale if inside else None)
    if scale is not None and not inside:
        result = g.op("Mul", g.choices.shuffled([result, scale]), _wider(result, scale), bound=8.0)
    if g.choices.chance(60):
        shift = _vector(g, data)
        g.op("Add", g.choices.shuffled([result, shift]), _wider(result, shift), bound=9.0)


def _rows(g: Grower) -> Value:
    """A value whose last axis is static and has several numbers; one that has not at times."""
    if g.choices.chance(40):
        return g.float_value(1, 4)
    found = g.pick(lambda v: v.dtype == g.model.kind and v.rank > 0 and is_static(v.shape[-1]) and v.shape[-1][0] > 2)
    if found is not None and g.choices.chance(60):
        return g.tamed(found, 60.0)
    return g.fresh(3, shape=((2, 3), (5, 4), g.choices.one_of([(4, 4), (8, 8), (16, 16)])))


def _normalized(g: Grower, data: Value, scale: Value | None) -> Value:
    """x / sqrt(mean(x²) + epsilon), where x may be centred first; the scale is multiplied with the inverse root."""
    axis = data.rank - 1 if g.choices.chance(92) else g.choices.integer(0, data.rank - 1)
    base = data
    if g.choices.chance(60):
        base = g.op("Sub", [data, _mean(g, data, axis)], data.shape, bound=2 * data.bound)
    root = _root(g, base, axis)
    kind = g.choices.one_of(["Div", "Reciprocal", "one by", "power"])
    if scale is None and kind == "Div":
        return g.op("Div", [base, root[1]], data.shape, bound=8.0)
    if kind == "power":
        inverse = g.op("Pow", [root[0], g.number(-0.5, data)], root[0].shape, bound=300.0)
    elif kind == "one by":
        inverse = g.op("Div", [g.number(1, data), root[1]], root[0].shape, bound=300.0)
    else:
        inverse = g.op("Reciprocal", [root[1]], root[0].shape, bound=300.0)
    if scale is None:
        return g.op("Mul", g.choices.shuffled([base, inverse]), data.shape, bound=8.0)
    scaled = g.op("Mul", g.choices.shuffled([inverse, scale]), _wider(data, scale) if scale.rank > data.rank else data.shape, bound=300.0)
    return g.op("Mul", g.choices.shuffled([base, scaled]), _wider(data, scale), bound=8.0)


def _root(g: Grower, base: Value, axis: int) -> tuple[Value, Value]:
    """The mean square of a value with an epsilon added, and the root of it."""
    if g.choices.chance(50):
        square = g.op("Pow", [base, g.number(g.choices.one_of([2, 2, 2, 2, 4]), base)], base.shape, bound=base.bound**2)
    else:
        square = g.op("Mul", [base, base], base.shape, bound=base.bound**2)
    total = _mean(g, square, axis)
    if base.name.startswith("v") or g.choices.chance(92):  # without it, a constant row divides zero by zero
        epsilon = g.number(g.choices.one_of([1e-3, 1e-2, 0.5]), base, rank=g.choices.integer(0, 1))
        total = g.op("Add", g.choices.shuffled([total, epsilon]), total.shape if total.rank else epsilon.shape, bound=square.bound)
    if g.choices.chance(85):
        return total, g.op("Sqrt", [total], total.shape, bound=2 * base.bound)
    return total, g.op("Pow", [total, g.number(0.5, base)], total.shape, bound=2 * base.bound)


def _mean(g: Grower, value: Value, axis: int) -> Value:
    keep = value.rank > 1 or g.choices.chance(80)
    written_axis = axis - value.rank if g.choices.chance(70) else axis
    return g.with_axes("ReduceMean", value, [written_axis], reduced(value.shape, [axis], keep=keep), 18, keepdims=int(keep))


def _vector(g: Grower, data: Value) -> Value:
    """A number for each index of the last axis: constant, computed, of a higher rank, or only one number."""
    width = data.shape[-1][0] if is_static(data.shape[-1]) else 1
    kind = g.choices.integer(0, 9)
    if kind == 0:
        return g.weights(*(1,) * g.choices.integer(1, 4), width, dtype=data.dtype, low=0.5, high=1.5)
    if kind == 1:
        return g.op("Add", [g.fresh(1, data.dtype, fixed(width)), g.number(1, data)], fixed(width), bound=5.0)
    if kind == 2:
        return g.number(0.75, data, rank=g.choices.integer(0, 1))
    found = g.weights(width, dtype=data.dtype, low=0.5, high=1.5)
    if kind == 3:
        g.op("Mul", [found, found], found.shape, bound=2.0)  # somebody else uses it too
    return found


def _wider(value: Value, vector: Value) -> Shape:
    """The shape of a sum or product of a value with a vector that may have more axes."""
    return (*fixed(*(1,) * (vector.rank - value.rank)), *value.shape)


def _within_casts(g: Grower, data: Value) -> None:
    """A normalization in another type than that of its data, with a scale in the first one."""
    inner = g.choices.one_of(["float32", "float64"]) if data.dtype != "float64" else "float32"
    cast = g.op("Cast", [data], data.shape, inner, to=_code(inner))
    result = _normalized(g, cast, None)
    outer = data.dtype if g.choices.chance(85) else inner
    back = g.op("Cast", [result], result.shape, outer, bound=8.0, to=_code(outer))
    scale = _vector(g, data if outer == data.dtype else cast)
    g.op("Mul", g.choices.shuffled([scale, back]), _wider(back, scale), bound=8.0)


def _code(dtype: str) -> int:
    return {"float32": 1, "float16": 10, "float64": 11}[dtype]


def after_a_sum(g: Grower) -> None:
    """Add and LayerNormalization, over many rows or few."""
    data = _wide(g)
    skip = g.fresh(3, shape=data.shape) if g.choices.chance(70) else g.op("Tanh", [data], data.shape, bound=1.0)
    kind = g.choices.integer(0, 9)
    if kind == 0:
        skip = g.weights(*(size[0] for size in data.shape[-1:]))
    elif kind == 1:
        skip = g.fresh(2, shape=data.shape[-2:])
    total = g.op("Add", g.choices.shuffled([data, skip]), data.shape, bound=8.0)
    if g.choices.chance(20):
        g.op("Tanh", [total], total.shape, bound=1.0)
    if g.opset < 17:
        g.op("Mul", [_normalized(g, total, None), g.weights(data.shape[-1][0], low=0.5, high=1.5)], total.shape, bound=8.0)
        return
    axis = -1 if g.choices.chance(90) else 1
    lengths = [size[0] for size in data.shape[axis:] if is_static(size)]
    if len(lengths) == len(data.shape[axis:]):
        parts = [g.weights(*lengths, low=0.5, high=1.5), *([g.weights(*lengths)] if g.choices.chance(70) else [])]
        g.op("LayerNormalization", [total, *parts], total.shape, bound=8.0, axis=axis, epsilon=0.01)


def _wide(g: Grower) -> Value:
    """A value [batch, positions, width] with a hundred numbers or some thousands."""
    batch, width = g.choices.one_of([(2, 3), (2, 2)]), g.choices.one_of([32, 32, 32, 8])
    shape = (batch, g.choices.one_of([(5, 4), (5, 4), (16, 16)]), (width, width))
    found = g.pick(lambda v: v.dtype == g.model.kind and v.is_plain and v.rank == 3 and v.shape[2] == shape[2])
    return g.tamed(found, 4.0) if found is not None and g.choices.chance(60) else g.fresh(3, shape=shape)


def fused_with_a_sum(g: Grower) -> None:
    """ONNX Runtime's normalizations of a sum, with a bias and the sum as another result at times."""
    if g.model.kind == "float64":
        return
    centred = g.choices.chance(50)
    width = g.choices.one_of([64, 64, 16])
    shape = ((2, 3), g.choices.one_of([(5, 4), (40, 40)]), (width, width))
    data, skip = g.fresh(3, shape=shape), g.fresh(3, shape=shape)
    scale, shift, bias = g.weights(width, low=0.5, high=1.5), g.weights(width), g.weights(width)
    more: list[Value | None] = [bias] if g.choices.chance(30) else []
    if centred:
        more = [shift if more or g.choices.chance(70) else None, *more]
    results: list[Value | None] = [g.result(shape, data.dtype, 8.0)]
    if g.choices.chance(40):
        results += [None, None, g.result(shape, data.dtype, 9.0)]
    while more and more[-1] is None:
        more.pop()
    name = "SkipLayerNormalization" if centred else "SkipSimplifiedLayerNormalization"
    g.ops(name, [data, skip, scale, *more], results, domain="com.microsoft", epsilon=0.01 if g.choices.chance(70) else None)


def grouped(g: Grower) -> None:
    """GroupNormalization of an image or a signal, whose scale and shift may be inputs."""
    data = image(g, g.choices.one_of([4, 6])) if g.choices.chance(60) else g.fresh(3, shape=((2, 3), (4, 4), (5, 4)))
    channels = data.shape[1][0]
    groups = g.choices.one_of([2, 1, channels])
    if g.opset < 21:
        return
    count = channels
    scale = g.weights(count, low=0.5, high=1.5) if g.choices.chance(85) else g.fresh(1, shape=fixed(count))
    g.op("GroupNormalization", [data, scale, g.weights(count)], data.shape, bound=8.0, num_groups=groups, epsilon=0.01)


STEPS_OF_NORMS: tuple[Step, ...] = (written, after_a_sum, fused_with_a_sum, grouped, grouped, written)
"""All of them."""

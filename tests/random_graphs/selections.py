"""Parts that are taken of what several operators compute, and pointwise convolutions of enlarged images."""

from __future__ import annotations

import numpy as np
import onnx

from tests.random_graphs.grower import Grower
from tests.random_graphs.networks import image
from tests.random_graphs.operators import Step
from tests.random_graphs.values import Value, each, fixed, replaced

_LARGE = 160
_TOKENS, _WIDTH = 128, 16


def rows_of_layers(g: Grower) -> None:
    """Some rows, or one, of layers that work on each row by itself; rows with many numbers at times."""
    value = g.tamed(g.fresh(3, shape=((2, 3), g.choices.one_of([(5, 4), (6, 6), (4, 4)]), (8, 8))), 4.0)
    if g.choices.chance(25):
        value = g.op("MatMul", [value, g.weights(8, _LARGE, low=-0.2, high=0.2)], replaced(value.shape, 2, (_LARGE,) * 2), bound=6.0)
    for _ in range(g.choices.integer(1, 4)):
        value = g.choices.one_of([_activated, _projected, _normalized, _with_residual, _over_heads, _activated])(g, value)
    _taken(g, value)


def _activated(g: Grower, value: Value) -> Value:
    name = g.choices.one_of(["Tanh", "Sigmoid", "Relu", "Softmax"])
    if name == "Relu":
        return g.exactly(name, value)
    return g.op(name, [value], value.shape, bound=1.0, axis=-1 if name == "Softmax" else None)


def _projected(g: Grower, value: Value) -> Value:
    width = value.shape[-1][0]
    product = g.op("MatMul", [value, g.weights(width, width, low=-1 / width, high=1 / width)], value.shape, bound=value.bound)
    return g.op("Add", [product, g.weights(width)], value.shape, bound=value.bound + 1) if g.choices.chance(50) else product


def _normalized(g: Grower, value: Value) -> Value:
    width = value.shape[-1][0]
    if g.opset >= 17 and value.dtype == "float32":
        return g.op("LayerNormalization", [value, g.weights(width)], value.shape, bound=6.0, axis=-1, epsilon=0.1)
    mean = g.with_axes("ReduceMean", value, [-1], replaced(value.shape, 2, (1, 1)), 18, keepdims=1)
    return g.op("Sub", [value, mean], value.shape, bound=2 * value.bound)


def _with_residual(g: Grower, value: Value) -> Value:
    changed = _projected(g, _activated(g, value))
    return g.op("Add", g.choices.shuffled([value, changed]), value.shape, bound=value.bound + changed.bound)


def _over_heads(g: Grower, value: Value) -> Value:
    """Divided into heads that go to the front, and back."""
    batch, length, (width, _) = value.shape
    parts = g.exactly("Reshape", value, g.integers([0, 0, 2, width // 2]), shape=(batch, length, (2, 2), (width // 2,) * 2))
    heads = g.exactly("Transpose", parts, shape=(batch, (2, 2), length, (width // 2,) * 2), perm=[0, 2, 1, 3])
    active = g.op("Tanh", [heads], heads.shape, bound=1.0)
    back = g.op("Transpose", [active], parts.shape, bound=1.0, perm=[0, 2, 1, 3])
    return g.op("Reshape", [back, g.integers([0, g.choices.one_of([0, -1]), width])], value.shape, bound=1.0)


def _taken(g: Grower, value: Value) -> None:
    axis = g.choices.one_of([1, 1, 1, 0, 2])
    if g.choices.chance(50):
        index = g.choices.one_of([0, -1, 1])
        if g.choices.chance(60):
            g.op("Gather", [value, g.integer(index)], (*value.shape[:axis], *value.shape[axis + 1 :]), bound=value.bound, axis=axis)
        else:
            g.op("Gather", [value, g.integers([index])], replaced(value.shape, axis, (1, 1)), bound=value.bound, axis=axis)
        return
    bounds = g.choices.one_of([(0, 1), (0, 2), (-2, 2**31), (-1, 2**63 - 1), (1, 2)])
    length = each(lambda n: len(range(n)[bounds[0] : bounds[1]]), value.shape[axis])
    shape = replaced(value.shape, axis, length)
    if g.opset < 10:
        g.op("Slice", [value], shape, bound=value.bound, starts=[bounds[0]], ends=[bounds[1]], axes=[axis])
    else:
        g.op("Slice", [value, g.integers([bounds[0]]), g.integers([bounds[1]]), g.integers([axis])], shape, bound=value.bound)


def convolved_enlarged(g: Grower) -> None:
    """A pointwise convolution of an enlarged image, or of several images of one size of which some are enlarged."""
    small = image(g)
    if small.dtype != "float32":
        return
    shape = (*small.shape[:2], *(each(lambda n: 2 * n, size) for size in small.shape[2:]))
    parts = [_enlarged(g, small)]
    for _ in range(g.choices.integer(0, 2)):
        other = Value("", small.dtype, shape)
        if other.is_plain and g.choices.chance(50):
            parts.append(g.fresh(4, shape=shape))
        else:
            parts.append(_enlarged(g, g.op("Tanh", [small], small.shape, bound=1.0)))
    channels = small.shape[1][0] * len(parts)
    parts = g.choices.shuffled(parts)
    data = parts[0] if len(parts) == 1 else g.op("Concat", parts, replaced(shape, 1, (channels,) * 2), axis=1)
    out = g.choices.one_of([2, 4, 1, 8])
    window = 1 if g.choices.chance(90) else 3
    bias = [g.weights(out)] if g.choices.chance(60) else []
    sides = [each(lambda n: n + 1 - window, size) for size in shape[2:]]
    g.op("Conv", [data, g.weights(out, channels, window, window), *bias], (shape[0], (out, out), *sides), bound=channels * 40.0)


def _enlarged(g: Grower, value: Value) -> Value:
    mode = g.choices.one_of(["nearest", "linear", "linear", "cubic"])
    coordinates = g.choices.one_of(["half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel"]) if g.opset >= 11 else None
    region = g.constant(np.zeros(0, np.float32)) if g.opset < 13 else None
    scales = g.constant(np.array([1, 1, 2, 2], np.float32))
    shape = (*value.shape[:2], *(each(lambda n: 2 * n, size) for size in value.shape[2:]))
    return g.op("Resize", [value, region, scales], shape, bound=2 * value.bound, mode=mode, coordinate_transformation_mode=coordinates)


def tied_head(g: Grower) -> None:
    """Rows of a table, and a head whose weight is that table the other way round, as older exports of tied models store it."""
    table = g.model.numbers.uniform(-0.25, 0.25, (_TOKENS, _WIDTH)).astype(g.model.kind)
    sizes = g.op("Abs", [g.fresh(1, shape=fixed(3))], fixed(3), exact=True)
    tokens = g.op("Cast", [sizes], fixed(3), "int64", exact=True, to=onnx.TensorProto.INT64)
    rows = g.op("Gather", [g.constant(table), tokens], fixed(3, _WIDTH), g.model.kind, bound=0.25, axis=0)
    active = g.op("Tanh", [rows], rows.shape, bound=0.25)
    g.op("MatMul", [active, g.constant(np.ascontiguousarray(table.T))], fixed(3, _TOKENS), bound=1.0)


STEPS_OF_SELECTIONS: tuple[Step, ...] = (rows_of_layers, convolved_enlarged, tied_head)
"""All of them."""

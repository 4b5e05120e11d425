"""What networks are made of besides layers with constant weights: norms, pools, products of values, attention, recurrence."""

from __future__ import annotations

import numpy as np

from tests.random_graphs.grower import Grower
from tests.random_graphs.operators import Step, reduced
from tests.random_graphs.values import Value, each, fixed, is_static, replaced


def normalize(g: Grower) -> None:
    """Softmax, LogSoftmax, LpNormalization, LayerNormalization, RMSNormalization or a norm of simple parts."""
    value = g.float_value(1, 4)
    axis = g.choices.integer(0, value.rank - 1) - (value.rank if g.choices.chance(50) else 0)
    names = ["Softmax", "LogSoftmax", "parts", *(["LayerNormalization"] * 2 if g.opset >= 17 else [])]
    name = g.choices.one_of([*names, *(["RMSNormalization"] if g.opset >= 23 else [])])
    last = value.shape[-1]
    if name in ("Softmax", "LogSoftmax"):
        g.op(name, [value], value.shape, bound=1.0 if name == "Softmax" else 150.0, axis=axis)
    elif name == "parts" or not is_static(last):
        mean = g.with_axes("ReduceMean", value, [-1], reduced(value.shape, [value.rank - 1], keep=True), 18, keepdims=1)
        centred = g.op("Sub", [value, mean], value.shape, bound=2 * value.bound)
        square = g.op("Pow", [centred, g.number(2, value)], value.shape, bound=4 * value.bound**2)
        variance = g.with_axes("ReduceMean", square, [-1], mean.shape, 18, keepdims=1)
        root = g.op("Sqrt", [g.op("Add", [variance, g.number(0.5, value)], mean.shape)], mean.shape)
        g.op("Div", [centred, root], value.shape, bound=8.0)
    else:
        scale = g.weights(last[0], low=0.5, high=1.5)
        extra = [g.weights(last[0])] if name == "LayerNormalization" and g.choices.chance(60) else []
        g.op(name, [value, scale, *extra], value.shape, bound=6.0, epsilon=0.1)


def image(g: Grower, channels: int = 0) -> Value:
    """A value [batch, channels, height, width] with static channels and room for a window."""
    found = g.pick(
        lambda v: (
            v.dtype == g.model.kind and v.rank == 4 and is_static(v.shape[1]) and v.shape[1][0] > 0 and min(*v.shape[2], *v.shape[3]) >= 4
        )
    )
    if found is not None and (not channels or found.shape[1][0] == channels) and g.choices.chance(80):
        return g.tamed(found, 20)
    batch = g.choices.one_of([(1, 1), (2, 3)])
    sides = g.choices.one_of([fixed(6, 5), ((5, 4), (5, 4)), ((5, 4), (6, 6))])
    return g.fresh(4, shape=(batch, (channels or g.choices.one_of([4, 2, 6]),) * 2, *sides))


def pool(g: Grower) -> None:
    """MaxPool, AveragePool, GlobalAveragePool, GlobalMaxPool, LRN, InstanceNormalization, GroupNormalization."""
    value = image(g)
    channels = value.shape[1][0]
    name = g.choices.one_of(
        ["MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "LRN", "InstanceNormalization", "GroupNormalization"]
    )
    if name in ("MaxPool", "AveragePool"):
        small = tuple(each(lambda n: (n - 2) // 2 + 1, size) for size in value.shape[2:])
        g.op(name, [value], (*value.shape[:2], *small), kernel_shape=[2, 2], strides=[2, 2])
    elif name.startswith("Global"):
        g.op(name, [value], (*value.shape[:2], (1, 1), (1, 1)))
    elif name == "LRN":
        g.op(name, [value], value.shape, size=3)
    elif name == "InstanceNormalization":
        g.op(name, [value, g.weights(channels), g.weights(channels)], value.shape, bound=6.0, epsilon=0.1)
    elif g.opset >= 21:
        g.op(name, [value, g.weights(channels), g.weights(channels)], value.shape, bound=6.0, epsilon=0.1, num_groups=2)


def resize(g: Grower) -> None:
    """Resize to twice the size, by scales or by sizes."""
    value = image(g)
    if value.dtype != "float32":
        return
    mode = g.choices.one_of(["nearest", "linear", "cubic"])
    scales = g.constant(np.array([1, 1, 2, 2], np.float32))
    shape = (*value.shape[:2], *(each(lambda n: 2 * n, size) for size in value.shape[2:]))
    region = g.constant(np.zeros(0, np.float32)) if g.opset < 13 else None
    g.op("Resize", [value, region, scales], shape, bound=2 * value.bound, mode=mode)


def attention(g: Grower) -> None:
    """Scaled dot products of a sequence with itself, of simple parts; or the operator Attention."""
    value = g.tamed(g.fresh(3, shape=((2, 3), (5, 4), (8, 8))), 4.0)
    heads = [_heads(g, value) for _ in range(3)]
    query, key, values = heads
    batch, count, length, size = query.shape
    if g.opset >= 23 and g.choices.chance(50):
        mixed = g.op("Attention", heads, query.shape)
    else:
        turned = g.op("Transpose", [key], (batch, count, size, length), perm=[0, 1, 3, 2])
        scores = g.op("MatMul", [query, turned], (batch, count, length, length), bound=64.0)
        scaled = g.op(g.choices.one_of(["Mul", "Div"]), [scores, g.number(0.5, value)], scores.shape)
        mixed = g.op("MatMul", [g.op("Softmax", [scaled], scores.shape, bound=1.0, axis=-1), values], query.shape, bound=4.0)
    back = g.op("Transpose", [mixed], (batch, length, count, size), bound=4.0, perm=[0, 2, 1, 3])
    g.op("Reshape", [back, g.integers([0, 0, 8])], value.shape, bound=4.0)


def _heads(g: Grower, value: Value) -> Value:
    batch, length, _ = value.shape
    projected = g.op("MatMul", [value, g.weights(8, 8)], value.shape, bound=12.0)
    if g.choices.chance(70):
        projected = g.op("Add", [projected, g.weights(8)], value.shape, bound=13.0)
    parts = g.op("Reshape", [g.tamed(projected, 4.0), g.integers([0, 0, 2, 4])], (batch, length, (2, 2), (4, 4)), bound=4.0)
    return g.op("Transpose", [parts], (batch, (2, 2), length, (4, 4)), bound=4.0, perm=[0, 2, 1, 3])


def quantize(g: Grower) -> None:
    """QuantizeLinear and DequantizeLinear of exact numbers."""
    value = g.float_value(1, 4, exact=True)
    if value.dtype != "float32":
        return
    scale, zero = g.number(0.25, value), g.constant(np.array(3, np.uint8))
    small = g.op("QuantizeLinear", [value, scale, zero], value.shape, "uint8", exact=True)
    g.op("DequantizeLinear", [small, scale, zero], value.shape, value.dtype, bound=64.0, exact=True)


def recurrent(g: Grower) -> None:
    """An LSTM, GRU or RNN over a short sequence of a fixed length: the runtime dies of empty ones."""
    if g.model.kind != "float32":
        return
    value = g.fresh(3, shape=fixed(5, 2, 3))
    name, gates = g.choices.one_of([("GRU", 3), ("LSTM", 4), ("RNN", 1)])
    weights = [g.weights(1, gates * 4, 3), g.weights(1, gates * 4, 4)]
    shape = (value.shape[0], (1, 1), value.shape[1], (4, 4))
    g.op(name, [value, *weights], shape, bound=1.0, hidden_size=4)


def blocks(g: Grower) -> None:
    """SpaceToDepth or DepthToSpace."""
    name = g.choices.one_of(["SpaceToDepth", "DepthToSpace"])
    value = image(g, 4)
    batch, channels, *sides = value.shape
    if name == "DepthToSpace":
        g.exactly(name, value, shape=(batch, (1, 1), *(each(lambda n: n * 2, size) for size in sides)), blocksize=2)
    elif name == "SpaceToDepth" and all(length % 2 == 0 for size in sides for length in size):
        g.exactly(
            name, value, shape=(batch, each(lambda n: n * 4, channels), *(each(lambda n: n // 2, size) for size in sides)), blocksize=2
        )


def matmul(g: Grower) -> None:
    """MatMul of two values that are no constants, Einsum, or Gemm with a broadcast bias."""
    value = g.float_value(2, 3, bound=4.0)
    perm = [*range(value.rank - 2), value.rank - 1, value.rank - 2]
    other = g.op("Transpose", [value], tuple(value.shape[axis] for axis in perm), perm=perm)
    shape = replaced(value.shape, value.rank - 1, value.shape[-2])
    name = g.choices.one_of(["MatMul", "Einsum", "Gemm"])
    if name == "Einsum" and g.opset >= 12:
        g.op(name, [value, value], shape, bound=100.0, equation="...ij,...kj->...ik")
    elif name == "Gemm" and value.rank == 2:
        g.op(name, [value, value, g.number(0.5, value, 1)], shape, bound=50.0, transB=1, alpha=0.5, beta=2.0)
    else:
        g.op("MatMul", [value, other], shape, bound=100.0)


STEPS_OF_NETWORKS: tuple[Step, ...] = (normalize, pool, matmul, resize, attention, quantize, recurrent, blocks, normalize, matmul)
"""All of them."""

"""A network to take statistics of, samples for it, and numpy's statistics to compare with."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from graphopt.graph.layers import layers_of
from graphopt.graph.unfold import unfold
from graphopt.runtime.statistics import Statistics
from graphopt.runtime.trace import trace_values
from tests.weighted import weighted

Arrays = dict[str, np.ndarray[Any, Any]]
NETWORK = """ (float[N, 4, H, W] x, int64[N] ids, bool[N] flags) => (float[N, 5] y, int64[N] same, bool[N] other)
    <float[8, 4, 3, 3] w1, float[8, 1, 3, 3] w2, float[8, 3, 3, 3] w3, float[6, 2, 2, 2] w4, float[5, 4] w5,
     float[6, 3, 2, 2] w6> {
    a = Conv <pads = [1, 1, 1, 1]> (x, w1)
    b = Relu (a)
    c = Conv <group = 8, strides = [2, 2], auto_pad = "SAME_UPPER"> (b, w2)
    d = ConvTranspose <strides = [2, 2]> (c, w3)
    e = Clip (d)
    f = Conv <group = 1, dilations = [2, 1]> (e, w6)
    g = ConvTranspose <group = 2, strides = [2, 1], pads = [1, 0, 0, 1]> (f, w4)
    h = GlobalAveragePool (g)
    i = Flatten (h)
    y = Gemm <transB = 1> (i, w5)
    same = Identity (ids)
    other = Not (flags)
}"""


def network() -> ir.Model:
    """A network of ordinary, depthwise and transposed convolutions, with inputs that are no floats."""
    return with_weights(NETWORK)


def with_weights(text: str) -> ir.Model:
    """A model of ``(inputs) => (outputs) <weights> { nodes }`` with random weights and named nodes."""
    found = re.fullmatch(r"(.*?=> \([^)]*\))\s*<([^<>]*)>(.*)", text, re.DOTALL)
    assert found is not None
    signature, weights, nodes = found.groups()
    shapes = {name: tuple(map(int, lengths.split(","))) for lengths, name in re.findall(r"\[([^\]]*)\] (\w+)", weights)}
    return weighted(signature + nodes, shapes)


def feeds(count: int = 6, seed: int = 1) -> list[Arrays]:
    """Samples of the network, each of another shape."""
    generator = np.random.default_rng(seed)
    sizes = [(int(n), int(h), int(w)) for n, h, w in generator.integers((1, 8, 8), (4, 20, 20), size=(count, 3))]
    return [
        {
            "x": (generator.normal(size=(n, 4, h, w)) * (1 + index)).astype(np.float32),
            "ids": np.arange(n, dtype=np.int64),
            "flags": np.ones(n, dtype=np.bool_),
        }
        for index, (n, h, w) in enumerate(sizes)
    ]


def fetched(model: ir.Model, samples: Sequence[Arrays], name: str) -> list[np.ndarray[Any, Any]]:
    """A value for each sample."""
    return [trace_values(model, feed, [name])[name] for feed in samples]


def all_layers(model: ir.Model) -> tuple[str, ...]:
    """The names of all layers."""
    return tuple(layer.name for layer in layers_of(model))


def assert_gram(model: ir.Model, samples: Sequence[Arrays], statistics: Statistics) -> None:
    """Asserts that the moments of all layers are those of numpy on fetched inputs."""
    for layer in layers_of(model):
        columns = [unfold(layer, array.astype(np.float64)) for array in fetched(model, samples, layer.input.name or "")]
        x = np.concatenate(columns, axis=-1)
        found = statistics.layers[layer.name]
        gram = x @ x.swapaxes(-1, -2)
        assert found.n == x.shape[-1]
        np.testing.assert_allclose(found.gram, gram, rtol=0, atol=1e-5 * np.abs(gram).max())
        np.testing.assert_allclose(found.mean, x.mean(axis=-1), rtol=0, atol=1e-5 * np.abs(x).max())


def assert_same(found: Statistics, expected: Statistics) -> None:
    """Asserts that two statistics agree: counts, extremes and histograms exactly, sums to rounding."""
    assert found.samples == expected.samples
    assert found.states == expected.states
    assert list(found.values) == list(expected.values)
    assert list(found.layers) == list(expected.layers)
    for name, value in expected.values.items():
        other = found.values[name]
        assert (other.count, other.minimum, other.maximum) == (value.count, value.minimum, value.maximum)
        assert other.total == pytest.approx(value.total, rel=1e-9, abs=1e-6)
        assert (other.histogram is None) == (value.histogram is None)
        if value.histogram is not None and other.histogram is not None:
            assert (other.histogram.exponent, other.histogram.outside) == (value.histogram.exponent, value.histogram.outside)
            np.testing.assert_array_equal(other.histogram.counts, value.histogram.counts)
        if value.channels is not None:
            assert other.channels is not None
            np.testing.assert_array_equal(other.channels.minimum, value.channels.minimum)
            np.testing.assert_array_equal(other.channels.maximum, value.channels.maximum)
    for name, layer in expected.layers.items():
        assert found.layers[name].n == layer.n
        np.testing.assert_allclose(found.layers[name].gram, layer.gram, rtol=0, atol=1e-6 * np.abs(layer.gram).max())
        np.testing.assert_allclose(found.layers[name].total, layer.total, rtol=0, atol=1e-6 * np.abs(layer.total).max())

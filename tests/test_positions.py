"""Tests of taking some positions of a layer with many."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphopt.runtime.statistics import Request, collect, positions
from tests.measured import all_layers, with_weights

CONVOLUTION = (
    "(float[N, 4, H, W] x) => (float[N, 6, P, Q] y) <float[6, 4, 3, 3] w> { y = Conv <pads = [1, 1, 1, 1], strides = [1, 2]> (x, w) }"
)


def test_some_positions_tell_what_all_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a layer with many positions some are taken, of every sample; their moments belong together and come close to those of all."""
    model, original = with_weights(CONVOLUTION), with_weights(CONVOLUTION)
    generator = np.random.default_rng(5)
    samples = [{"x": 1 + generator.normal(size=(2, 4, 40, 40)).astype(np.float32)} for _ in range(8)]
    [name] = all_layers(model)
    request = Request(layers=(name,))
    whole = collect(model, samples, request).layers[name]
    assert whole.n == 8 * 2 * 40 * 20
    monkeypatch.setattr(positions, "LEAST", 2000)
    monkeypatch.setattr(positions, "TIMES", 1)
    some = collect(model, samples, request, original=original).layers[name]
    assert some.n == 2000
    np.testing.assert_allclose(some.mean, whole.mean, atol=0.1)
    np.testing.assert_allclose(some.gram / some.n, whole.gram / whole.n, atol=0.3)
    assert some.cross is not None
    np.testing.assert_allclose(some.cross, some.gram, rtol=1e-5)
    again = collect(model, samples, request, memory=1).layers[name]
    np.testing.assert_array_equal(again.gram, some.gram)


@given(st.integers(0, 5000), st.integers(1, 300), st.integers(1, 70))
def test_positions_are_spread(count: int, rows: int, samples: int) -> None:
    """Positions of a sample rise, are no more than its share, and one lies in each stretch of it; pieces give them all."""
    drawn = positions.Positions(samples)
    drawn.begin(3)
    found = drawn.drawn(count, rows)
    assert found.size == min(count, drawn.most(rows))
    assert not found.size or (found[0] >= 0 and found[-1] < count and (np.diff(found) > 0).all())
    np.testing.assert_array_equal(np.concatenate([np.zeros(0, np.int64), *drawn.pieces(count, rows)]), found)

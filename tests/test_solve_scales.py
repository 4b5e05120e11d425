"""Scales that prepare a layer for quantization (thresholds, equalization), and bias correction."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from graphopt.graph.edits import Builder, Names
from graphopt.runtime.session import open_session
from graphopt.solve.equalize import equalizing_scales
from graphopt.solve.grid import Scheme, fit_extremes, round_to_nearest
from graphopt.solve.smooth import Inputs, best_threshold, expected_error, measured_error, threshold_scales
from graphopt.targets.emit import dynamic_quantize_matmul

Array = np.ndarray[Any, Any]


@pytest.fixture
def outliers() -> tuple[Array, Array]:
    """A weight ``[48, 32]`` and inputs ``[32, 2000]`` of four calls, two channels of which are fifty times as large, off centre."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((32, 2000))
    x[[3, 20]] = 50 * x[[3, 20]] + 80
    return rng.standard_normal((48, 32)), x


def inputs_of(x: Array, calls: int = 4) -> Inputs:
    """Extremes by call, and mean squares."""
    parts = np.split(x, calls, axis=1)
    low, high = (np.stack([extreme(part, axis=1) for part in parts]) for extreme in (np.min, np.max))
    return Inputs(low, high, (x**2).mean(axis=1))


def int8_error(weight: Array, x: Array, scales: Array, calls: int = 4) -> float:
    """Mean squared error of products of 8-bit data (one scale a call) and 8-bit weights (one scale a row)."""
    parts = np.split(x, calls, axis=1)
    return math.fsum(measured_error(weight, part.T, part.min(axis=1), part.max(axis=1), scales) for part in parts) / len(x.T)


def test_measured_error_is_the_runtimes(outliers: tuple[Array, Array]) -> None:
    """The error that scales are judged by is that of the operator which the layer becomes."""
    weight, x = outliers
    stored = round_to_nearest(weight[None].astype(np.float32), fit_extremes(weight[None], Scheme(8)))
    model = ir.from_onnx_text(
        '<ir_version: 8, opset_import: ["": 18, "com.microsoft": 1]> graph (float[N, 32] x) => (float[N, 48] y) { y = Identity(x) }'
    )
    anchor = model.graph[0]
    new = dynamic_quantize_matmul(Builder(anchor, Names(model)), model.graph.inputs[0], stored)
    new.type, new.shape, model.graph.outputs[0] = anchor.outputs[0].type, anchor.outputs[0].shape, new
    model.graph.remove(anchor)
    rows = x.T.astype(np.float32)
    [found] = open_session(model).run({"x": rows}).values()
    error = float(np.square(found - rows @ weight.T.astype(np.float32), dtype=np.float64).sum())
    assert measured_error(weight, rows, x.min(axis=1), x.max(axis=1), np.ones(32)) == pytest.approx(error, rel=1e-2)


def test_chosen_scales_lower_the_real_error(outliers: tuple[Array, Array]) -> None:
    """Outliers shrink, all else stays, and the product in 8 bits errs by less than a fifth."""
    weight, x = outliers
    scales = best_threshold(weight, inputs_of(x))
    assert sorted(np.argsort(scales)[-2:]) == [3, 20]
    np.testing.assert_array_equal(np.delete(scales, [3, 20]), 1.0)
    assert int8_error(weight, x, scales) < 0.2 * int8_error(weight, x, np.ones(32))


def test_outliers_in_other_channels_cost_no_step(outliers: tuple[Array, Array]) -> None:
    """On data whose outliers are in channels that were small on the samples, the scales lose next to nothing."""
    weight, x = outliers
    scales, moved = best_threshold(weight, inputs_of(x)), np.roll(x, 5, axis=0)
    assert (inputs_of(moved).steps(scales) <= inputs_of(moved).steps(np.ones(32))).all()
    assert int8_error(weight, moved, scales) < 2 * int8_error(weight, moved, np.ones(32))


def test_few_calls_are_trusted_less(outliers: tuple[Array, Array]) -> None:
    """The same ranges seen in more calls allow a lower threshold: weights of outliers grow by more."""
    weight, x = outliers
    x[:, :] = np.where(np.arange(32)[:, None] < 16, x * 3, x)
    few, many = (best_threshold(weight, inputs_of(x, calls)) for calls in (1, 50))
    assert (few <= many).all()
    assert few.max() < many.max()


def test_ranges_of_single_calls_count() -> None:
    """Channels that are large in turn, one in each call, leave every call with one outlier: scaling one alone gains nothing."""
    low, high = np.full((4, 4), -1.0), np.eye(4) * 99 + 1
    apart, together = Inputs(low, high, np.full(4, 100.0)), Inputs(low, np.tile(high.max(axis=0), (4, 1)), np.full(4, 100.0))
    ones = np.ones(4)
    np.testing.assert_allclose(apart.steps(ones), together.steps(ones))
    first = np.array([100.0, 1.0, 1.0, 1.0])
    assert apart.steps(first).mean() < together.steps(first).mean()


def test_expected_error_predicts_the_real_one(outliers: tuple[Array, Array]) -> None:
    """The noise model is within a factor of 1.5 of measured errors, with and without scales."""
    weight, x = outliers
    for scales in (np.ones(32), best_threshold(weight, inputs_of(x))):
        assert 1 / 1.5 < expected_error(weight, inputs_of(x), scales) / int8_error(weight, x, scales) < 1.5


def test_even_inputs_need_no_threshold() -> None:
    """Nothing is scaled where there is nothing to gain, nothing was seen, or what was seen is no number."""
    weight = np.random.default_rng(0).standard_normal((8, 6))
    for reach in (1.0, 0.0, np.nan, np.inf):
        inputs = Inputs(np.full((2, 6), -reach), np.full((2, 6), reach), np.ones(6) / 3)
        np.testing.assert_array_equal(best_threshold(weight, inputs), np.ones(6))
    np.testing.assert_array_equal(threshold_scales(np.array([1.0, 8.0]), 2.0), [1.0, 4.0])


def test_equalized_ranges_meet_in_the_middle() -> None:
    """Both weights get the geometric mean of the two ranges; what one of them does not use stays."""
    produced, consumed = np.array([100.0, 1.0, 0.0, 2.0]), np.array([1.0, 4.0, 3.0, 0.0])
    scales = equalizing_scales(produced, consumed)
    np.testing.assert_allclose((produced / scales)[:2], (consumed * scales)[:2])
    np.testing.assert_array_equal(scales[2:], [1.0, 1.0])


def test_equalization_keeps_the_function() -> None:
    """Through a Relu the scaled pair computes the same."""
    rng = np.random.default_rng(0)
    first, second, x = rng.standard_normal((5, 3)), rng.standard_normal((2, 5)), rng.standard_normal((3, 20))
    scales = equalizing_scales(np.abs(first).max(axis=1), np.abs(second).max(axis=0))
    after = (second * scales) @ np.maximum((first / scales[:, None]) @ x, 0)
    np.testing.assert_allclose(after, second @ np.maximum(first @ x, 0))

"""Scales that prepare a layer for quantization (SmoothQuant, Outlier Suppression+, equalization), and bias correction."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from graphopt.solve.equalize import equalizing_scales
from graphopt.solve.grid import Scheme, fit_extremes, round_to_nearest
from graphopt.solve.smooth import Inputs, best_smooth, best_threshold, expected_error, smooth_scales, threshold_scales

Array = np.ndarray[Any, Any]


@pytest.fixture
def outliers() -> tuple[Array, Array]:
    """A weight ``[48, 32]`` and inputs ``[32, 2000]``, two channels of which are fifty times as large, off centre."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((32, 2000))
    x[[3, 20]] = 50 * x[[3, 20]] + 80
    return rng.standard_normal((48, 32)), x


def inputs_of(x: Array) -> Inputs:
    """Extremes and mean squares."""
    return Inputs(x.min(axis=1), x.max(axis=1), (x**2).mean(axis=1))


def int8_error(weight: Array, x: Array) -> float:
    """Mean squared error of a product of 8-bit inputs (one scale) and 8-bit weights (one scale a row)."""
    low, high = min(x.min(), 0.0), max(x.max(), 0.0)
    scale = (high - low) / 255
    zero_point = np.rint(-low / scale)
    rounded = (np.clip(np.rint(x / scale) + zero_point, 0, 255) - zero_point) * scale
    on_grid = round_to_nearest(weight[None], fit_extremes(weight[None], Scheme(8))).weight[0]
    return float(((on_grid @ rounded - weight @ x) ** 2).mean(axis=1).sum())


def test_smooth_scales_balance_ranges(outliers: tuple[Array, Array]) -> None:
    """At alpha one half the ranges of inputs and weights become alike in every channel."""
    weight, x = outliers
    reach, weight_reach = np.abs(x).max(axis=1), np.abs(weight).max(axis=0)
    scales = smooth_scales(reach, weight_reach, 0.5)
    ratio = (reach / scales) / (weight_reach * scales)
    np.testing.assert_allclose(ratio, ratio[0])
    assert np.log(scales).mean() == pytest.approx(0.0, abs=1e-12)


def test_smooth_scales_of_dead_channels() -> None:
    """Channels without inputs or weights keep the scale one, and tiny ones do not explode."""
    scales = smooth_scales(np.array([0.0, 1.0, 4.0, 1e-30]), np.array([1.0, 0.0, 4.0, 1.0]), 0.8)
    assert scales[0] == scales[1] == 1.0
    assert np.isfinite(scales).all()
    np.testing.assert_array_equal(smooth_scales(np.zeros(3), np.ones(3), 0.5), np.ones(3))


def test_chosen_scales_lower_the_real_error(outliers: tuple[Array, Array]) -> None:
    """SmoothQuant, and shift with Outlier Suppression+, both beat the plain 8-bit product on real values."""
    weight, x = outliers
    plain = int8_error(weight, x)
    inputs = inputs_of(x)
    smooth = best_smooth(weight, inputs)
    assert int8_error(weight * smooth, x / smooth[:, None]) < 0.2 * plain
    shift, shifted = inputs.shifted(x.mean(axis=1))
    scales = best_threshold(weight, shifted)
    assert scales.min() >= 1.0
    assert int8_error(weight * scales, (x - shift[:, None]) / scales[:, None]) < 0.2 * plain


def test_shift_centres_the_inputs(outliers: tuple[Array, Array]) -> None:
    """After the shift each channel reaches equally far to both sides, and the mean squares are those of shifted values."""
    _, x = outliers
    shift, shifted = inputs_of(x).shifted(x.mean(axis=1))
    np.testing.assert_allclose(shifted.low, -shifted.high)
    np.testing.assert_allclose(shifted.energy, ((x - shift[:, None]) ** 2).mean(axis=1))


def test_expected_error_predicts_the_real_one(outliers: tuple[Array, Array]) -> None:
    """The noise model is within a factor of 1.5 of measured errors, with and without scales."""
    weight, x = outliers
    for scales in (np.ones(32), best_smooth(weight, inputs_of(x))):
        expected = expected_error(weight, inputs_of(x), scales)
        assert 1 / 1.5 < expected / int8_error(weight * scales, x / scales[:, None]) < 1.5


def test_even_inputs_need_no_threshold() -> None:
    """Nothing is scaled where there is nothing to gain, or nothing was seen."""
    weight = np.random.default_rng(0).standard_normal((8, 6))
    even = Inputs(-np.ones(6), np.ones(6), np.ones(6) / 3)
    np.testing.assert_array_equal(best_threshold(weight, even), np.ones(6))
    np.testing.assert_array_equal(best_threshold(weight, Inputs(np.zeros(6), np.zeros(6), np.zeros(6))), np.ones(6))
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

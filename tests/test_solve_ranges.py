"""Ranges of activations from histograms."""

from __future__ import annotations

from typing import Any

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from graphopt.solve.ranges import Histogram, Range, entropy, extremes, least_error, percentile

Array = np.ndarray[Any, Any]
RULES = [extremes, percentile, least_error, entropy]


def histogram_of(values: Array, bins: int = 2048) -> Histogram:
    """Counts between the extremes."""
    counts, _ = np.histogram(values, bins, (values.min(), values.max()))
    return Histogram(counts, float(values.min()), float(values.max()))


def mean_square(values: Array, chosen: Range) -> float:
    """The real error of 8-bit codes on values."""
    scale, zero_point = chosen.grid()
    codes = np.clip(np.rint(values / scale) + zero_point, 0, 255)
    return float((((codes - zero_point) * scale - values) ** 2).mean())


@hypothesis.given(st.integers(0, 2**32 - 1), st.floats(-5, 5), st.floats(1e-6, 1e4), st.sampled_from(RULES))
def test_every_rule_keeps_zero_and_stays_inside(seed: int, mean: float, size: float, rule: Any) -> None:
    """Whatever the values, zero has a code of its own and no range goes beyond the extremes and zero."""
    values = np.random.default_rng(seed).standard_normal(500) * size + mean * size
    histogram = histogram_of(values, 256)
    chosen, whole = rule(histogram), extremes(histogram)
    assert whole.low - 1e-9 * size <= chosen.low <= 0 <= chosen.high <= whole.high + 1e-9 * size
    scale, zero_point = chosen.grid()
    assert scale > 0
    assert 0 <= zero_point <= 255


@hypothesis.given(st.floats(-100, 0), st.floats(0, 100))
def test_grid_rounds_within_half_a_step(low: float, high: float) -> None:
    """Values in the range are at most half a step from a code; rounding the zero point clips at most half a step too."""
    scale, zero_point = Range(low, high).grid()
    values = np.linspace(low, high, 1001)
    restored = (np.clip(np.rint(values / scale) + zero_point, 0, 255) - zero_point) * scale
    assert (np.abs(restored - values) <= scale * 0.5001).all()


@pytest.mark.parametrize("rule", [percentile, least_error, entropy])
def test_outliers_are_cut(rule: Any) -> None:
    """One value among many, a hundred times as large as the others, is not covered, and the others' mean error falls."""
    values = np.append(np.random.default_rng(0).standard_normal(200_000), 300.0)
    chosen = rule(histogram_of(values, 8192))
    assert chosen.high < 250
    if rule is not percentile:
        assert mean_square(values[:-1], chosen) < mean_square(values[:-1], extremes(histogram_of(values)))


@pytest.mark.parametrize("values", [np.random.default_rng(0).laplace(size=50_000), np.abs(np.random.default_rng(1).standard_t(3, 50_000))])
def test_least_error_is_near_the_optimum(values: Array) -> None:
    """The mean squared error is within 1 % of an exhaustive search over both ends, and never above the extremes'."""
    histogram = histogram_of(values)
    found = mean_square(values, least_error(histogram))
    ends = np.linspace(0.02, 1.0, 100)
    lows = ends if histogram.low < -1e-3 else [0.0]
    whole = extremes(histogram)
    best = min(mean_square(values, Range(whole.low * low, whole.high * high)) for low in lows[::4] for high in ends[::2])
    assert found <= 1.01 * best
    assert found <= mean_square(values, whole) * 1.0001


def test_least_error_counts_what_is_made_of_values() -> None:
    """Where a HardSwish follows, no codes are spent below -3, and what comes of the values is closer; constant results need no grid."""
    values = np.random.default_rng(0).normal(-4, 5, 50_000)

    def hard_swish(values: Array) -> Array:
        made: Array = values * np.clip(values / 6 + 0.5, 0, 1)
        return made

    def error(chosen: Range) -> float:
        scale, zero_point = chosen.grid()
        codes = np.clip(np.rint(values / scale) + zero_point, 0, 255)
        return float(((hard_swish((codes - zero_point) * scale) - hard_swish(values)) ** 2).mean())

    plain, chosen = least_error(histogram_of(values)), least_error(histogram_of(values), hard_swish)
    assert plain.low < -15
    assert -3.5 < chosen.low < -2.5
    assert error(chosen) < 0.5 * error(plain)
    assert least_error(histogram_of(values), np.zeros_like) == extremes(histogram_of(values))


def test_percentile_counts_values() -> None:
    """The middle 90 % of a uniform distribution."""
    chosen = percentile(histogram_of(np.linspace(-1, 1, 100_001)), 0.9)
    assert chosen.low == pytest.approx(-0.9, abs=1e-3)
    assert chosen.high == pytest.approx(0.9, abs=1e-3)
    assert percentile(histogram_of(np.array([-1.0, 3.0])), 1.0) == Range(-1.0, 3.0)


def test_entropy_keeps_a_uniform_distribution() -> None:
    """Where every value counts alike nothing is cut."""
    chosen = entropy(histogram_of(np.linspace(-2, 2, 100_000)))
    assert chosen.low < -1.9
    assert chosen.high > 1.9


@pytest.mark.parametrize("rule", RULES)
def test_nothing_seen(rule: Any) -> None:
    """No values, or one value over and over, give its range with zero."""
    assert rule(Histogram(np.zeros(16, np.int64), 0.0, 0.0)) == Range(0.0, 0.0)
    assert rule(Histogram(np.array([0, 7]), 3.0, 3.0)) == Range(0.0, 3.0)
    assert Range(0.0, 0.0).grid() == (1.0, 0)


def test_clamp_of_a_following_activation() -> None:
    """What Relu or Clip cuts off needs no codes; a range beyond the limits collapses onto zero and the limit."""
    assert Range(-3.0, 9.0).clamped(0.0, None) == Range(0.0, 9.0)
    assert Range(-3.0, 9.0).clamped(0.0, 6.0) == Range(0.0, 6.0)
    assert Range(-3.0, 0.0).clamped(0.0, 6.0) == Range(0.0, 0.0)
    assert Range(-3.0, 9.0).clamped(None, None) == Range(-3.0, 9.0)


def test_ranges_hold_zero() -> None:
    """A range without zero is a mistake of the caller; ``of`` widens."""
    assert Range.of(2.0, 5.0) == Range(0.0, 5.0)
    with pytest.raises(AssertionError, match="zero lies outside"):
        Range(1.0, 2.0)

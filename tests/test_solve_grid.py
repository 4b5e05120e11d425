"""Uniform grids: rounding, ranges and the search for scales."""

from __future__ import annotations

import itertools
from typing import Any

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from graphopt.errors import RecipeError
from graphopt.solve.grid import Grid, Scheme, fit_errors, fit_extremes, round_to_nearest

Array = np.ndarray[Any, Any]

schemes = st.builds(
    Scheme, st.sampled_from([2, 3, 4, 7, 8]), st.booleans(), st.one_of(st.sampled_from(["tensor", "channel"]), st.sampled_from([3, 16, 32]))
) | st.builds(Scheme, st.sampled_from([2, 4, 8]), st.just(True), st.sampled_from(["channel", 16]), st.just(True))


@st.composite
def weights(draw: st.DrawFn) -> Array:
    """Weights ``[groups, out, in]`` float32 of any size and magnitude, some rows zero or one-sided."""
    shape = (draw(st.integers(1, 3)), draw(st.integers(1, 4)), draw(st.integers(1, 40)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    weight = rng.standard_normal(shape) * 10.0 ** draw(st.integers(-7, 4))
    shift = draw(st.sampled_from([0.0, 1.0, -3.0]))
    weight = np.abs(weight) * np.sign(shift) if shift else weight
    weight[0, 0] *= draw(st.sampled_from([0.0, 1.0]))
    return weight.astype(np.float32)


@hypothesis.given(weights(), schemes)
def test_rounding_errs_by_half_a_step_at_most(weight: Array, scheme: Scheme) -> None:
    """A grid that covers the extremes holds every weight within half a step, and zero exactly."""
    grid = fit_extremes(weight, scheme)
    found = round_to_nearest(weight, grid)
    scale, zero_point = grid.columns(weight.shape[2])
    assert (np.abs(found.weight.astype(np.float64) - weight) <= np.abs(scale) * 0.50001).all()
    assert found.codes.dtype == (np.int8 if scheme.symmetric else np.uint8)
    assert found.codes.min() >= scheme.low
    assert found.codes.max() <= scheme.high
    assert ((scheme.low <= zero_point) & (zero_point <= scheme.high)).all()
    assert (scale > 0).all() or scheme.mirrored
    assert not grid.dequantize(grid.quantize(np.zeros_like(weight))).any()


@hypothesis.given(weights(), schemes)
def test_search_is_never_worse_than_extremes(weight: Array, scheme: Scheme) -> None:
    """The grid of least weighted error beats the covering grid in that error, scale by scale."""
    importance = np.random.default_rng(0).random((weight.shape[0], weight.shape[2]))
    searched, covering = fit_errors(weight, scheme, importance), fit_extremes(weight, scheme)

    def error(grid: Grid) -> float:
        return float((importance[:, None] * (grid.dequantize(grid.quantize(weight)).astype(np.float64) - weight) ** 2).sum())

    assert error(searched) <= error(covering) * 1.0001 + 1e-30


@hypothesis.given(weights(), schemes)
def test_rounding_twice_changes_nothing(weight: Array, scheme: Scheme) -> None:
    """Weights on the grid are where they were."""
    grid = fit_extremes(weight, scheme)
    codes = grid.quantize(weight)
    np.testing.assert_array_equal(grid.quantize(grid.dequantize(codes)), codes)


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("symmetric", [True, False])
def test_search_comes_near_the_optimum(bits: int, symmetric: bool) -> None:
    """The weighted error is within 1 % (with 16 zero points 2 %) of the best of thousands of scales and all zero points."""
    rng = np.random.default_rng(bits)
    weight = rng.standard_t(4, (1, 24, 32))
    importance = rng.random((1, 32)) + 0.1
    scheme = Scheme(bits, symmetric)
    grid = fit_errors(weight, scheme, importance)
    found = (importance[:, None] * (grid.dequantize(grid.quantize(weight)) - weight) ** 2).sum(axis=2)[0]
    best = np.full(24, np.inf)
    scales = np.geomspace(0.02, 1.5, 3000)[:, None] * np.abs(weight[0]).max(axis=1)
    for zero_point in [0] if symmetric else range(1 << bits):
        codes = np.clip(np.rint(weight[0] / scales[..., None]) + zero_point, scheme.low, scheme.high) - zero_point
        error = (importance[0] * (codes * scales[..., None] - weight[0]) ** 2).sum(axis=2)
        best = np.minimum(best, error.min(axis=0))
    assert found.sum() <= (1.01 if symmetric or bits < 4 else 1.02) * best.sum()


@pytest.mark.parametrize("per", ["tensor", "channel", 16])
def test_scales_follow_the_weight(per: Any) -> None:
    """A weight times a power of two has the same codes and scales times it."""
    weight = np.random.default_rng(0).standard_normal((2, 5, 40)).astype(np.float32)
    importance = np.random.default_rng(1).random((2, 40))
    for symmetric in (True, False):
        scheme = Scheme(4, symmetric, per)
        one, four = (fit_errors(factor * weight, scheme, importance) for factor in (1, 4))
        np.testing.assert_array_equal(4 * one.scale, four.scale)
        np.testing.assert_array_equal(one.quantize(weight), four.quantize(4 * weight))


def test_granularity_gives_the_number_of_scales() -> None:
    """One scale a tensor, a channel, or a block, the last of which may be partial."""
    weight = np.ones((2, 3, 40))
    shapes = [fit_extremes(weight, Scheme(4, per=per)).scale.shape for per in ("tensor", "channel", 16, 64)]
    assert shapes == [(1, 1, 1), (2, 3, 1), (2, 3, 3), (2, 3, 1)]


def test_blocks_are_independent() -> None:
    """Each block's scale is what the block alone would get."""
    weight = np.random.default_rng(0).standard_normal((2, 3, 40)).astype(np.float32)
    importance = np.random.default_rng(1).random((2, 40))
    whole = fit_errors(weight, Scheme(3, False, 16), importance)
    for number, start in enumerate((0, 16, 32)):
        part = slice(start, start + 16)
        alone = fit_errors(weight[:, :, part], Scheme(3, False, "channel"), importance[:, part])
        np.testing.assert_allclose(whole.scale[:, :, number], alone.scale[:, :, 0], rtol=1e-6)


def test_float16_weights() -> None:
    """float16 weights up to the ends of their range get finite float32 scales."""
    weight = np.array([[[65504.0, -65504.0, 6e-8, 0.0], [6e-8, -6e-8, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]], np.float16)
    for scheme in (Scheme(8), Scheme(4, False), Scheme(2, True, "channel", mirrored=True)):
        for grid in (fit_extremes(weight, scheme), fit_errors(weight, scheme, np.ones((1, 4)))):
            assert grid.scale.dtype == np.float32
            assert np.isfinite(grid.dequantize(grid.quantize(weight))).all()
            assert not grid.dequantize(grid.quantize(weight))[0, 2].any()


def test_mirrored_grids_err_less() -> None:
    """Negative scales put the code without a counterpart where it serves."""
    weight = np.random.default_rng(0).standard_normal((1, 64, 32))
    errors = []
    for mirrored in (False, True):
        grid = fit_errors(weight, Scheme(4, per=32, mirrored=mirrored), np.ones((1, 32)))
        errors.append(((grid.dequantize(grid.quantize(weight)) - weight) ** 2).sum())
        assert (grid.scale > 0).all() is np.bool_(not mirrored)
    assert errors[1] < 0.95 * errors[0]


def test_zero_importance_leaves_the_extremes() -> None:
    """Where no input is known the covering grid stays."""
    weight = np.random.default_rng(0).standard_normal((1, 3, 20))
    np.testing.assert_array_equal(fit_errors(weight, Scheme(4), np.zeros((1, 20))).scale, fit_extremes(weight, Scheme(4)).scale)


@pytest.mark.parametrize(
    ("arguments", "message"), [((1,), "1 bits"), ((9,), "9 bits"), ((4, True, 0), "block of 0"), ((4, False, 32, True), "asymmetric")]
)
def test_impossible_schemes_are_refused(arguments: tuple[Any, ...], message: str) -> None:
    """Options out of range raise one line that names the value."""
    with pytest.raises(RecipeError, match=message):
        Scheme(*arguments)


def test_codes_cover_their_bits() -> None:
    """Every scheme has exactly two to the power of its bits codes."""
    for bits, symmetric in itertools.product((2, 4, 7, 8), (True, False)):
        scheme = Scheme(bits, symmetric)
        assert scheme.high - scheme.low + 1 == 2**bits
        assert np.iinfo(scheme.dtype).min <= scheme.low <= 0 <= scheme.high <= np.iinfo(scheme.dtype).max

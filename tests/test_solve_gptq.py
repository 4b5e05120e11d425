"""GPTQ and the column loop: against brute force, and the papers' invariants."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from graphopt.solve.column import in_order, out_of_order, project_columns
from graphopt.solve.gptq import gptq
from graphopt.solve.grid import Grid, Quantized, Scheme, fit_errors, fit_extremes, round_to_nearest
from graphopt.solve.metric import Metric
from graphopt.solve.polish import polish

Array = np.ndarray[Any, Any]

SCHEMES = [
    Scheme(4),
    Scheme(4, True, 16),
    Scheme(2, False, 16),
    Scheme(3, False),
    Scheme(8, True, "tensor"),
    Scheme(4, True, 16, mirrored=True),
]


def layer(groups: int = 1, out: int = 8, width: int = 40, positions: int = 200, seed: int = 0) -> tuple[Array, Array, Array]:
    """A weight, and correlated inputs to calibrate on and to hold out."""
    rng = np.random.default_rng(seed)
    mixing = rng.standard_normal((groups, width, width)) * (np.arange(1, width + 1) ** -0.7)
    seen, unseen = (mixing @ rng.standard_normal((groups, width, positions)) for _ in range(2))
    return rng.standard_normal((groups, out, width)), seen, unseen


def gram_of(x: Array) -> Array:
    """``X X^T`` group by group."""
    return np.asarray(x @ np.swapaxes(x, 1, 2))


class OnGrid:
    """A projection onto one fixed grid with a scale per channel."""

    def __init__(self, grid: Grid) -> None:
        self.grid = grid
        self.starts: list[int] = []

    def begin(self, start: int, weights: Array) -> None:
        """Remembers where steps began."""
        self.starts.append(start)

    def project(self, position: int, column: Array) -> Array:
        """Rounds to nearest."""
        return self.grid.dequantize(self.grid.quantize(column[:, :, None]))[:, :, 0].astype(column.dtype)


def textbook_gptq(weight: Array, gram: Array, grid: Grid) -> Array:
    """GPTQ as the paper writes it, one group, with the Cholesky factor of the inverse."""
    upper = np.linalg.cholesky(np.linalg.inv(gram)).T
    work, result = weight.copy(), np.empty_like(weight)
    for column in range(weight.shape[1]):
        result[:, column] = grid.dequantize(grid.quantize(work[None, :, column, None]))[0, :, 0]
        rest = (work[:, column] - result[:, column]) / upper[column, column]
        work[:, column:] -= np.outer(rest, upper[column, column:])
    return result


@pytest.mark.parametrize("step", [1, 3, 16, 128, 200])
def test_blocked_loop_is_the_papers_loop(step: int) -> None:
    """Lazy batches of any size give what the paper's update of all later columns gives."""
    weight, x, _ = layer(width=150)
    metric = Metric(gram_of(x))
    grid = fit_extremes(weight, Scheme(4))
    onto = OnGrid(grid)
    found = project_columns(weight, metric.factor, onto, step)
    expected = textbook_gptq(weight[0], damped(metric), grid)
    np.testing.assert_allclose(found[0], expected, atol=1e-6)
    assert all(start % step == 0 for start in onto.starts)
    assert len(onto.starts) == -(-150 // step)


def test_orders_undo_each_other() -> None:
    """Rearranged columns come back, group by group."""
    weight = np.random.default_rng(0).standard_normal((3, 2, 7))
    order = np.argsort(np.random.default_rng(1).random((3, 7)), axis=1)
    np.testing.assert_array_equal(out_of_order(in_order(weight, order), order), weight)
    np.testing.assert_array_equal(in_order(weight, order)[2, :, 0], weight[2, :, order[2, 0]])


@pytest.mark.parametrize("scheme", SCHEMES)
def test_diagonal_metric_is_rounding_to_nearest(scheme: Scheme) -> None:
    """Without correlations there is nothing to feed back: the best rounding on the weighted grid is all there is."""
    weight, _, _ = layer(groups=2)
    diagonal = np.random.default_rng(1).random((2, 40)) + 0.1
    metric = Metric(diagonal[:, :, None] * np.eye(40))
    expected = round_to_nearest(weight, fit_errors(weight, scheme, metric.diagonal(2, 40)))
    np.testing.assert_allclose(gptq(weight, metric, scheme).weight, expected.weight, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_never_worse_than_rounding_in_the_metric(scheme: Scheme) -> None:
    """No row's error is above that of rounding to nearest, whatever samples there were."""
    for positions, dead in ((200, 0), (3, 5), (0, 0)):
        weight, x, _ = layer(groups=2, positions=positions)
        x[:, :dead] = 0.0
        metric = Metric(gram_of(x).astype(np.float32))
        weight = weight.astype(np.float32)
        found = metric.error(weight, gptq(weight, metric, scheme).weight)
        for grid in (fit_extremes(weight, scheme), fit_errors(weight, scheme, metric.diagonal(2, 40))):
            rounded = metric.error(weight, round_to_nearest(weight, grid).weight)
            assert found.sum() <= rounded.sum() * (1 + 1e-5)
            if scheme.per != "tensor":
                assert (found <= rounded * (1 + 1e-5)).all()


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("positions", [20, 400])
def test_held_out_error_is_below_roundings(scheme: Scheme, positions: int) -> None:
    """On inputs that it has not seen GPTQ is far better than rounding, and not worse with fewer samples than channels."""
    weight, x, unseen = layer(out=32, width=64, positions=positions)
    metric, held_out = Metric(gram_of(x)), Metric(gram_of(unseen), damping=0.0)
    rounded = round_to_nearest(weight, fit_errors(weight, scheme, metric.diagonal(1, 64)))
    found = gptq(weight, metric, scheme)
    share = held_out.error(weight, found.weight).sum() / held_out.error(weight, rounded.weight).sum()
    assert share < (0.6 if positions == 400 else 1.0)


@pytest.mark.parametrize("scheme", SCHEMES[:4])
def test_groups_are_independent(scheme: Scheme) -> None:
    """All groups at once are the same as one after another."""
    weight, x, _ = layer(groups=4, width=20)
    together = gptq(weight, Metric(gram_of(x)), scheme)
    for group in range(4):
        alone = gptq(weight[group : group + 1], Metric(gram_of(x[group : group + 1])), scheme)
        np.testing.assert_array_equal(together.codes[group], alone.codes[0])
        np.testing.assert_allclose(together.grid.scale[group], alone.grid.scale[0], rtol=1e-6)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_scales_of_weights_and_inputs(scheme: Scheme) -> None:
    """Twice the weight has the same codes and twice the scales; inputs four times as large change nothing."""
    weight, x, _ = layer()
    plain = gptq(weight, Metric(gram_of(x)), scheme)
    scaled = gptq(2 * weight, Metric(gram_of(4 * x)), scheme)
    np.testing.assert_array_equal(plain.codes, scaled.codes)
    np.testing.assert_array_equal(2 * plain.grid.scale, scaled.grid.scale)


def test_no_samples_is_rounding() -> None:
    """Without a Gram matrix the metric is the identity and the result rounding to nearest."""
    weight, _, _ = layer()
    expected = round_to_nearest(weight, fit_errors(weight, Scheme(4), np.ones((1, 40))))
    np.testing.assert_array_equal(gptq(weight, Metric(None), Scheme(4)).codes, expected.codes)


def test_dead_channels_are_rounded() -> None:
    """Weights of channels that never carry anything stay near what they are, in case they do one day."""
    weight, x, _ = layer()
    x[:, [0, 7, 39]] = 0.0
    found = gptq(weight, Metric(gram_of(x)), Scheme(8))
    step = found.grid.scale
    assert (np.abs(found.weight - weight)[:, :, [0, 7, 39]] <= 0.5001 * step).all()


def test_extreme_magnitudes() -> None:
    """Inputs and weights near the ends of float16's range give finite results."""
    weight, x, _ = layer()
    for of_weight, of_inputs in ((1e4, 1e-7), (1e-6, 1e4)):
        gram = gram_of(x * of_inputs).astype(np.float32)
        found = gptq((weight * of_weight).astype(np.float16), Metric(gram), Scheme(4, True, 16))
        assert np.isfinite(found.weight).all()
        assert Metric(gram).error(weight * of_weight, found.weight).sum() < 0.05 * Metric(gram).error(weight * of_weight, 0 * weight).sum()


def damped(metric: Metric) -> Array:
    """H of the first group with its damping, written out."""
    assert metric.gram is not None
    return np.asarray(metric.gram[0] + metric.ridge[0] * np.eye(metric.gram.shape[1]))


def polished(weight: Array, metric: Metric, scheme: Scheme) -> Quantized:
    """GPTQ's result, polished."""
    return polish(weight, metric, gptq(weight, metric, scheme), rounds=3)


def exhaustive(weight: Array, gram: Array, grid: Grid) -> Array:
    """The least error of each row over all codes on a grid."""
    scheme = grid.scheme
    codes = np.array(list(itertools.product(range(scheme.low, scheme.high + 1), repeat=weight.shape[2])))
    steps = codes[None] - grid.zero_point[0][:, :, None]
    change = steps * grid.scale[0][:, :, None] - weight[0][:, None]
    return np.asarray(np.einsum("ock,kl,ocl->oc", change, gram, change).min(axis=1))


@pytest.mark.parametrize("scheme", [Scheme(2, False), Scheme(2), Scheme(3)])
def test_near_the_optimum_of_all_codes(scheme: Scheme) -> None:
    """Over rows of four weights and ordinary correlations, the polished error is within 1 % of the best of all codes on the same grid."""
    for seed in range(3):
        weight, x, _ = layer(out=40, width=4, positions=50, seed=seed)
        x /= np.sqrt((x**2).mean(axis=2, keepdims=True))
        metric = Metric(gram_of(x) + 25 * np.eye(4))
        found = polished(weight, metric, scheme)
        best = exhaustive(weight, damped(metric), found.grid)
        assert metric.error(weight, found.weight).sum() <= 1.01 * best.sum()


@pytest.mark.parametrize("scheme", [Scheme(2, False), Scheme(2), Scheme(3)])
def test_most_rows_are_optimal_at_strong_correlations(scheme: Scheme) -> None:
    """Where the metric is nearly singular, nine rows in ten still get the best of all codes, and the others lose little."""
    for seed in range(3):
        weight, x, _ = layer(out=40, width=4, positions=50, seed=seed)
        metric = Metric(gram_of(x))
        found = polished(weight, metric, scheme)
        best = exhaustive(weight, damped(metric), found.grid)
        error = metric.error(weight, found.weight)[0]
        assert np.mean(error <= 1.0001 * best) >= 0.9
        assert error.sum() <= 1.2 * best.sum()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_polish_lowers_every_row(scheme: Scheme) -> None:
    """Polishing raises no row's error, lowers the whole, and stays on the scheme."""
    weight, x, _ = layer(groups=2, out=16, positions=400)
    weight = weight.astype(np.float32)
    metric = Metric(gram_of(x))
    before = gptq(weight, metric, scheme)
    after = polish(weight, metric, before)
    was, now = (metric.error(weight, one.weight) for one in (before, after))
    assert now.sum() < 0.99 * was.sum()
    assert (now <= was * (1 + 1e-6)).all() or scheme.per == "tensor"
    assert after.codes.dtype == scheme.dtype
    assert after.codes.min() >= scheme.low
    assert after.codes.max() <= scheme.high
    assert scheme.mirrored or (after.grid.scale > 0).all()
    np.testing.assert_array_equal(after.grid.zero_point, before.grid.zero_point)


def test_polish_keeps_what_it_cannot_improve() -> None:
    """Zeros stay zeros, and without samples nothing changes."""
    weight, x, _ = layer()
    weight[:, 2] = 0.0
    metric = Metric(gram_of(x))
    start = gptq(weight, metric, Scheme(2, True, 16))
    assert not polish(weight, metric, start).weight[:, 2].any()
    assert polish(weight, Metric(None), start) is start


def test_output_metric_chooses_groups_as_a_whole() -> None:
    """With gradients on the left, rows depend on each other, and the total is still never above rounding's."""
    weight, x, _ = layer(groups=2)
    gradients = gram_of(layer(groups=2, width=8, seed=5)[1])
    metric = Metric(gram_of(x), 0.01, gradients)
    rounded = round_to_nearest(weight, fit_errors(weight, Scheme(3), metric.diagonal(2, 40)))
    for found in (gptq(weight, metric, Scheme(3)), polish(weight, metric, rounded)):
        assert (metric.error(weight, found.weight).sum(axis=1) <= metric.error(weight, rounded.weight).sum(axis=1)).all()

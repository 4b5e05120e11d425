"""The metric of a layer's inputs: factorization, target and error against plain linear algebra."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from graphopt.errors import SamplesError
from graphopt.solve.metric import Metric

Array = np.ndarray[Any, Any]


def inputs(groups: int, width: int, positions: int, seed: int = 0) -> Array:
    """Correlated inputs ``[groups, width, positions]`` float64 with a mean."""
    rng = np.random.default_rng(seed)
    mixing = rng.standard_normal((groups, width, width)) * (np.arange(1, width + 1) ** -0.7)
    return np.asarray(mixing @ rng.standard_normal((groups, width, positions)) + 0.3)


def gram_of(x: Array) -> Array:
    """``X X^T`` group by group."""
    return np.asarray(x @ np.swapaxes(x, 1, 2))


def damped(metric: Metric) -> Array:
    """H with its damping, written out."""
    assert metric.gram is not None
    return np.asarray(metric.gram + metric.ridge[:, None, None] * np.eye(metric.gram.shape[1]))


def test_factor_and_root_rebuild_the_damped_matrix() -> None:
    """Both forms of the factorization multiply back to H."""
    metric = Metric(gram_of(inputs(3, 12, 40)))
    factor = metric.factor
    np.testing.assert_allclose(np.swapaxes(factor.lower, 1, 2) @ (factor.energy[:, :, None] * factor.lower), damped(metric), rtol=1e-9)
    np.testing.assert_allclose(metric.root @ np.swapaxes(metric.root, 1, 2), damped(metric), rtol=1e-9)
    assert np.all(np.triu(metric.root) == metric.root)


def test_energy_is_the_inverse_of_gptqs_denominators() -> None:
    """``energy`` equals ``1 / U_jj**2`` for the upper Cholesky factor U of the inverse."""
    metric = Metric(gram_of(inputs(1, 9, 40)))
    upper = np.linalg.cholesky(np.linalg.inv(damped(metric)))[0].T
    np.testing.assert_allclose(metric.factor.energy[0], 1 / np.diag(upper) ** 2, rtol=1e-8)


def test_factor_in_another_order() -> None:
    """Each group has its own order of columns."""
    metric = Metric(gram_of(inputs(2, 7, 30)))
    order = metric.activity_order()
    factor = metric.factor_in(order)
    for group in range(2):
        expected = damped(metric)[group][np.ix_(order[group], order[group])]
        np.testing.assert_allclose(factor.lower[group].T @ np.diag(factor.energy[group]) @ factor.lower[group], expected, rtol=1e-9)
        assert np.all(np.diff(np.diagonal(expected)) <= 0)


def test_error_is_the_change_at_the_output() -> None:
    """Without damping the error is the squared change of ``W X``, row by row."""
    x = inputs(2, 8, 50)
    rng = np.random.default_rng(1)
    weight, other = rng.standard_normal((2, 2, 5, 8))
    expected = (((weight - other) @ x) ** 2).sum(axis=2)
    np.testing.assert_allclose(Metric(gram_of(x), damping=0.0).error(weight, other), expected, rtol=1e-9)
    np.testing.assert_allclose(Metric(None).error(weight, other), ((weight - other) ** 2).sum(axis=2), rtol=1e-12)


def test_two_sided_error() -> None:
    """With an output metric the total is ``tr(G D H D^T)``."""
    rng = np.random.default_rng(2)
    weight, other = rng.standard_normal((2, 1, 4, 6))
    gram, gradients = gram_of(inputs(1, 6, 30)), gram_of(inputs(1, 4, 30, seed=3))
    metric = Metric(gram, 0.0, gradients)
    change = (weight - other)[0]
    assert metric.error(weight, other).sum() == pytest.approx(np.trace(gradients[0] @ change @ gram[0] @ change.T))


def test_target_is_the_least_squares_fit() -> None:
    """With little damping the target is the regression of the original outputs on today's inputs."""
    x = inputs(2, 6, 200)
    now = x + 0.2 * np.random.default_rng(4).standard_normal(x.shape)
    weight = np.random.default_rng(5).standard_normal((2, 3, 6))
    found = Metric(gram_of(now), damping=1e-12).target(weight, x @ np.swapaxes(now, 1, 2))
    for group in range(2):
        expected = np.linalg.lstsq(now[group].T, (weight[group] @ x[group]).T, rcond=None)[0].T
        np.testing.assert_allclose(found[group], expected, rtol=1e-6, atol=1e-8)


def test_target_of_unchanged_inputs_is_the_weight() -> None:
    """``C = H`` gives W back at any damping, even where H is singular and a channel is dead."""
    x = inputs(1, 10, 4)
    x[:, 3] = 0.0
    weight = np.random.default_rng(6).standard_normal((1, 5, 10))
    np.testing.assert_allclose(Metric(gram_of(x), 0.1).target(weight, gram_of(x)), weight, rtol=1e-8)
    assert np.array_equal(Metric(gram_of(x)).target(weight.astype(np.float16), None), weight.astype(np.float16).astype(np.float32))


@pytest.mark.parametrize("positions", [0, 1, 5])
@pytest.mark.parametrize("damping", [0.01, 0.0])
def test_singular_matrices_factorize(positions: int, damping: float) -> None:
    """Fewer samples than channels, or none at all, still give a finite factorization."""
    gram = gram_of(inputs(2, 12, positions)).astype(np.float32)
    factor = Metric(gram, damping).factor
    assert np.isfinite(factor.lower).all()
    assert (factor.energy > 0).all()


def test_dead_channels_stay_to_themselves() -> None:
    """A channel without any input neither gives nor takes compensation."""
    x = inputs(1, 6, 30)
    x[:, 2] = 0.0
    lower = Metric(gram_of(x)).factor.lower[0]
    np.testing.assert_array_equal(lower[2], np.eye(6)[2])
    np.testing.assert_array_equal(lower[:, 2], np.eye(6)[2])


def test_float16_like_magnitudes() -> None:
    """Inputs near the ends of float16's range keep the factorization finite and right."""
    for magnitude in (6e4, 6e-8):
        gram = gram_of(inputs(1, 8, 30) * magnitude).astype(np.float32)
        metric = Metric(gram)
        root = metric.root
        np.testing.assert_allclose(root @ np.swapaxes(root, 1, 2), damped(metric), rtol=1e-6)


def test_statistics_that_are_not_finite_are_refused() -> None:
    """NaN in a Gram matrix raises one line that says what happened."""
    gram = gram_of(inputs(1, 4, 10))
    gram[0, 2, 2] = np.nan
    with pytest.raises(SamplesError, match="infinite or NaN"):
        Metric(gram)

"""Regression from moments: what inputs determine is found, what they do not stays, and nothing gets worse on what was kept out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from graphopt.solve.evidence import Evidence
from graphopt.solve.regression import Moments, regression

Array = np.ndarray[Any, Any]


def _product(left: Array, right: Array) -> Array:
    return left @ right.swapaxes(1, 2)


def _moments(x: Array, t: Array) -> Moments:
    found = Moments.empty(x.shape[0], t.shape[1], x.shape[1])
    found.add(x, t, _product)
    return found


def _evidence(x: Array, t: Array) -> Evidence:
    found = Evidence(x.shape[0], t.shape[1], x.shape[1], _product)
    for part in np.array_split(np.arange(x.shape[2]), 3):
        found.add(x[..., part], t[..., part])
    return found


def test_the_weight_and_the_shift_behind_the_outputs() -> None:
    """Two groups, inputs with a mean, outputs without noise."""
    random = np.random.default_rng(0)
    x = random.normal(size=(2, 5, 4000)) + 3.0
    weight, shift = random.normal(size=(2, 3, 5)), random.normal(size=(2, 3))
    t = weight @ x + shift[..., None]
    found = regression(_moments(x[..., :3000], t[..., :3000]), _moments(x[..., 3000:], t[..., 3000:]), np.zeros((2, 3, 5)), affine=True)
    assert found is not None
    np.testing.assert_allclose(found[0], weight, atol=2e-3)
    np.testing.assert_allclose(found[1], shift, atol=2e-2)


def test_what_inputs_do_not_say_stays() -> None:
    """A channel that is always zero keeps its weight."""
    random = np.random.default_rng(1)
    x = random.normal(size=(1, 3, 400))
    x[:, 1] = 0.0
    weight = np.array([[[1.0, 7.0, -1.0]]])
    t = np.array([[[2.0, 0.0, 3.0]]]) @ x
    found = regression(_moments(x, t), _moments(x, t), weight, affine=False)
    assert found is not None
    np.testing.assert_allclose(found[0], [[[2.0, 7.0, 3.0]]], atol=0.02)


def test_noise_changes_nothing() -> None:
    """Where the present weight is right, one fitted to few noisy positions is not taken."""
    random = np.random.default_rng(2)
    x, held = random.normal(size=(1, 40, 50)), random.normal(size=(1, 40, 2000))
    weight = random.normal(size=(1, 2, 40))
    t = weight @ x + random.normal(size=(1, 2, 50))
    assert regression(_moments(x, t), _moments(held, weight @ held), weight, affine=True) is None


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("positions", [40, 70, 200])
def test_positions_say_the_same_as_their_moments(positions: int, affine: bool) -> None:
    """Fewer than inputs, about as many, and more: two groups, correlated inputs with a mean."""
    random = np.random.default_rng(positions)
    x = random.normal(size=(2, 20, positions)).repeat(3, axis=1) + 0.3 * random.normal(size=(2, 60, positions)) + 1.0
    weight = random.normal(size=(2, 10, 60))
    t = (weight + 0.3 * random.normal(size=weight.shape)) @ x + 2.0
    cut = positions * 3 // 4
    parts = (x[..., :cut], t[..., :cut]), (x[..., cut:], t[..., cut:])
    expected = regression(_moments(*parts[0]), _moments(*parts[1]), weight, affine=affine)
    few, held = (_evidence(*part) for part in parts)
    found = few.refitted(held, weight, affine=affine)
    assert expected is not None
    assert found is not None
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-4)  # positions are kept in float32


def test_few_noisy_positions_change_nothing() -> None:
    """As with moments: noise that was fitted is seen on what was kept out."""
    random = np.random.default_rng(3)
    x, held, weight = random.normal(size=(1, 60, 30)), random.normal(size=(1, 60, 25)), random.normal(size=(1, 2, 60))
    few = _evidence(x, weight @ x + random.normal(size=(1, 2, 30)))
    assert few.refitted(_evidence(held, weight @ held), weight, affine=True) is None
    assert few.refitted(Evidence(1, 2, 60, _product), weight, affine=True) is None

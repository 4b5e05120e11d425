"""Low rank: the closest factors in the metric of the inputs."""

from __future__ import annotations

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from graphopt.solve.metric import Metric
from graphopt.solve.rank import Pair, Split, split_product


def _problem(seed: int, out: int, width: int) -> tuple[np.ndarray, Metric]:
    """A weight, and the metric of inputs that hang together and differ in size."""
    random = np.random.default_rng(seed)
    mix = random.normal(size=(width, width)) * np.exp(random.normal(size=(width, 1)))
    x = mix @ random.normal(size=(width, 4 * width))
    return random.normal(size=(1, out, width)), Metric((x @ x.T)[None])


def _error(weight: np.ndarray, found: np.ndarray, metric: Metric) -> float:
    return float(metric.error(weight, found).sum())


def _plain(weight: np.ndarray, rank: int) -> np.ndarray:
    left, values, right = np.linalg.svd(weight[0], full_matrices=False)
    return np.asarray((left[:, :rank] * values[:rank]) @ right[:rank])[None]


@hypothesis.given(st.integers(0, 1000), st.integers(2, 24), st.integers(2, 24), st.data())
@hypothesis.settings(max_examples=40, deadline=None)
def test_two_matrices_lose_what_the_theorem_says(seed: int, out: int, width: int, data: st.DataObject) -> None:
    """The singular values of the whitened weight that are left out (Eckart and Young), for tall and wide weights alike."""
    weight, metric = _problem(seed, out, width)
    rank = data.draw(st.integers(1, min(out, width)))
    pair = Pair.of(weight, metric)
    first, second = pair.factors(rank)
    lost = np.square(np.linalg.svd(weight[0] @ metric.root[0], compute_uv=False)[rank:]).sum()
    total = _error(weight, np.zeros_like(weight), metric)
    assert first.shape == (rank, width)
    assert second.shape == (out, rank)
    assert _error(weight, (second @ first)[None], metric) == pytest.approx(lost, abs=1e-8 * total)
    assert pair.energies[rank:].sum() == pytest.approx(lost, abs=1e-8 * total)


def test_two_matrices_beat_plain_svd() -> None:
    """By far, where inputs differ in size."""
    weight, metric = _problem(0, 32, 48)
    first, second = Pair.of(weight, metric).factors(12)
    assert _error(weight, (second @ first)[None], metric) < 0.5 * _error(weight, _plain(weight, 12), metric)


@pytest.mark.parametrize("metric", [None, "inputs"])
def test_a_separable_kernel_is_found(metric: str | None) -> None:
    """A kernel that is a sum of so many products of a column and a row loses nothing."""
    random = np.random.default_rng(3)
    rank, channels, out = 6, 5, 8
    columns, rows = random.normal(size=(rank, channels * 3)), random.normal(size=(out, rank, 3))
    weight = np.einsum("ort,rn->ont", rows, columns).reshape(1, out, -1)
    known = Metric(None) if metric is None else _problem(4, out, channels * 9)[1]
    np.testing.assert_allclose(split_product(*Split(weight, known, 3).factors(rank)), weight, atol=1e-3)


@hypothesis.given(st.integers(0, 1000))
@hypothesis.settings(max_examples=15, deadline=None)
def test_a_split_kernel_is_close_in_the_metric(seed: int) -> None:
    """Closer than the factors that are closest without it, and closer the more of them there are."""
    weight, metric = _problem(seed, 12, 8 * 9)
    errors = []
    for rank in (3, 6, 9):
        errors.append(_error(weight, split_product(*Split(weight, metric, 3).factors(rank)), metric))
        assert errors[-1] < _error(weight, split_product(*Split(weight, Metric(None), 3).factors(rank)), metric)
    assert errors == sorted(errors, reverse=True)


def test_a_split_kernel_is_where_no_small_step_helps() -> None:
    """Both factors at once, moved a little anywhere, do no better than one in a thousand."""
    weight, metric = _problem(7, 12, 8 * 9)
    random = np.random.default_rng(0)
    first, second = Split(weight, metric, 3).factors(6)
    found = _error(weight, split_product(first, second), metric)
    for scale in (1e-2, 1e-3):
        for _ in range(20):
            moved = (first + scale * random.normal(size=first.shape), second + scale * random.normal(size=second.shape))
            assert _error(weight, split_product(*moved), metric) > 0.999 * found


def test_the_same_factors_each_time() -> None:
    """Nothing of it depends on chance."""
    weight, metric = _problem(5, 16, 8 * 9)
    a, b = (Split(weight, metric, 3).factors(5) for _ in range(2))
    assert all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))

"""Sparsity: as many zeros as were asked for, where they were asked for, and where they cost the outputs least."""

from __future__ import annotations

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from graphopt.solve.metric import Metric
from graphopt.solve.sparsity import Method, Pattern, sparse

METHODS: tuple[Method, ...] = ("sparsegpt", "wanda", "magnitude")


def _problem(seed: int, groups: int = 1, out: int = 24, width: int = 256) -> tuple[np.ndarray, Metric, Metric]:
    """A weight with two metrics of inputs that hang together and differ in size: one to solve with and one to judge by."""
    random = np.random.default_rng(seed)
    mix = random.normal(size=(groups, width, width // 4)) * np.exp(random.normal(size=(groups, width, 1)))
    metrics = []
    for _ in range(2):
        x = mix @ random.normal(size=(groups, width // 4, 2000)) + 0.3 * random.normal(size=(groups, width, 2000))
        metrics.append(Metric(x @ x.swapaxes(1, 2)))
    return random.normal(size=(groups, out, width)).astype(np.float32), metrics[0], metrics[1]


@hypothesis.given(st.integers(0, 1000), st.sampled_from(METHODS), st.sampled_from([(2, 4), (1, 4), (4, 8)]))
@hypothesis.settings(max_examples=20, deadline=None)
def test_n_of_every_m_stay(seed: int, method: Method, pattern: tuple[int, int]) -> None:
    """In each run of m columns of each row, what is left over behind the last run included as far as it goes."""
    stay, among = pattern
    weight, metric, _ = _problem(seed, groups=2, out=5, width=32)
    found = sparse(weight, metric, Pattern(1 - stay / among, among), method)
    assert (np.count_nonzero(found.reshape(-1, among), axis=1) == stay).all()


@pytest.mark.parametrize("method", METHODS)
def test_a_share_is_zero(method: Method) -> None:
    """Anywhere."""
    weight, metric, _ = _problem(0)
    assert np.mean(sparse(weight, metric, Pattern(0.6), method) == 0) == pytest.approx(0.6, abs=0.005)


@pytest.mark.parametrize("pattern", [Pattern(0.5), Pattern(0.5, 4)], ids=["any", "2:4"])
def test_rank_of_the_methods(pattern: Pattern) -> None:
    """On inputs that were not solved with: SparseGPT before Wanda before magnitude."""
    weight, metric, judge = _problem(3)
    errors = [judge.relative(weight, sparse(weight, metric, pattern, method)) for method in METHODS]
    assert errors[0] < 0.9 * errors[1] < 0.81 * errors[2]


def test_without_samples_all_are_magnitude() -> None:
    """There is nothing else to go by."""
    weight = _problem(1)[0]
    found = [sparse(weight, Metric(None), Pattern(0.5), method) for method in METHODS]
    np.testing.assert_array_equal(found[0], found[2])
    np.testing.assert_array_equal(found[1], found[2])
    assert np.abs(weight[found[0] == 0]).max() <= np.abs(weight[found[0] != 0]).min()

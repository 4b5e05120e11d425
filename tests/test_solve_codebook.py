"""Codebooks: k-means against brute force, and what each step promises."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pytest

from graphopt.errors import RecipeError
from graphopt.solve.codebook import Book, cluster
from graphopt.solve.column import descend_columns
from graphopt.solve.kmeans import kmeans, rated
from graphopt.solve.metric import Metric
from tests.test_solve_gptq import gram_of, layer

Array = np.ndarray[Any, Any]

PER: tuple[Literal["tensor", "channel"], ...] = ("tensor", "channel")


def squares(values: Array, price: Array, centres: Array) -> float:
    """What it costs to have each number at its nearest centre."""
    nearest = np.abs(values[:, None] - centres).min(axis=1)
    return float(price @ nearest**2)


def optimum(values: Array, price: Array, count: int) -> float:
    """The least cost of all ways to cut sorted numbers into runs, by dynamic programming."""
    order = np.argsort(values)
    sums = [np.append(0.0, np.cumsum(price[order] * values[order] ** power)) for power in range(3)]
    weight, moment, square = (
        np.maximum(each - each[:, None], 0) if power != 1 else each - each[:, None] for power, each in enumerate(sums)
    )
    cost = square - moment**2 / np.where(weight > 0, weight, 1.0)
    cost[np.tril_indices(values.size + 1, -1)] = np.inf
    best = cost[0]
    for _ in range(count - 1):
        best = (best[:, None] + cost).min(axis=0)
    return float(best[-1])


class TestKmeans:
    """Clustering of numbers."""

    @pytest.mark.parametrize("seed", range(4))
    def test_near_the_best_of_all_clusterings(self, seed: int) -> None:
        """Within a tenth of the optimum, whatever the prices."""
        rng = np.random.default_rng(seed)
        values, price = rng.standard_t(4, 400), rng.lognormal(0, 1, 400)
        for count in (4, 16):
            assert squares(values, price, kmeans(values, price, count)) <= 1.1 * optimum(values, price, count)

    def test_few_numbers(self) -> None:
        """Where there are no more different numbers than centres, each is one."""
        values = np.array([3.0, -1.0, 3.0, 0.5])
        assert kmeans(values, np.ones(4), 8).tolist() == [-1.0, 0.5, 3.0]
        assert kmeans(np.full(5, 2.0), np.ones(5), 4).tolist() == [2.0]

    def test_a_centre_at_zero(self) -> None:
        """One centre is exactly zero where that is asked for, also where no number is."""
        values = np.random.default_rng(0).normal(3.0, 1.0, 1000)
        assert 0.0 in kmeans(values, np.ones(1000), 4, with_zero=True)
        assert 0.0 not in kmeans(values, np.ones(1000), 4)

    @pytest.mark.parametrize("bits", [1.5, 2.5, 4.0])
    def test_entropy_that_was_asked_for(self, bits: float) -> None:
        """The codes have the entropy, at a tenth less error than with as many bits for each code alike."""
        values = np.random.default_rng(1).laplace(size=20_000)
        found = rated(values, np.ones(values.size), 64, bits)
        codes = (np.square(values[:, None] - found.centres) + found.price * found.lengths).argmin(axis=1)
        share = np.bincount(codes) / codes.size
        entropy = -float(share[share > 0] @ np.log2(share[share > 0]))
        assert entropy == pytest.approx(bits, abs=0.1)
        plain = kmeans(values, np.ones(values.size), int(2**bits))
        assert np.square(values - found.centres[codes]).sum() < 0.9 * squares(values, np.ones(values.size), plain)


@pytest.mark.parametrize("per", PER)
@pytest.mark.parametrize("centroids", [2, 4, 16, 200])
def test_less_error_than_the_nearest_centroids(centroids: int, per: Literal["tensor", "channel"]) -> None:
    """In the metric of the inputs, and on inputs that it never saw, groups and all."""
    weight, seen, unseen = layer(groups=2, out=24, width=30)
    book = Book(centroids, per)
    found, plain = cluster(weight, Metric(gram_of(seen)), book), cluster(weight, Metric(None), book)
    assert found.centroids.size <= centroids
    assert found.codes.max() < found.centroids.size
    for x in (seen, unseen):
        errors = [np.square((weight - one.weight) @ x).sum() for one in (found, plain)]
        assert errors[0] < 0.8 * errors[1]


def test_scales_save_rows_of_other_sizes() -> None:
    """Rows a thousand times smaller than others keep their shape, as the channels of depthwise convolutions need."""
    weight, seen, _ = layer(groups=8, out=1, width=9)
    weight *= np.logspace(0, -3, 8)[:, None, None]
    metric = Metric(gram_of(seen))
    errors = {per: metric.error(weight, cluster(weight, metric, Book(4, per)).weight)[-1] for per in PER}
    assert errors["channel"] < 0.2 * errors["tensor"]


def test_centroids_are_the_least_squares_ones() -> None:
    """With two of them, no step of any centroid lowers the error of the codes."""
    weight, seen, _ = layer(out=40)
    metric = Metric(gram_of(seen))
    found = cluster(weight, metric, Book(2, "tensor"))
    best = float(metric.error(weight, found.weight).sum())
    for step in (np.array([1e-3, 0]), np.array([0, 1e-3]), np.array([1e-3, -1e-3])):
        for sign in (1, -1):
            moved = (found.centroids + sign * step)[found.codes]
            assert float(metric.error(weight, moved).sum()) >= best


def test_zeros_stay_zero() -> None:
    """Weights that have to be zero are exactly that, whatever would compensate better."""
    weight, seen, _ = layer(out=20)
    zeros = np.asarray(np.random.default_rng(0).random(weight.shape) < 0.5)
    for book in (Book(4), Book(16, "tensor"), Book(32, bits=2.0)):
        assert not cluster(weight, Metric(gram_of(seen)), book, zeros).weight[zeros].any()


def test_fewer_bits_once_packed() -> None:
    """Codes chosen for error and entropy together beat a codebook of as many bits for each code."""
    weight, seen, _ = layer(out=60, positions=400)
    weight = np.asarray(np.random.default_rng(0).laplace(size=weight.shape))
    metric = Metric(gram_of(seen))
    found, plain = cluster(weight, metric, Book(64, bits=2.0)), cluster(weight, metric, Book(4))
    assert found.entropy == pytest.approx(2.0, abs=0.25)
    assert metric.relative(weight, found.weight) < 0.85 * metric.relative(weight, plain.weight)


def test_coordinate_descent_only_lowers_the_error() -> None:
    """From any start, onto any set that a column's best replacement is taken from."""
    weight, seen, _ = layer(groups=2, out=10)
    metric = Metric(gram_of(seen))
    start = np.rint(weight)
    gram = gram_of(seen) + metric.ridge[:, None, None] * np.eye(weight.shape[2])
    found = descend_columns(weight, start, gram, _Whole())
    assert (found == np.rint(found)).all()
    assert (metric.error(weight, found) <= metric.error(weight, start) * (1 + 1e-9)).all()


class _Whole:
    """Projects onto the integers."""

    def begin(self, start: int, weights: Array) -> None:
        """Never called."""
        raise AssertionError

    def project(self, position: int, column: Array) -> Array:
        """Rounds."""
        return np.asarray(np.rint(column))


def test_same_result_each_time() -> None:
    """Nothing is drawn at random."""
    weight, seen, _ = layer()
    first, second = (cluster(weight, Metric(gram_of(seen)), Book(16)) for _ in range(2))
    assert np.array_equal(first.codes, second.codes)
    assert np.array_equal(first.weight, second.weight)


@pytest.mark.parametrize(("centroids", "bits", "message"), [(1, None, "1 centroids"), (257, None, "2 to 256"), (16, 9.0, "9 bits")])
def test_books_that_do_not_exist(centroids: int, bits: float | None, message: str) -> None:
    """One line says what there is."""
    with pytest.raises(RecipeError, match=message):
        Book(centroids, bits=bits)

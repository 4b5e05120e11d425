"""Which components go, and how a budget is spread: against brute force on small cases."""

from __future__ import annotations

from itertools import combinations, product
from typing import Any

import numpy as np
import pytest

from graphopt.errors import SamplesError
from graphopt.solve.allocation import allocate
from graphopt.solve.metric import Metric
from graphopt.solve.surgeon import Consumer, removals
from graphopt.solve.thin import ThinMetric

Array = np.ndarray[Any, Any]


def _consumer(seed: int, out: int, components: int, width: int, correlated: float = 1.0) -> Consumer:
    generator = np.random.default_rng(seed)
    size = components * width
    mixed = np.eye(size) + correlated * generator.normal(size=(size, size)) / size**0.5
    inputs = mixed @ generator.normal(size=(size, 200))
    places = np.arange(size).reshape(components, width)
    return Consumer(generator.normal(size=(out, size)).astype(np.float32), Metric((inputs @ inputs.T)[None]), places)


def _least(consumer: Consumer, gone: Array) -> float:
    """The error after columns went and the rest was refitted, by least squares."""
    assert isinstance(consumer.metric, Metric)
    assert consumer.metric.gram is not None
    gram = consumer.metric.gram[0] + float(consumer.metric.ridge[0]) * np.eye(consumer.weight.shape[1])
    kept = np.setdiff1d(np.arange(gram.shape[0]), gone)
    fitted = np.zeros_like(consumer.weight, dtype=np.float64)
    fitted[:, kept] = consumer.weight @ gram[:, kept] @ np.linalg.inv(gram[np.ix_(kept, kept)])
    change = consumer.weight - fitted
    return float(np.einsum("ok,kl,ol->", change, gram, change))


@pytest.mark.parametrize("width", [1, 3])
def test_damage_is_that_of_the_refitted_rest(width: int) -> None:
    """After any number of removals, two consumers together."""
    consumers = [_consumer(seed, 5, 6, width) for seed in (0, 1)]
    steps = 0
    for found in removals(consumers):
        gone = consumers[0].places[list(found.gone)].reshape(-1)
        assert found.damage == pytest.approx(sum(_least(consumer, gone) for consumer in consumers), rel=1e-6)
        assert all(not weight[:, gone].any() for weight in found.weights)
        steps += 1
    assert steps == 5


@pytest.mark.parametrize("seed", range(8))
def test_near_the_best_subset(seed: int) -> None:
    """Greedy removal of half of eight components costs at most a third more than the best of all subsets."""
    consumer = _consumer(seed, 6, 8, 1)
    found = list(removals([consumer]))[3]
    best = min(_least(consumer, np.array(subset)) for subset in combinations(range(8), 4))
    assert found.damage <= 1.3 * best


@pytest.mark.parametrize("width", [1, 3])
def test_few_positions_say_the_same_as_their_gram_matrix(width: int) -> None:
    """Columns that no component takes are refitted too."""
    generator = np.random.default_rng(width)
    inputs, weight = generator.normal(size=(60, 8)) @ generator.normal(size=(8, 20)), generator.normal(size=(5, 60)).astype(np.float32)
    places = generator.permutation(60)[:48].reshape(-1, width)
    metrics = Metric((inputs @ inputs.T)[None]), ThinMetric(inputs)
    for thick, thin in zip(*(removals([Consumer(weight, metric, places)]) for metric in metrics), strict=True):
        assert thin.gone == thick.gone
        assert thin.damage == pytest.approx(thick.damage, rel=1e-6)
        np.testing.assert_allclose(thin.weights[0], thick.weights[0], atol=1e-6)


def test_infinite_inputs_are_told() -> None:
    """Few positions are refused as their Gram matrix would be."""
    with pytest.raises(SamplesError, match="infinite or NaN"):
        ThinMetric(np.array([[1.0, np.inf]], np.float32))


def test_twins_do_not_both_go() -> None:
    """Of two channels with the same inputs one goes for nothing, and then the other is dear."""
    inputs = np.random.default_rng(0).normal(size=(4, 300))
    inputs[3] = inputs[0]
    weight = np.ones((3, 4), np.float32)
    first, second, *_ = removals([Consumer(weight, Metric((inputs @ inputs.T)[None], damping=1e-6), np.arange(4)[:, None])])
    assert first.gone[0] in (0, 3)
    assert first.damage < 1e-3 * second.damage


def test_without_samples_the_smallest_go() -> None:
    """No metric: the magnitude of a component's columns decides."""
    weight = np.array([[3.0, 1.0, 2.0]], np.float32)
    assert list(removals([Consumer(weight, Metric(None), np.arange(3)[:, None])]))[-1].gone == (1, 2)


@pytest.mark.parametrize("seed", range(10))
def test_allocation_near_the_best(seed: int) -> None:
    """Convex damages, a cost in which neighbours multiply: at most a tenth above the best of all choices, and within the budget."""
    generator = np.random.default_rng(seed)
    widths = [list(range(8, 0, -1)) for _ in range(4)]
    damage = [
        [rate * (8 - width) ** 2 / width for width in options] for options, rate in zip(widths, generator.uniform(0.2, 5, 4), strict=True)
    ]

    def cost(chosen: Any) -> float:
        return float(sum(a * b for a, b in zip([3, *chosen], [*chosen, 5], strict=True)))

    budget = 0.5 * cost([8] * 4)
    found = allocate(widths, damage, cost, budget)
    assert found is not None
    assert cost(found) <= budget
    best = min(_total(widths, damage, each) for each in product(*widths) if cost(each) <= budget)
    assert _total(widths, damage, found) <= 1.1 * best


def test_no_allocation() -> None:
    """A budget below the smallest widths."""
    assert allocate([[4, 2]], [[0.0, 1.0]], lambda chosen: float(chosen[0]), 1.0) is None


def _total(widths: Any, damage: Any, chosen: Any) -> float:
    return float(sum(costs[options.index(width)] for options, costs, width in zip(widths, damage, chosen, strict=True)))

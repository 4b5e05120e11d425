"""Optimal brain surgeon over coupled columns (Hassibi and Stork 1993, arXiv:2203.07259): which inputs a layer misses least.

Removing the columns ``S`` of ``W`` and refitting the others in the metric ``H`` costs ``tr(W_S (H^-1_SS)^-1 W_S^T)``. Components are
removed from the cheapest on; weights and inverse metric follow each removal, so that what two components share is not counted twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.linalg

from graphopt.solve.metric import Metric

Array = np.ndarray[Any, Any]

STEPS = 48
"""So many steps at least: a step removes one component, or a share of what is left where there are many."""


@dataclass(frozen=True, eq=False)
class Consumer:
    """A layer, or one group of it, that sums over the components.

    Attributes:
        weight: ``[out, K]``.
        metric: of its inputs, one group.
        places: ``[components, width]``, the columns of each component.
    """

    weight: Array
    metric: Metric
    places: Array


@dataclass(frozen=True, eq=False)
class Removal:
    """What some removals left.

    Attributes:
        gone: the components that went, the first to go first.
        damage: the error at the consumers' outputs, summed, with the rest refitted.
        weights: ``[out, K]`` of each consumer, refitted; zero where a component went. Overwritten by the next step.
    """

    gone: tuple[int, ...]
    damage: float
    weights: Sequence[Array]


def removals(consumers: Sequence[Consumer], stops: Sequence[int] = ()) -> Iterator[Removal]:
    """Removes the components of a block step by step, from the one that all consumers together miss least, to the last but one.

    Args:
        consumers: of the same components; at least one.
        stops: numbers of components left at which a step ends.
    """
    states = [_State(consumer) for consumer in consumers]
    left = np.arange(len(consumers[0].places))
    gone: list[int] = []
    damage = 0.0
    while left.size > 1:
        prices = np.sum([state.prices(left) for state in states], axis=0)
        most = min((left.size - stop for stop in stops if stop < left.size), default=left.size - 1)
        cheapest = left[np.argsort(prices, kind="stable")[: max(1, min(left.size // STEPS, most))]]
        damage += sum(state.remove(cheapest) for state in states)
        gone.extend(cheapest.tolist())
        left = left[~np.isin(left, cheapest)]
        yield Removal(tuple(gone), damage, [state.weight for state in states])


class _State:
    """What is left of one consumer: its refitted weight and the inverse of its metric."""

    def __init__(self, consumer: Consumer) -> None:
        self.weight = consumer.weight.astype(np.float64)
        self._places = consumer.places
        self._inverse = _inverse(consumer)

    def prices(self, components: Array) -> Array:
        """What it costs to remove each component alone: ``[components]``."""
        columns = self._places[components]
        weights = self.weight[:, columns].transpose(1, 2, 0)
        if columns.shape[1] == 1:
            single: Array = np.einsum("cwo,cwo->c", weights, weights) / self._inverse[columns[:, 0], columns[:, 0]]
            return single
        blocks = self._inverse[columns[:, :, None], columns[:, None, :]]
        prices: Array = np.einsum("cwo,cwo->c", weights, np.linalg.solve(blocks, weights))
        return prices

    def remove(self, components: Array) -> float:
        """Removes components and refits the rest; returns what it cost."""
        columns = self._places[components].reshape(-1)
        factor = scipy.linalg.cho_factor(self._inverse[np.ix_(columns, columns)])
        weights, rows = self.weight[:, columns], self._inverse[columns]
        cost = float(np.einsum("ow,wo->", weights, scipy.linalg.cho_solve(factor, weights.T)))
        feedback = scipy.linalg.cho_solve(factor, rows)
        self.weight -= weights @ feedback
        self._inverse -= rows.T @ feedback
        # What has gone must not come back through rounding, and its place stays solvable.
        self.weight[:, columns] = 0.0
        self._inverse[columns] = self._inverse[:, columns] = 0.0
        self._inverse[columns, columns] = 1.0
        return cost


def _inverse(consumer: Consumer) -> Array:
    width = consumer.weight.shape[1]
    if consumer.metric.gram is None:
        return np.eye(width)
    damped = consumer.metric.gram[0].astype(np.float64) + float(consumer.metric.ridge[0]) * np.eye(width)
    inverse: Array = scipy.linalg.cho_solve(scipy.linalg.cho_factor(damped), np.eye(width))
    return inverse

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

from graphopt.solve.blas import times
from graphopt.solve.metric import Metric
from graphopt.solve.thin import ThinMetric, ThinState

Array = np.ndarray[Any, Any]

STEPS = 48
"""So many steps at least: a step removes one component, or a share of what is left where there are many."""
_WIDE = 2048
"""Wider matrices are followed in float32 and in a third of the steps: among so many columns neither last digits nor last places matter."""
_DEAD = 0.2
"""Share of columns that have gone at which matrices are copied without them."""


@dataclass(frozen=True, eq=False)
class Consumer:
    """A layer, or one group of it, that sums over the components.

    Attributes:
        weight: ``[out, K]``.
        metric: of its inputs, one group.
        places: ``[components, width]``, the columns of each component.
    """

    weight: Array
    metric: Metric | ThinMetric
    places: Array


@dataclass(frozen=True, eq=False)
class Removal:
    """What some removals left.

    Attributes:
        gone: the components that went, the first to go first.
        damage: the error at the consumers' outputs, summed, with the rest refitted.
    """

    gone: tuple[int, ...]
    damage: float
    _states: Sequence[_State | ThinState]

    @property
    def weights(self) -> list[Array]:
        """``[out, K]`` of each consumer, refitted; zero where a component went. To be read before the next step."""
        return [state.weight for state in self._states]


def removals(consumers: Sequence[Consumer], stops: Sequence[int] = ()) -> Iterator[Removal]:
    """Removes the components of a block step by step, from the one that all consumers together miss least, to the last but one.

    Args:
        consumers: of the same components; at least one.
        stops: numbers of components left at which a step ends.
    """
    states = [_state(consumer) for consumer in consumers]
    steps = STEPS if max(consumer.weight.shape[1] for consumer in consumers) <= _WIDE else STEPS // 3
    left = np.arange(len(consumers[0].places))
    del consumers  # a wide metric takes as much memory as its inverse
    gone: list[int] = []
    damage = 0.0
    while left.size > 1:
        prices = np.sum([state.prices(left) for state in states], axis=0)
        most = min((left.size - stop for stop in stops if stop < left.size), default=left.size - 1)
        cheapest = left[np.argsort(prices, kind="stable")[: max(1, min(left.size // steps, most))]]
        damage += sum(state.remove(cheapest) for state in states)
        gone.extend(cheapest.tolist())
        left = left[~np.isin(left, cheapest)]
        yield Removal(tuple(gone), damage, states)


def _state(consumer: Consumer) -> _State | ThinState:
    dtype: type[np.floating[Any]] = np.float64 if consumer.weight.shape[1] <= _WIDE else np.float32
    if isinstance(consumer.metric, ThinMetric):
        return ThinState(consumer.weight, consumer.metric, consumer.places, dtype)
    return _State(consumer.weight, consumer.metric, consumer.places, dtype)


class _State:
    """What is left of one consumer: its refitted weight and the inverse of its metric, on the columns that are still there.

    Of the inverse the lower triangle alone is kept up: half the work.
    """

    def __init__(self, weight: Array, metric: Metric, places: Array, dtype: type[np.floating[Any]]) -> None:
        self._shape = weight.shape
        self._weight: Array = weight.astype(dtype, order="C")
        self._places = places
        self._inverse = _inverse(metric, self._shape[1], dtype)
        self._multiply, self._square = scipy.linalg.get_blas_funcs(("gemm", "syrk"), dtype=dtype)  # in place
        self._columns = np.arange(self._shape[1])
        self._place_of = self._columns.copy()
        self._dead = np.zeros(self._shape[1], bool)

    @property
    def weight(self) -> Array:
        """``[out, K]``, zero where a component went."""
        full = np.zeros(self._shape, self._weight.dtype)
        full[:, self._columns] = self._weight
        return full

    def prices(self, components: Array) -> Array:
        """What it costs to remove each component alone: ``[components]``."""
        columns = self._place_of[self._places[components]]
        if columns.shape[1] == 1:
            single: Array = (np.einsum("ok,ok->k", self._weight, self._weight) / np.diagonal(self._inverse))[columns[:, 0]]
            return single
        weights = self._weight[:, columns].transpose(1, 2, 0)
        blocks = self._between(columns[:, :, None], columns[:, None, :])
        prices: Array = np.einsum("cwv,cwv->c", np.linalg.inv(blocks), times(weights, weights.swapaxes(1, 2)))
        return prices

    def remove(self, components: Array) -> float:
        """Removes components and refits the rest; returns what it cost."""
        columns = self._place_of[self._places[components]].reshape(-1)
        root = scipy.linalg.cholesky(self._between(columns[:, None], columns), lower=True, check_finite=False)
        rows = self._between(columns[:, None], np.arange(self._columns.size))
        feedback = scipy.linalg.solve_triangular(root, rows, lower=True, check_finite=False)
        weights = scipy.linalg.solve_triangular(root, self._weight[:, columns].T, lower=True, check_finite=False)
        self._weight = self._multiply(-1.0, feedback, weights, 1.0, self._weight.T, trans_a=1, overwrite_c=1).T
        self._inverse = self._square(-1.0, feedback, 1.0, self._inverse, trans=1, lower=1, overwrite_c=1)
        # What has gone must not come back through rounding, and its place stays solvable.
        self._weight[:, columns] = 0.0
        self._inverse[columns] = self._inverse[:, columns] = 0.0
        self._inverse[columns, columns] = 1.0
        self._dead[columns] = True
        if self._dead.mean() > _DEAD:
            self._forget_dead()
        return float(np.einsum("wo,wo->", weights, weights))

    def _between(self, rows: Array, columns: Array) -> Array:
        """Entries of the inverse, from its lower triangle."""
        found: Array = self._inverse[np.maximum(rows, columns), np.minimum(rows, columns)]
        return found

    def _forget_dead(self) -> None:
        alive = np.flatnonzero(~self._dead)
        self._weight = np.ascontiguousarray(self._weight[:, alive])
        self._inverse = np.ascontiguousarray(self._inverse.T[alive][:, alive]).T  # whole rows first: faster than one at a time
        self._columns, self._dead = self._columns[alive], np.zeros(alive.size, bool)
        self._place_of[self._columns] = np.arange(alive.size)


def _inverse(metric: Metric, width: int, dtype: type[np.floating[Any]]) -> Array:
    """``[K, K]``, the damped metric's inverse, in its lower triangle; columns lie together."""
    if metric.gram is None:
        return np.eye(width, dtype=dtype, order="F")
    try:
        factor = _root(metric, dtype)
    except scipy.linalg.LinAlgError:  # rounding has left it indefinite
        factor = _root(metric, np.float64).astype(dtype)
    (invert,) = scipy.linalg.get_lapack_funcs(("potri",), dtype=dtype)  # a third of the work of solving for the identity
    inverse: Array = invert(factor, lower=1, overwrite_c=1)[0]
    return inverse


def _root(metric: Metric, dtype: type[np.floating[Any]]) -> Array:
    """Cholesky of the damped metric, in the lower triangle."""
    assert metric.gram is not None
    damped = metric.gram[0].T.astype(dtype)  # symmetric, and now in the order that LAPACK works on in place
    damped[np.diag_indices_from(damped)] += float(metric.ridge[0])
    root: Array = scipy.linalg.cho_factor(damped, lower=True, overwrite_a=True, check_finite=False)[0]
    return root

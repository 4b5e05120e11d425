"""Affine regression of a layer's wanted outputs on its inputs, from moments: the least-squares refit of a weight and its bias."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from graphopt.solve.blas import times
from graphopt.solve.metric import ROWS, Metric

Array = np.ndarray[Any, Any]

DAMPINGS = (0.0003, 0.003, 0.03, 0.3)
"""Shares of the mean diagonal to choose from."""


@dataclass
class Moments:
    """Sums over positions of inputs ``x [groups, K]`` and wanted outputs ``t [groups, out]``, float64.

    Attributes:
        n: positions seen.
        inputs: ``[groups, K]``, of x.
        outputs: ``[groups, out]``, of t.
        gram: ``[groups, K, K]``, of ``x x^T``.
        cross: ``[groups, out, K]``, of ``t x^T``.
    """

    n: int
    inputs: Array
    outputs: Array
    gram: Array
    cross: Array

    @classmethod
    def empty(cls, groups: int, out: int, width: int) -> Self:
        """Nothing seen yet."""
        return cls(0, np.zeros((groups, width)), np.zeros((groups, out)), np.zeros((groups, width, width)), np.zeros((groups, out, width)))

    def add(self, x: Array, t: Array, product: Callable[[Array, Array], Array]) -> None:
        """Takes in some positions.

        Args:
            x: ``[groups, K, positions]``.
            t: ``[groups, out, positions]``.
            product: makes ``left right^T`` of two such stacks.
        """
        self.n += x.shape[2]
        self.inputs += x.sum(axis=2, dtype=np.float64)
        self.outputs += t.sum(axis=2, dtype=np.float64)
        self.gram += product(x, x)
        self.cross += product(t, x)

    def plus(self, other: Moments) -> Moments:
        """The moments of both."""
        return Moments(
            self.n + other.n, self.inputs + other.inputs, self.outputs + other.outputs, self.gram + other.gram, self.cross + other.cross
        )

    def of(self, rows: slice) -> Moments:
        """The moments of some of the outputs alone."""
        return Moments(self.n, self.inputs, self.outputs[:, rows], self.gram, self.cross[:, rows])

    def centred(self) -> Moments:
        """The same as if all means were zero."""
        gram = self.gram - self.inputs[:, :, None] * self.inputs[:, None, :] / self.n
        cross = self.cross - self.outputs[:, :, None] * self.inputs[:, None, :] / self.n
        return Moments(self.n, np.zeros_like(self.inputs), np.zeros_like(self.outputs), gram, cross)


def regression(
    fit: Moments, held: Moments, weight: Array, *, affine: bool, project: Callable[[Array, Metric], Array] | None = None
) -> tuple[Array, Array] | None:
    """The weight and shift that make the wanted outputs best, where they do on positions that were kept out.

    The damping is the one that is best there, on about 256 rows of a tall weight; what inputs do not determine stays as it is. Then all
    positions are fitted.

    Args:
        fit: moments to fit.
        held: moments that were kept out.
        weight: ``[groups, out, K]``, the present one.
        affine: a shift may be added to the outputs; else it is zero.
        project: brings a weight to the closest one of some kind in a metric; the present one need not be of that kind.

    Returns:
        ``[groups, out, K]`` and ``[groups, out]``, float64; None where the present weight without a shift is of the kind and no worse.
    """
    weight, still = weight.astype(np.float64), np.zeros(weight.shape[:2])
    present = weight if project is None else project(weight, Metric(fit.plus(held).gram))
    as_it_was = None if project is None else (present, still)
    if not fit.n or not held.n:
        return as_it_was
    rows = slice(None, None, max(1, weight.shape[1] // ROWS)) if project is None else slice(None)
    some, seen = fit.of(rows), held.of(rows)
    best, error = best_damping(lambda damping: _error(seen, *_solution(some, weight[:, rows], damping, affine=affine, project=project)))
    if not error < _error(seen, present[:, rows], still[:, rows]):
        return as_it_was
    return _solution(fit.plus(held), weight, best, affine=affine, project=project)


def best_damping(error_of: Callable[[float], float]) -> tuple[float, float]:
    """The damping with the least error, and that. Errors fall and then rise, so that one end tells about the other."""
    lowest, low, high, highest = DAMPINGS
    errors = {damping: error_of(damping) for damping in (low, high)}
    beyond = highest if errors[high] < errors[low] else lowest
    errors[beyond] = error_of(beyond)
    best = min(errors, key=errors.__getitem__)
    return best, errors[best]


def _solution(
    moments: Moments, weight: Array, damping: float, *, affine: bool, project: Callable[[Array, Metric], Array] | None
) -> tuple[Array, Array]:
    used = moments.centred() if affine else moments
    metric = Metric(used.gram, damping)
    found = metric.divided(used.cross + metric.ridge[:, None, None] * weight)
    if project is not None:
        found = project(found, metric)
    if not affine:
        return found, np.zeros_like(moments.outputs)
    return found, (moments.outputs - np.einsum("gok,gk->go", found, moments.inputs)) / moments.n


def _error(moments: Moments, weight: Array, shift: Array) -> float:
    """The squared error, up to what no weight changes."""
    quadratic = float(np.sum(times(weight, moments.gram) * weight)) - 2.0 * float(np.sum(moments.cross * weight))
    mean = np.einsum("gok,gk->go", weight, moments.inputs) - moments.outputs
    return quadratic + float(2.0 * np.sum(shift * mean) + moments.n * np.sum(shift**2))

"""The metric of few positions: it is never made where it would be far wider than there are positions.

With ``H = X X^T + r I`` of ``X [K, n]`` and ``L L^T = X^T X + r I``, the inverse is ``(I - Q Q^T) / r`` where ``Q = X L^-T [K, n]``.
Columns that go change what stands between the two: ``(I - Q M Q^T) / r`` on the columns that stay.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import scipy.linalg

from graphopt.errors import SamplesError
from graphopt.solve.blas import times
from graphopt.solve.metric import DAMPING

Array = np.ndarray[Any, Any]

_GUARD = 8
"""Roundings by which the identity is above one: a column that positions all but determine keeps an inverse."""


@dataclass(frozen=True, eq=False)
class ThinMetric:
    """The metric over a layer's inputs, as the inputs themselves.

    Attributes:
        inputs: ``X [K, n]`` float32, at every position.
        damping: share of the mean diagonal of ``X X^T`` that is added to its diagonal.

    Raises:
        SamplesError: an input is NaN or infinite.
    """

    inputs: Array
    damping: float = DAMPING

    def __post_init__(self) -> None:
        if not np.isfinite(self.ridge):
            raise SamplesError("the samples make a layer's input infinite or NaN: its statistics cannot guide an approximation")

    @staticmethod
    def suits(width: int, positions: int) -> bool:
        """Whether so few positions of so many inputs cost less this way: about from half as many on."""
        return 0 < 2 * positions <= width

    @cached_property
    def ridge(self) -> float:
        """What is added to the diagonal."""
        mean = float(np.einsum("kn,kn->", self.inputs, self.inputs, dtype=np.float64)) / len(self.inputs)
        return self.damping * mean if mean else 1.0

    @cached_property
    def whitened(self) -> Array:
        """``Q [K, n]`` float64: no row is longer than one."""
        x = self.inputs.astype(np.float64)
        damped = scipy.linalg.blas.dsyrk(1.0, x.T, lower=1)
        damped[np.diag_indices_from(damped)] += self.ridge
        root = scipy.linalg.cholesky(damped, lower=True, overwrite_a=True, check_finite=False)
        turned: Array = scipy.linalg.solve_triangular(root, x.T, lower=True, overwrite_b=True, check_finite=False).T
        return turned


class ThinState:
    """What is left of a consumer of components: its refitted weight, and of its inverse metric what few positions need.

    Of the matrix between, the lower triangle alone is kept up.

    Args:
        weight: ``[out, K]``.
        metric: of its inputs.
        places: ``[components, width]``, the columns of each component.
        dtype: to follow them in.
    """

    def __init__(self, weight: Array, metric: ThinMetric, places: Array, dtype: type[np.floating[Any]]) -> None:
        self._shape, self._places, self._ridge = weight.shape, places, metric.ridge
        self._weight = np.ascontiguousarray(weight.T, dtype)
        self._whitened = np.ascontiguousarray(metric.whitened, dtype)
        self._middle: Array = np.eye(self._whitened.shape[1], order="F")
        self._one = 1.0 + _GUARD * float(np.finfo(dtype).eps)
        own = self._whitened[places]
        self._blocks: Array = self._one * np.eye(places.shape[1], dtype=dtype) - _squares(own)
        self._columns = np.arange(self._shape[1])
        self._place_of = self._columns.copy()

    @property
    def weight(self) -> Array:
        """``[out, K]``, zero where a component went."""
        full = np.zeros(self._shape, self._weight.dtype)
        full[:, self._columns] = self._weight.T
        return full

    def prices(self, components: Array) -> Array:
        """What it costs to remove each component alone: ``[components]``."""
        weights, blocks = self._weight[self._place_of[self._places[components]]], self._blocks[components]
        solved = weights / blocks if blocks.shape[1] == 1 else np.linalg.solve(blocks, weights)
        prices: Array = np.einsum("cwo,cwo->c", weights, solved) * self._ridge
        return prices

    def remove(self, components: Array) -> float:
        """Removes components and refits the rest; returns what it cost."""
        rows = self._place_of[self._places[components]].reshape(-1)
        own = self._whitened[rows].astype(np.float64)
        turned = scipy.linalg.blas.dsymm(1.0, self._middle, own.T, lower=1).T
        root = scipy.linalg.cholesky(self._one * np.eye(rows.size) - times(turned, own.T), lower=True, check_finite=False)
        push = scipy.linalg.solve_triangular(root, turned, lower=True, check_finite=False)
        weights = scipy.linalg.solve_triangular(root, self._weight[rows].astype(np.float64), lower=True, check_finite=False)
        self._middle = scipy.linalg.blas.dsyrk(1.0, push.T, 1.0, self._middle, lower=1, overwrite_c=1)
        self._forget(rows)
        dtype = self._weight.dtype
        feedback = times(self._whitened, push.T.astype(dtype))
        self._weight += times(feedback, weights.astype(dtype))
        stay = np.flatnonzero(self._place_of[self._places[:, 0]] >= 0)
        self._blocks[stay] -= _squares(feedback[self._place_of[self._places[stay]]])
        return float(np.einsum("wo,wo->", weights, weights)) * self._ridge

    def _forget(self, rows: Array) -> None:
        stays = np.ones(self._columns.size, bool)
        stays[rows] = False
        self._weight, self._whitened, self._columns = self._weight[stays], self._whitened[stays], self._columns[stays]
        self._place_of[:] = -1
        self._place_of[self._columns] = np.arange(self._columns.size)


def _squares(rows: Array) -> Array:
    """``R R^T`` of each of ``[components, width, n]``; most are one row wide."""
    squares: Array = np.einsum("cwn,cvn->cwv", rows, rows)
    return squares

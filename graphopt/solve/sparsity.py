"""Sparsity: weights that become zero, by magnitude, by Wanda (arXiv:2306.11695) or by SparseGPT (arXiv:2301.00774)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from graphopt.solve.column import BATCH, project_columns
from graphopt.solve.metric import Metric, working_dtype

Array = np.ndarray[Any, Any]
Method = Literal["sparsegpt", "wanda", "magnitude"]


@dataclass(frozen=True)
class Pattern:
    """Which zeros are asked for.

    Attributes:
        share: of the weights that become zero.
        among: columns that follow each other and of which each row loses this share, as in ``n:m``; 0 where zeros may stand anywhere.
    """

    share: float
    among: int = 0


def sparse(weight: Array, metric: Metric, pattern: Pattern, method: Method) -> Array:
    """Sets a share of the weights to zero.

    SparseGPT chooses those with the least saliency ``w^2 / [H^-1]_jj`` among 128 columns, or among those of the pattern, and lets the
    columns that follow make up for them. Wanda takes the least ``|w| * norm of the input``, magnitude the least ``|w|``, and both leave the
    other weights as they are. All compare weights of the whole matrix where no pattern says otherwise (the paper's Wanda: of each row),
    since rows count by their outputs.

    Args:
        weight: ``[groups, out, K]``.
        metric: of the inputs; without a Gram matrix all methods are magnitude.
        pattern: of the zeros.
        method: see above.

    Returns:
        ``[groups, out, K]`` in the dtype of the weight (float16 becomes float32).
    """
    weight = weight.astype(working_dtype(weight))
    if metric.gram is None:
        method = "magnitude"
    if method == "sparsegpt":
        step = pattern.among or BATCH
        return project_columns(weight, metric.factor, _Mask(pattern, metric.factor.energy), step)
    groups, out, width = weight.shape
    saliency = weight**2
    if method == "wanda":
        saliency = saliency * metric.diagonal(groups, width)[:, None, :]
    rows = saliency.reshape(groups * out, width) if pattern.among else saliency.reshape(1, -1)
    return weight * _kept(rows, pattern).reshape(weight.shape)


class _Mask:
    """Projects onto the columns' weights that stay.

    Args:
        pattern: of the zeros.
        energy: ``[groups, K]``, of the factorization: what a column's own error costs once later ones have made up for it.
    """

    def __init__(self, pattern: Pattern, energy: Array) -> None:
        self._pattern, self._energy = pattern, energy
        self._start = 0
        self._stays: Array = np.zeros((0, 0, 0), bool)

    def begin(self, start: int, weights: Array) -> None:
        """Chooses the zeros of a step of columns: ``weights [groups, columns, out]``."""
        groups, columns, out = weights.shape
        saliency = weights**2 * self._energy[:, start : start + columns, None]
        if self._pattern.among:
            rows = saliency.swapaxes(1, 2).reshape(groups * out, columns)
            self._stays = _kept(rows, self._pattern).reshape(groups, out, columns).swapaxes(1, 2)
        else:
            self._stays = _kept(saliency.reshape(1, -1), self._pattern).reshape(saliency.shape)
        self._start = start

    def project(self, position: int, column: Array) -> Array:
        """A column ``[groups, out]`` with its zeros."""
        return column * self._stays[:, position - self._start]


def _kept(saliency: Array, pattern: Pattern) -> Array:
    """Which weights stay: ``bool [rows, columns]``, in each row, and each run of columns of the pattern, all but the least salient."""
    rows, columns = saliency.shape
    among = pattern.among or columns
    stays = np.ones((rows, columns), bool)
    whole = columns // among * among
    for first, last, width in ((0, whole, among), (whole, columns, columns - whole)):
        count = round(width * pattern.share) if width == among else int(width * pattern.share)
        if not count:
            continue
        runs = saliency[:, first:last].reshape(-1, width)
        least = np.argpartition(runs, count - 1, axis=1)[:, :count]
        part = np.ones(runs.shape, bool)
        np.put_along_axis(part, least, False, axis=1)
        stays[:, first:last] = part.reshape(rows, last - first)
    return stays

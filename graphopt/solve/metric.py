"""The metric in which every approximation of a layer is measured: the Gram matrix of the layer's inputs.

A layer ``Y = W X`` is replaced by ``What``; what changes at its output is ``tr((W - What) H (W - What)^T)`` with ``H = X X^T``.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import scipy.linalg

from graphopt.errors import SamplesError

Array = np.ndarray[Any, Any]

logger = logging.getLogger(__name__)

DAMPING = 0.01
"""Share of the mean of the diagonal that is added to it, as in GPTQ (arXiv:2210.17323)."""

ROWS = 256
"""An error that is told, and not chosen by, is taken of about so many rows."""


@dataclass(frozen=True, eq=False)
class Factor:
    """``H = L^T diag(energy) L`` with ``L`` lower triangular and ones on its diagonal.

    Column ``j``'s rounding error, together with those of the columns before it, costs
    ``energy[j] * (D[j] + sum_i<j L[j, i] D[i])**2``: no inverse of ``H`` is needed. In GPTQ's words ``energy = 1 / U_jj**2``.

    Attributes:
        lower: ``[groups, K, K]`` float64.
        energy: ``[groups, K]`` float64, positive.
    """

    lower: Array
    energy: Array


@dataclass(frozen=True, eq=False)
class Metric:
    """The metric ``H`` over a layer's inputs, damped so that it has an inverse, and optionally ``G`` over its outputs.

    A channel that no sample ever excited has only the damping: its weights are rounded by themselves and influence no others.

    Attributes:
        gram: ``[groups, K, K]`` float32 or float64, symmetric, as a sum or a mean over positions; None is the identity.
        damping: share of the mean diagonal (of each group) that is added to the diagonal.
        output: ``[groups, out, out]``, the covariance of the gradients at the layer's output, damped alike; None is the identity.
            Rows then depend on each other: only the sum over them is an error.

    Raises:
        SamplesError: a matrix holds NaN or infinity.
    """

    gram: Array | None
    damping: float = DAMPING
    output: Array | None = None

    def __post_init__(self) -> None:
        for name, matrix in (("input", self.gram), ("output", self.output)):
            if matrix is None:
                continue
            assert matrix.ndim == 3, f"[groups, K, K] expected, not {matrix.shape}"
            assert matrix.shape[1] == matrix.shape[2], f"[groups, K, K] expected, not {matrix.shape}"
            # A NaN or an infinity anywhere in a channel shows on the diagonal, which sums that channel's squares.
            if not np.isfinite(np.diagonal(matrix, axis1=1, axis2=2)).all():
                raise SamplesError(f"the samples make a layer's {name} infinite or NaN: its statistics cannot guide an approximation")

    @cached_property
    def ridge(self) -> Array:
        """What is added to the diagonal: ``[groups]`` float64, never so small that nothing is left for a group without inputs."""
        assert self.gram is not None
        return _ridge(self.gram, self.damping)

    @cached_property
    def factor(self) -> Factor:
        """The factorization in the order of the columns; made once."""
        return _factor(self._mirrored_root)

    @cached_property
    def _mirrored_root(self) -> Array:
        assert self.gram is not None
        return _mirrored_root(self.gram, self.ridge)

    @cached_property
    def root(self) -> Array:
        """``R [groups, K, K]`` float64, upper triangular with ``H = R R^T`` (damped): the square root that whitens inputs."""
        return np.swapaxes(self.factor.lower, 1, 2) * np.sqrt(self.factor.energy)[:, None, :]

    def factor_in(self, order: Array) -> Factor:
        """The factorization with the columns in another order (``[groups, K]`` of indices); not kept."""
        assert self.gram is not None
        permuted = np.take_along_axis(np.take_along_axis(self.gram, order[:, :, None], axis=1), order[:, None, :], axis=2)
        return _factor(_mirrored_root(permuted, self.ridge))

    def diagonal(self, groups: int, width: int) -> Array:
        """The damped diagonal of ``H``: ``[groups, width]`` float64, how much one column's own error costs."""
        if self.gram is None:
            return np.ones((groups, width))
        return np.diagonal(self.gram, axis1=1, axis2=2).astype(np.float64) + self.ridge[:, None]

    def activity_order(self) -> Array:
        """Columns by falling activity: ``[groups, K]`` int64. Columns that are rounded first are compensated by most others."""
        assert self.gram is not None
        return np.argsort(-np.diagonal(self.gram, axis1=1, axis2=2), axis=1, kind="stable")

    def target(self, weight: Array, cross: Array | None) -> Array:
        """The weight that best makes the original outputs of the inputs that the layer sees now: ``W C H^-1``.

        Both matrices get the same damping, so that what samples do not determine stays as it was (``C = H`` gives ``W`` itself).

        Args:
            weight: ``[groups, out, K]``.
            cross: ``C = X Xhat^T`` ``[groups, K, K]``, the original inputs times today's; None where they are the same.

        Returns:
            ``[groups, out, K]`` in the dtype of the weight (float16 becomes float32).
        """
        dtype = working_dtype(weight)
        if cross is None or self.gram is None:
            return weight.astype(dtype)
        return self.divided(weight.astype(np.float64) @ cross.astype(np.float64) + self.ridge[:, None, None] * weight).astype(dtype)

    def divided(self, product: Array) -> Array:
        """``A H^-1``, the metric damped: ``[groups, out, K]`` float64.

        Args:
            product: ``A [groups, out, K]``.
        """
        pairs = zip(self._mirrored_root, product[:, :, ::-1], strict=True)
        solved = [scipy.linalg.cho_solve((lower, True), rows.T, check_finite=False).T for lower, rows in pairs]
        return np.ascontiguousarray(np.stack(solved)[:, :, ::-1])

    def error(self, weight: Array, approximation: Array) -> Array:
        """``tr((W - What) H (W - What)^T)`` row by row, damping included.

        Args:
            weight: ``[groups, out, K]``.
            approximation: the same shape.

        Returns:
            ``[groups, out]`` float64; the sum is the error. With an output metric single rows may be negative.
        """
        change = weight.astype(working_dtype(weight)) - approximation
        seen = change if self.gram is None else change @ self.gram + self.ridge[:, None, None] * change
        if self.output is not None:
            seen = self.output @ seen + _ridge(self.output, self.damping)[:, None, None] * seen
        rows: Array = np.einsum("gok,gok->go", seen, change, dtype=np.float64)
        return rows

    def relative(self, weight: Array, approximation: Array) -> float:
        """What an approximation changes at the output, relative to the output, in norm: on :data:`ROWS` rows spread over each group.

        Args:
            weight: ``[groups, out, K]``.
            approximation: the same shape.
        """
        rows = slice(None, None, max(1, weight.shape[1] // ROWS)) if self.output is None else slice(None)
        some, other = weight[:, rows], approximation[:, rows]
        size = float(self.error(some, np.zeros_like(some)).sum())
        return float((self.error(some, other).sum() / size) ** 0.5) if size else 0.0


def working_dtype(weight: Array) -> np.dtype[Any]:
    """The dtype to compute a weight's approximation in: float64 stays, all else is float32."""
    return np.dtype(np.float64 if weight.dtype == np.float64 else np.float32)


def _mirrored(matrices: Array) -> Array:
    return matrices[:, ::-1, ::-1]


def _ridge(matrix: Array, damping: float) -> Array:
    mean = np.diagonal(matrix, axis1=1, axis2=2).mean(axis=1, dtype=np.float64)
    return np.where(mean > 0, damping * mean, 1.0)


def _factor(mirrored_root: Array) -> Factor:
    """Cholesky of the matrix with rows and columns reversed gives the upper triangular root without inverting anything."""
    root = _mirrored(mirrored_root)
    diagonal = np.diagonal(root, axis1=1, axis2=2)
    lower = np.ascontiguousarray(np.swapaxes(root / diagonal[:, None, :], 1, 2))
    return Factor(lower=lower, energy=diagonal**2)


def _mirrored_root(matrix: Array, ridge: Array) -> Array:
    """Cholesky of the damped matrix with rows and columns reversed; where rounding has left it indefinite, with ten times the damping."""
    width = matrix.shape[1]
    floor = np.finfo(np.float64).eps * width * np.maximum(np.einsum("gkk->g", matrix, dtype=np.float64) / width, 1e-300)
    while True:
        damped = np.array(_mirrored(matrix), dtype=np.float64, order="C")
        np.einsum("gkk->gk", damped)[...] += ridge[:, None]
        try:
            return _cholesky(damped)
        except np.linalg.LinAlgError:
            ridge = np.maximum(10.0 * ridge, floor)
            logger.debug("a Gram matrix of width %d is not positive definite: damped ten times more", width)


def _cholesky(matrices: Array) -> Array:
    """Lower roots of ``[groups, K, K]``, which are used up; one by one in LAPACK's order, twice as fast where they are wide."""
    roots = [scipy.linalg.cholesky(matrix.T, lower=True, overwrite_a=True, check_finite=False) for matrix in matrices]
    return roots[0][None] if len(roots) == 1 else np.stack(roots)

"""Loops over columns, with error feedback or by coordinate descent: what GPTQ, SparseGPT and compensated codebooks share.

Columns are replaced one after another; each is first moved by what the columns before it have left over, so that the error at the
layer's output stays small (arXiv:2210.17323, 2301.00774; in this form, without an inverse, Babai's nearest plane: arXiv:2507.18553).
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from graphopt.solve.metric import Factor

Array = np.ndarray[Any, Any]

BATCH = 128
"""Columns whose compensation by all earlier ones is one matrix product."""
GRADIENTS = 64
"""Columns whose gradients come from one matrix product, where each is decided again."""


class Projection(Protocol):
    """The set that columns are projected onto. Positions count columns in the order in which the loop visits them."""

    def begin(self, start: int, weights: Array) -> None:
        """A step of columns begins: ``weights [groups, columns, out]`` as compensated so far, first column at position ``start``."""

    def project(self, position: int, column: Array) -> Array:
        """The replacement of one compensated column ``[groups, out]``: the same shape and dtype."""


def project_columns(weight: Array, factor: Factor, projection: Projection, step: int = BATCH) -> Array:
    """Projects all columns with error feedback.

    Args:
        weight: ``[groups, out, K]`` float32 or float64, the columns in the order of the factor.
        factor: the metric's factorization.
        projection: what a column becomes.
        step: columns between two calls of ``projection.begin``; scales or patterns of so many columns are chosen together.

    Returns:
        ``[groups, out, K]`` in the dtype of the weight.
    """
    dtype = weight.dtype
    rows = np.ascontiguousarray(np.swapaxes(weight, 1, 2))  # [groups, K, out]: a column of the weight lies together
    lower = factor.lower.astype(dtype)
    width = rows.shape[1]
    change = np.empty_like(rows)
    batch = step * max(1, BATCH // step)
    for first in range(0, width, batch):
        last = min(first + batch, width)
        work = rows[:, first:last] + lower[:, first:last, :first] @ change[:, :first]
        for start in range(first, last, step):
            stop = min(start + step, last)
            part = work[:, start - first : stop - first]
            part += lower[:, start:stop, first:start] @ change[:, first:start]
            projection.begin(start, part)
            for position in range(start, stop):
                column = part[:, position - start]
                column += (lower[:, None, position, start:position] @ change[:, start:position])[:, 0]
                np.subtract(rows[:, position], projection.project(position, column), out=change[:, position])
    return np.swapaxes(rows - change, 1, 2)


def descend_columns(target: Array, start: Array, gram: Array, projection: Projection) -> Array:
    """Projects each column in turn again, given all others as they are now: coordinate descent (arXiv:2309.01885).

    Args:
        target: ``[groups, out, K]`` float32 or float64.
        start: the approximation so far, of the same shape and dtype.
        gram: ``[groups, K, K]``, damped, of the same dtype.
        projection: what a column becomes, told what is best for it alone; its ``begin`` is not called.

    Returns:
        ``[groups, out, K]`` in the dtype of the target.
    """
    kept = np.ascontiguousarray(np.swapaxes(start, 1, 2))
    change = np.ascontiguousarray(np.swapaxes(target, 1, 2)) - kept
    price = np.einsum("gkk->gk", gram)
    width = kept.shape[1]
    for first in range(0, width, GRADIENTS):
        last = min(first + GRADIENTS, width)
        gradient = gram[:, first:last] @ change
        for column in range(first, last):
            wanted = kept[:, column] + gradient[:, column - first] / price[:, column, None]
            found = projection.project(column, wanted)
            moved = kept[:, column] - found
            kept[:, column] = found
            change[:, column] += moved
            gradient[:, column - first + 1 :] += gram[:, column, column + 1 : last, None] * moved[:, None]
    return np.swapaxes(kept, 1, 2)


def in_order(weight: Array, order: Array) -> Array:
    """Columns of ``[groups, out, K]`` rearranged: position ``j`` of the result holds column ``order[group, j]``."""
    return np.take_along_axis(weight, order[:, None, :], axis=2)


def out_of_order(visited: Array, order: Array) -> Array:
    """The reverse of :func:`in_order`."""
    return in_order(visited, np.argsort(order, axis=1))

"""Codebooks: weights that take one of few values, chosen in the metric of the layer's inputs.

K-means by what an error costs, then the column loop with error feedback, coordinate descent and least squares in turn: codes for the
centroids, centroids and scales for the codes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from graphopt.errors import RecipeError
from graphopt.solve.column import descend_columns, project_columns
from graphopt.solve.kmeans import Rated, kmeans, rated
from graphopt.solve.metric import ROWS, Metric, working_dtype

Array = np.ndarray[Any, Any]

MOST = 256
"""Centroids that a byte can tell apart."""
FEEDBACKS, DESCENTS = 2, 4
"""Rounds of codes by error feedback, then by coordinate descent; more gain less than a tenth of a decibel."""
_STEPS = 5
"""Of conjugate gradients: centroids beyond so many directions hardly move."""


@dataclass(frozen=True)
class Book:
    """The kind of a codebook.

    Attributes:
        centroids: 2 to 256.
        per: centroids are the weights themselves ("tensor"), or relative to a scale of each output "channel".
        bits: about what a code is to take in entropy; None where all codes cost the same. Centroids that are hardly used then go.

    Raises:
        RecipeError: a value is out of range.
    """

    centroids: int
    per: Literal["tensor", "channel"] = "channel"
    bits: float | None = None

    def __post_init__(self) -> None:
        """Checks the number."""
        if not 2 <= self.centroids <= MOST:
            raise RecipeError(f"a codebook of {self.centroids} centroids does not exist: take 2 to {MOST}")
        if self.bits is not None and not 0 < self.bits <= 8:
            raise RecipeError(f"codes of {self.bits:g} bits do not exist: take more than 0, 8 at most")


@dataclass(frozen=True, eq=False)
class Clustered:
    """A weight as codes.

    Attributes:
        codes: ``[groups, out, in]`` uint8.
        centroids: ``[centroids]`` float32, rising; fewer than wished for where there are not as many different weights.
        scale: ``[groups, out, 1]`` float32; ``[1, 1, 1]``, 1, where channels have none.
    """

    codes: Array
    centroids: Array
    scale: Array

    @property
    def weight(self) -> Array:
        """The weights that the codes stand for: ``[groups, out, in]`` float32; computed at each call."""
        weight: Array = self.centroids[self.codes] * self.scale
        return weight

    @property
    def lengths(self) -> Array:
        """Bits that each centroid's code takes once it is packed: ``[centroids]`` float64, by how often it occurs."""
        counts = np.bincount(self.codes.reshape(-1), minlength=self.centroids.size)
        return -np.log2(np.maximum(counts, 0.5) / max(self.codes.size, 1))

    @property
    def entropy(self) -> float:
        """Bits that a code takes on average once it is packed."""
        counts = np.bincount(self.codes.reshape(-1), minlength=self.centroids.size)
        return float(counts @ self.lengths) / max(self.codes.size, 1)


def cluster(weight: Array, metric: Metric, book: Book, zeros: Array | None = None) -> Clustered:
    """Finds a codebook and the codes of a weight; never further from it in the metric than with each weight at its nearest centroid.

    Args:
        weight: ``[groups, out, K]``, the target (:meth:`Metric.target` where the inputs have changed), finite.
        metric: of the layer's inputs; without a Gram matrix each weight takes its nearest centroid.
        book: the kind of codebook.
        zeros: bool of the same shape, weights that have to be exactly zero; one centroid then is.
    """
    target = weight.astype(working_dtype(weight))
    price = metric.diagonal(target.shape[0], target.shape[2]) if metric.gram is None else metric.factor.energy
    start, lengths, toll = _begin(target, price, book, zeros)
    plain = best = _Nearest(start, zeros, _Toll.of(toll, lengths, price), target.dtype).codes_of(target)
    if metric.gram is None:
        return plain
    gram = metric.gram.astype(target.dtype)
    np.einsum("gkk->gk", gram)[...] += metric.ridge[:, None].astype(target.dtype)
    for _ in range(FEEDBACKS):
        nearest = _Nearest(best, zeros, _Toll.of(toll, best.lengths, price), target.dtype)
        project_columns(target, metric.factor, nearest)
        best = _fitted(target, gram, nearest.clustered, book, pinned=zeros is not None)
        if book.bits is not None:
            toll *= 4.0 ** (best.entropy - book.bits)  # an error falls to a quarter with each bit, and so does what a bit is worth
    for _ in range(DESCENTS):
        nearest = _Nearest(best, zeros, _Toll.of(toll, best.lengths, np.einsum("gkk->gk", gram)), target.dtype)
        descend_columns(target, best.weight.astype(target.dtype), gram, nearest)
        best = _fitted(target, gram, nearest.clustered, book, pinned=zeros is not None)
    costs = [float(metric.error(target, one.weight).sum()) + toll * one.entropy * target.size for one in (plain, best)]
    return best if costs[1] <= costs[0] else plain


def _begin(target: Array, price: Array, book: Book, zeros: Array | None) -> tuple[Clustered, Array, float]:
    """K-means by what each weight's own error costs; no codes yet. With it the lengths of codes, and the price of a bit."""
    scale = np.ones((1, 1, 1), target.dtype)
    if book.per == "channel":
        power = (np.square(target) @ price[..., None]) / price.sum(axis=1)[:, None, None]
        scale = np.where(power > 0, np.sqrt(power), 1.0).astype(target.dtype)
    relative = target / scale
    cost = np.broadcast_to(price[:, None, :] * np.square(scale), target.shape)
    if zeros is not None and not zeros.all():
        relative, cost = relative[~zeros], cost[~zeros]
    relative, cost = relative.reshape(-1), cost.reshape(-1)
    if book.bits is None:
        found = Rated(kmeans(relative, cost, book.centroids, with_zero=zeros is not None), 0.0, np.zeros(book.centroids))
    else:
        found = rated(relative, cost, book.centroids, book.bits, with_zero=zeros is not None)
    start = Clustered(np.zeros((0, 0, 0), np.uint8), found.centres.astype(np.float32), scale.astype(np.float32))
    return start, found.lengths, found.price


@dataclass(frozen=True, eq=False)
class _Toll:
    """What codes cost beside their errors.

    Attributes:
        bits: ``[centroids]``, of each code, in the unit of squared errors.
        price: ``[groups, K]``, what a squared error costs in each column.
    """

    bits: Array
    price: Array

    @classmethod
    def of(cls, toll: float, lengths: Array, price: Array) -> _Toll | None:
        """None where a bit costs nothing."""
        return cls(toll * lengths, price) if toll else None


class _Nearest:
    """Projects columns onto the centroids of a book: the nearest, or those of least error and toll together.

    Args:
        book: its codes are not looked at.
        zeros: ``[groups, out, K]``, weights that are zero; None for none.
        toll: of the codes; None for none.
        dtype: of the columns.
    """

    def __init__(self, book: Clustered, zeros: Array | None, toll: _Toll | None, dtype: np.dtype[Any]) -> None:
        self._book, self._toll = book, toll
        self._centroids, self._scale = book.centroids.astype(dtype), book.scale[..., 0].astype(dtype)
        self._borders = (self._centroids[1:] + self._centroids[:-1]) / 2
        self._zeros = None if zeros is None else np.ascontiguousarray(np.swapaxes(zeros, 1, 2))
        self._zero = int(np.argmin(np.abs(self._centroids)))
        self._codes: dict[int, Array] = {}

    def begin(self, start: int, weights: Array) -> None:
        """Nothing depends on where a step begins."""

    def project(self, position: int, column: Array) -> Array:
        """The centroids of a column."""
        relative = column / self._scale
        codes = np.searchsorted(self._borders, relative) if self._toll is None else self._cheapest(position, relative, self._toll)
        if self._zeros is not None:
            codes[self._zeros[:, position]] = self._zero
        self._codes[position] = codes.astype(np.uint8)
        found: Array = self._centroids[codes] * self._scale
        return found

    def _cheapest(self, position: int, relative: Array, toll: _Toll) -> Array:
        price = (toll.price[:, position, None] * np.square(self._scale)).astype(relative.dtype)
        cost = np.square(relative[..., None] - self._centroids)
        cost *= price[..., None]
        cost += toll.bits.astype(relative.dtype)
        codes: Array = cost.argmin(axis=-1)
        return codes

    def codes_of(self, weight: Array) -> Clustered:
        """Each weight by itself."""
        for position, column in enumerate(np.ascontiguousarray(np.moveaxis(weight, 2, 0))):
            self.project(position, column)
        return self.clustered

    @property
    def clustered(self) -> Clustered:
        """All columns, once they have been projected."""
        codes = np.stack([self._codes[position] for position in range(len(self._codes))], axis=2)
        return replace(self._book, codes=codes)


def _fitted(target: Array, gram: Array, found: Clustered, book: Book, *, pinned: bool) -> Clustered:
    """Centroids, then scales, of least error for the codes."""
    centroids = _fit_centroids(target, gram, found, pinned=pinned)
    order = np.argsort(centroids, kind="stable")
    ranks = np.argsort(order).astype(np.uint8)
    found = replace(found, codes=ranks[found.codes], centroids=centroids[order])
    return replace(found, scale=_fit_scales(target, gram, found)) if book.per == "channel" else found


def _fit_centroids(target: Array, gram: Array, found: Clustered, *, pinned: bool) -> Array:
    """Conjugate gradients on the normal equations, which are never formed: a product with the metric each; on :data:`ROWS` rows."""
    rows = slice(None, None, max(1, target.shape[1] // ROWS))
    codes, count = found.codes[:, rows].reshape(-1), found.centroids.size
    scale = (found.scale[:, rows] if found.scale.size > 1 else found.scale).astype(target.dtype)
    target = target[:, rows]

    def gathered(change: Array) -> Array:
        return np.bincount(codes, ((change @ gram) * scale).reshape(-1), count) * free

    def spread(centroids: Array) -> Array:
        weight: Array = centroids.astype(target.dtype)[codes].reshape(target.shape) * scale
        return weight

    free = np.ones(count)
    if pinned:
        free[np.argmin(np.abs(found.centroids))] = 0.0
    weight = np.broadcast_to(np.einsum("gkk->gk", gram)[:, None, :] * scale**2, target.shape)
    diagonal = np.bincount(codes, weight.reshape(-1), count)
    diagonal[diagonal <= 0] = np.inf  # nothing uses it: it stays
    centroids = found.centroids.astype(np.float64)
    residual = gathered(target - spread(centroids))
    direction = step = residual / diagonal
    for _ in range(min(_STEPS, count)):
        seen = gathered(spread(direction))
        size, bend = float(residual @ step), float(direction @ seen)
        if not (size > 0 and bend > 0):
            break
        centroids = centroids + size / bend * direction
        residual = residual - size / bend * seen
        step = residual / diagonal
        direction = step + float(residual @ step) / size * direction
    return centroids.astype(np.float32)


def _fit_scales(target: Array, gram: Array, found: Clustered) -> Array:
    """One number a row; a scale that would change its sign stays."""
    relative = found.centroids.astype(target.dtype)[found.codes]
    seen = relative @ gram
    below = np.einsum("gok,gok->go", seen, relative, dtype=np.float64)
    above = np.einsum("gok,gok->go", seen, target, dtype=np.float64)
    fits = (below > 0) & (above > 0)
    scale: Array = np.where(fits, above / np.where(fits, below, 1.0), found.scale[..., 0])
    return scale[..., None].astype(np.float32)

"""Low-rank forms of a weight in the metric of its inputs: two factors of a matrix, or of a kernel.

The closest product of two matrices is the projection onto the leading singular vectors of the whitened weight (SVD-LLM,
arXiv:2403.07378). A kernel that is split along its axes (into k x 1 and 1 x k, arXiv:1405.3866) has no closed form in a metric: its
factors are solved in turns, the second exactly, the first by conjugate gradients.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import scipy.linalg

from graphopt.solve.metric import Metric

Array = np.ndarray[Any, Any]
Map = Callable[[Array], Array]

_ROUNDS = 3
_STEPS = 3
"""Of conjugate gradients in each round: with the preconditioner more change nothing."""
_DAMPING = 1e-7


@dataclass(frozen=True, eq=False)
class Pair:
    """The leading singular vectors of a weight's outputs: all its closest products of two matrices.

    Attributes:
        weight: ``[out, K]`` float64.
        vectors: ``[out, n]`` float64, columns orthonormal, by falling energy.
        energies: ``[n]`` float64, of each: what is lost at the output without it.
    """

    weight: Array
    vectors: Array
    energies: Array

    @classmethod
    def of(cls, weight: Array, metric: Metric) -> Pair:
        """The vectors of a weight ``[1, out, K]`` in a metric over its inputs."""
        matrix = weight[0].astype(np.float64)
        _, out, width = weight.shape
        if out <= width:
            seen = matrix if metric.gram is None else matrix @ metric.gram[0] + metric.ridge[0] * matrix
            energies, vectors = scipy.linalg.eigh(seen @ matrix.T)
            return cls(matrix, vectors[:, ::-1], np.maximum(energies[::-1], 0.0))
        whitened = matrix if metric.gram is None else matrix @ metric.root[0]
        energies, right = scipy.linalg.eigh(whitened.T @ whitened)
        energies, right = np.maximum(energies[::-1], 0.0), right[:, ::-1]
        left = whitened @ right / np.sqrt(np.maximum(energies, 1e-300))
        return cls(matrix, left, energies)

    def factors(self, rank: int) -> tuple[Array, Array]:
        """``first [rank, K]`` and ``second [out, rank]``, float64, with ``What = second @ first``."""
        vectors = self.vectors[:, :rank]
        scale = np.maximum(self.energies[:rank], 1e-12 * max(float(self.energies[0]), 1e-300)) ** 0.25
        return (vectors.T @ self.weight) / scale[:, None], vectors * scale


class Split:
    """A kernel whose inputs ``K = n * taps`` are mixed along ``n`` first: ``What = second (first x I)``, closest to a weight.

    Args:
        weight: ``[1, out, n * taps]``.
        metric: over its inputs.
        taps: how many columns share a row of the first factor; they stand next to each other.
    """

    def __init__(self, weight: Array, metric: Metric, taps: int) -> None:
        _, self._out, width = weight.shape
        self._taps, self._n = taps, width // taps
        matrix = weight[0].astype(np.float64)
        self._unfolded = matrix.reshape(self._out, self._n, taps)
        self._has_metric = metric.gram is not None
        if metric.gram is not None:
            gram = np.array(metric.gram[0], np.float64)
            np.einsum("kk->k", gram)[...] += metric.ridge[0]
            self._seen = (matrix @ gram).reshape(self._unfolded.shape)
            blocks = gram.reshape(self._n, taps, self._n, taps)
            self._root = scipy.linalg.cholesky(np.einsum("atbt->ab", blocks) / taps, lower=True)
            self._blocks = np.ascontiguousarray(blocks.transpose(1, 0, 3, 2)).reshape(taps, self._n, taps * self._n)

    def factors(self, rank: int) -> tuple[Array, Array]:
        """``first [rank, n]`` and ``second [out, rank * taps]``, float64; the rows of the first are orthonormal.

        What passes between the factors then has no channel that is far larger than its inputs.
        """
        first = self._leading[:rank]
        for _ in range(_ROUNDS if self._has_metric else 0):  # without a metric the leading directions are the optimum
            first = self._first(first, self._second(first))
        first = np.ascontiguousarray(np.linalg.qr(first.T)[0].T)
        return first, self._second(first)

    @cached_property
    def _leading(self) -> Array:
        """The leading directions of the inputs, each tap for itself: ``[n, n]``, by falling energy."""
        unfolded = self._unfolded.transpose(1, 0, 2).reshape(self._n, -1)
        whitened = self._root.T @ unfolded if self._has_metric else unfolded
        vectors = scipy.linalg.eigh(whitened @ whitened.T)[1][:, ::-1]
        found: Array = (scipy.linalg.solve_triangular(self._root, vectors, lower=True, trans="T") if self._has_metric else vectors).T
        return found

    def _second(self, first: Array) -> Array:
        """The best ``B [out, rank * taps]`` behind ``A``: least squares on what ``A`` lets through."""
        if not self._has_metric:
            plain: Array = np.einsum("ont,rn->ort", self._unfolded, first, optimize=True)  # rows of A are orthonormal
            return plain.reshape(self._out, -1)
        size = len(first) * self._taps
        gram = np.einsum("trun,sn->rtsu", self._through(first), first, optimize=True).reshape(size, size)
        cross = np.einsum("ont,rn->ort", self._seen, first, optimize=True)
        gram.flat[:: size + 1] += _DAMPING * np.trace(gram) / size
        found: Array = scipy.linalg.solve(gram, cross.reshape(self._out, size).T, assume_a="pos").T
        return found

    def _first(self, first: Array, second: Array) -> Array:
        """A better ``A`` in front of ``B``, by preconditioned conjugate gradients."""
        rank, taps = len(first), self._taps
        rows = second.reshape(self._out, rank, taps)
        left = np.einsum("ort,osu->trus", rows, rows, optimize=True)  # [tap, rank, tap, rank]
        wanted = np.einsum("ort,ont->rn", rows, self._seen, optimize=True)
        inner = np.einsum("trts->rs", left)
        inner.flat[:: rank + 1] += 1e-9 * np.trace(inner) / rank + 1e-300
        factor = scipy.linalg.cho_factor(inner)

        def precondition(gradient: Array) -> Array:
            solved: Array = scipy.linalg.cho_solve((self._root, True), scipy.linalg.cho_solve(factor, gradient).T).T
            return solved

        def applied(a: Array) -> Array:
            # One product sums over a tap, a rank and the other tap.
            found: Array = left.reshape(-1, rank).T @ self._through(a).reshape(-1, self._n)
            return found

        return _conjugate_gradients(first, wanted, applied, precondition)

    def _through(self, first: Array) -> Array:
        """``A H``: ``[tap, rank, tap, n]``."""
        return (first @ self._blocks).reshape(self._taps, len(first), self._taps, self._n)


def split_product(first: Array, second: Array) -> Array:
    """``[1, out, n * taps]``: what the factors of a :class:`Split` stand for."""
    rows = second.reshape(len(second), len(first), -1)
    mixed: Array = np.einsum("ort,rn->ont", rows, first, optimize=True)
    return mixed.reshape(1, len(second), -1)


def _conjugate_gradients(x: Array, wanted: Array, applied: Map, precondition: Map) -> Array:
    residual = wanted - applied(x)
    direction = precondition(residual)
    size = float(np.vdot(residual, direction))
    for _ in range(_STEPS):
        if size <= 0.0:
            break
        image = applied(direction)
        step = size / max(float(np.vdot(direction, image)), 1e-300)
        x, residual = x + step * direction, residual - step * image
        conditioned = precondition(residual)
        size, before = float(np.vdot(residual, conditioned)), size
        direction = conditioned + size / before * direction
    return x

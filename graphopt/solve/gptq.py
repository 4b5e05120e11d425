"""GPTQ (arXiv:2210.17323): weights on a grid with error feedback, in the metric of the layer's inputs."""

from __future__ import annotations

from typing import Any

import numpy as np

from graphopt.solve.choice import best_of
from graphopt.solve.column import in_order, out_of_order, project_columns
from graphopt.solve.grid import Grid, Quantized, Scheme, fit_errors, fit_extremes, round_steps, round_to_nearest
from graphopt.solve.metric import Factor, Metric, working_dtype

Array = np.ndarray[Any, Any]

COARSE = 4
"""Bits up to which the order of the columns by activity pays: a quarter less error at 4 bits."""
COARSEST = 3
"""Bits up to which both orders, and polishing, pay: a third less error at 2 bits; at 4 they take twice the time for 7 % less."""


def gptq(weight: Array, metric: Metric, scheme: Scheme) -> Quantized:
    """Quantizes a weight, never worse than rounding to nearest in the metric: rows for which that is better take it.

    The columns go from first to last, scales of blocks fitted to the compensated weights as each block begins; at 4 bits by falling
    activity, on scales fitted beforehand so that blocks stay blocks of neighbours; at fewer each row takes the better of the two.

    Args:
        weight: ``[groups, out, K]``, the target (:meth:`Metric.target` where the inputs have changed), finite.
        metric: of the layer's inputs; without a Gram matrix the result is rounding to nearest.
        scheme: the kind of grid.
    """
    target = weight.astype(working_dtype(weight))
    rounded = _rounded(target, metric, scheme)
    if metric.gram is None:
        return best_of(target, metric, rounded)
    candidates = []
    if not COARSEST < scheme.bits <= COARSE:
        first_to_last = _block_by_block if isinstance(scheme.per, int) else _on_fitted_grid
        candidates.append(first_to_last(target, metric.factor, scheme))
    if scheme.bits <= COARSE:
        candidates.append(_by_activity(target, metric, scheme))
    return best_of(target, metric, [*candidates, *rounded])


def _block_by_block(target: Array, factor: Factor, scheme: Scheme) -> Quantized:
    onto = _GrowingGrid(target.shape, factor, scheme)
    project_columns(target, factor, onto, step=scheme.block(target.shape[2]))
    return onto.quantized()


def _by_activity(target: Array, metric: Metric, scheme: Scheme) -> Quantized:
    order = metric.activity_order()
    factor = metric.factor_in(order)
    energy = np.take_along_axis(factor.energy, np.argsort(order, axis=1), axis=1)
    grid = fit_errors(target, scheme, energy)
    scale, zero_point = (in_order(np.broadcast_to(part, target.shape), order) for part in grid.columns(target.shape[2]))
    onto = FixedGrid(target.shape, scale, zero_point, scheme)
    project_columns(in_order(target, order), factor, onto)
    return Quantized(out_of_order(np.swapaxes(onto.codes, 1, 2), order), grid)


class FixedGrid:
    """Projects columns onto scales known beforehand.

    Attributes:
        codes: ``[groups, K, out]``, of the columns that were projected.
    """

    def __init__(self, shape: tuple[int, ...], scale: Array, zero_point: Array, scheme: Scheme) -> None:
        """Takes the scales of single weights: ``[groups, out, K]``, or what broadcasts to it."""
        groups, out, width = shape
        self.codes = np.empty((groups, width, out), scheme.dtype)
        self._scheme = scheme
        self._scale = np.ascontiguousarray(np.swapaxes(scale, 1, 2))
        self._zero_point = np.ascontiguousarray(np.swapaxes(zero_point, 1, 2), dtype=np.float32)

    def begin(self, start: int, weights: Array) -> None:
        """Nothing depends on where a step begins."""

    def project(self, position: int, column: Array) -> Array:
        """The nearest point of the column's own grid."""
        scale, zero_point = self._scale[:, position], self._zero_point[:, position]
        steps: Array = round_steps(column, scale, zero_point, self._scheme)
        self.codes[:, position] = steps + zero_point
        steps *= scale
        return steps


class _GrowingGrid:
    """Projects columns onto block scales that are fitted to the compensated weights when their block begins."""

    def __init__(self, shape: tuple[int, ...], factor: Factor, scheme: Scheme) -> None:
        groups, out, width = shape
        self._codes = np.empty((groups, width, out), scheme.dtype)
        self._scheme = scheme
        self._energy = factor.energy
        self._scales: list[Array] = []
        self._zero_points: list[Array] = []
        self._zero_point: Array = np.zeros((groups, out), np.float32)

    def begin(self, start: int, weights: Array) -> None:
        """Fits the scale of the block that begins."""
        energy = self._energy[:, start : start + weights.shape[1]]
        grid = fit_errors(np.ascontiguousarray(np.swapaxes(weights, 1, 2)), self._scheme, energy)
        self._scales.append(grid.scale)
        self._zero_points.append(grid.zero_point)
        self._zero_point = grid.zero_point[..., 0].astype(np.float32)

    def project(self, position: int, column: Array) -> Array:
        """The nearest point of the current block's grid."""
        scale = self._scales[-1][..., 0]
        steps = round_steps(column, scale, self._zero_point, self._scheme)
        self._codes[:, position] = steps + self._zero_point
        steps *= scale
        return steps

    def quantized(self) -> Quantized:
        """All columns, once the loop is through."""
        grid = Grid(np.concatenate(self._scales, axis=2), np.concatenate(self._zero_points, axis=2), self._scheme)
        return Quantized(np.ascontiguousarray(np.swapaxes(self._codes, 1, 2)), grid)


def _on_fitted_grid(target: Array, factor: Factor, scheme: Scheme) -> Quantized:
    """GPTQ on a grid with one scale a channel or a tensor."""
    grid = fit_errors(target, scheme, factor.energy)
    scale, zero_point = (np.broadcast_to(part, target.shape) for part in (grid.scale, grid.zero_point))
    onto = FixedGrid(target.shape, scale, zero_point, scheme)
    project_columns(target, factor, onto)
    return Quantized(np.ascontiguousarray(np.swapaxes(onto.codes, 1, 2)), grid)


def _rounded(target: Array, metric: Metric, scheme: Scheme) -> list[Quantized]:
    """Rounding to nearest on the two grids that others use: least weighted error, and extremes."""
    diagonal = metric.diagonal(target.shape[0], target.shape[2])
    return [round_to_nearest(target, grid) for grid in (fit_errors(target, scheme, diagonal), fit_extremes(target, scheme))]

"""The best of several results of the same solver's kind, in the metric."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from graphopt.solve.grid import Grid, Quantized
from graphopt.solve.metric import ROWS, Metric

Array = np.ndarray[Any, Any]


def best_of(target: Array, metric: Metric, candidates: Sequence[Quantized]) -> Quantized:
    """Of several results the one of least error: row by row where rows are independent, else as a whole.

    Args:
        target: ``[groups, out, K]``, what is approximated.
        metric: in which the error is measured.
        candidates: on grids of the same scheme; the first wins a tie. One that is better on none of many rows spread over the groups
            is not looked at any further.
    """
    candidates = [candidates[0], *_promising(target, metric, candidates)]
    if len(candidates) == 1:
        return candidates[0]
    if candidates[0].grid.scheme.per == "tensor":
        return min(candidates, key=lambda one: float(metric.error(target, one.weight).sum()))
    best, error = candidates[0], metric.error(target, candidates[0].weight)
    for candidate in candidates[1:]:
        other = metric.error(target, candidate.weight)
        wins = other < error
        if metric.output is not None:  # rows depend on each other within a group
            wins = np.broadcast_to((other.sum(axis=1) < error.sum(axis=1))[:, None], error.shape)
        error = np.where(wins, other, error)
        where = wins[..., None]
        scale = np.where(where, candidate.grid.scale, best.grid.scale)
        zero_point = np.where(where, candidate.grid.zero_point, best.grid.zero_point)
        best = Quantized(np.where(where, candidate.codes, best.codes), Grid(scale, zero_point, best.grid.scheme))
    return best


def _promising(target: Array, metric: Metric, candidates: Sequence[Quantized]) -> list[Quantized]:
    """Those after the first that are better than it on some of :data:`ROWS` rows; all where there are few rows, or they are no judge."""
    first, *others = candidates
    step = target.shape[1] // ROWS
    if step < 2 or first.grid.scheme.per == "tensor" or metric.output is not None:
        return others
    some = target[:, ::step]
    error = metric.error(some, first.weight[:, ::step])
    return [one for one in others if (metric.error(some, one.weight[:, ::step]) < error).any()]

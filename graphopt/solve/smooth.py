"""Scales that make a layer's inputs easier to quantize: ``X' = X / scale``, ``W' = W scale`` is the same function.

As in Outlier Suppression+ (arXiv:2304.09145), channels beyond a threshold shrink to it and others stay. SmoothQuant's scales
(arXiv:2211.10438) also let small channels grow, which gains nothing on the samples and loses much where such a channel turns out large.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from graphopt.solve.grid import Scheme, fit_extremes, round_to_nearest

Array = np.ndarray[Any, Any]

_LEVELS = 255
_THRESHOLDS = np.geomspace(1.0, 0.01, 41)
"""Those that are tried, as shares of the largest reach."""


@dataclass(frozen=True, eq=False)
class Inputs:
    """What is known of a layer's inputs, call by call: each call's data are quantized by themselves.

    Attributes:
        low: ``[calls, K]``, the smallest value of each channel.
        high: ``[calls, K]``, the largest.
        energy: ``[K]``, the mean square.
    """

    low: Array
    high: Array
    energy: Array

    @property
    def reach(self) -> Array:
        """``[K]``, the largest magnitude."""
        reach: Array = np.maximum(np.abs(self.low), np.abs(self.high)).max(axis=0)
        return reach

    def steps(self, scales: Array) -> Array:
        """``[calls]``, the rounding step of each call's data, divided by ``scales [K]``."""
        return _step((self.low / scales).min(axis=1), (self.high / scales).max(axis=1))


def threshold_scales(reach: Array, threshold: float) -> Array:
    """``max(1, reach / threshold)``: channels beyond the threshold shrink to it, others stay.

    Args:
        reach: ``[K]``, the largest magnitude of each input channel.
        threshold: positive.

    Returns:
        ``[K]`` float64, at least 1.
    """
    return np.maximum(1.0, reach.astype(np.float64) / threshold)


def expected_error(weight: Array, inputs: Inputs, scales: Array, unseen: float = 0.0) -> float:
    """Mean squared error per position at the output, from the noise of both roundings: one scale a call for data, one a row for weights.

    A rounding step ``d`` makes noise of variance ``d**2 / 12``: enough to compare scales with each other, without running anything.

    Args:
        weight: ``[out, K]``, all layers that share the input stacked along ``out``.
        inputs: before scaling.
        scales: ``[K]``, at least 1.
        unseen: share of calls whose range the scales leave as it was, since their outliers are in other channels.
    """
    steps = (1 - unseen) * inputs.steps(scales) ** 2 + unseen * inputs.steps(np.ones_like(scales)) ** 2
    row_steps = 2 * np.abs(weight * scales).max(axis=1) / _LEVELS
    of_data = steps.mean() / 12 * np.sum(np.square(weight, dtype=np.float64).sum(axis=0) * scales**2)
    of_weights = np.sum(row_steps**2) / 12 * np.sum(inputs.energy / scales**2)
    return float(of_data + of_weights)


def best_threshold(weight: Array, inputs: Inputs, classes: Array | None = None) -> Array:
    """The scales of the threshold with the least expected error.

    By Laplace's rule of succession one call in ``calls + 1`` is taken to have outliers where none have been seen: the fewer calls, the
    less the weights of outlier channels grow for a range that may not shrink. Data that the samples did not hold never get a coarser
    step than without scales.

    Args:
        weight: ``[out, K]``, all layers that share the input stacked along ``out``, or some of their rows.
        inputs: what is known of the input.
        classes: ``[K]``, channels of one class get one scale, as heads that share their values must; None: each has its own.

    Returns:
        ``[K]`` float64, at least 1; ones where nothing lowers the error.
    """
    reach = inputs.reach if classes is None else _largest(inputs.reach, classes)
    if not (np.isfinite(reach).all() and reach.max(initial=0.0) > 0):
        return np.ones(weight.shape[1])
    unseen = 1 / (len(inputs.low) + 1)
    candidates = [threshold_scales(reach, float(reach.max()) * share) for share in _THRESHOLDS]
    return min(candidates, key=lambda scales: expected_error(weight, inputs, scales, unseen))


def measured_error(weight: Array, rows: Array, low: Array, high: Array, scales: Array) -> float:
    """Squared error at the output of a product in 8 bits, as a layer quantized at each call computes it, summed over rows.

    Args:
        weight: ``[out, K]``.
        rows: ``[rows, K]``, some of a call's.
        low: ``[K]``, the smallest value of each channel in that call.
        high: ``[K]``, the largest.
        scales: ``[K]``, what the data are divided by.
    """
    scaled = (weight * scales)[None]
    stored = round_to_nearest(scaled, fit_extremes(scaled, Scheme(8))).weight[0]
    lowest, highest = (low / scales).min(keepdims=True), (high / scales).max(keepdims=True)
    step = float(_step(lowest, highest)[0]) or 1.0
    zero_point = np.rint(-min(float(lowest[0]), 0.0) / step)
    codes = np.clip(np.rint(rows / scales / step) + zero_point, 0, _LEVELS) - zero_point
    lost = (codes * step).astype(np.float32) @ stored.T - rows.astype(np.float32) @ weight.astype(np.float32).T
    return float(np.square(lost, dtype=np.float64).sum())


def _step(low: Array, high: Array) -> Array:
    """The step of a range that holds 0."""
    step: Array = (np.maximum(high, 0.0) - np.minimum(low, 0.0)) / _LEVELS
    return step


def _largest(values: Array, classes: Array) -> Array:
    """The largest value of each channel's class."""
    largest = np.zeros(classes.max(initial=-1) + 1, values.dtype)
    np.maximum.at(largest, classes, values)
    return largest[classes]

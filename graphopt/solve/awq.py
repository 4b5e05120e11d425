"""AWQ (arXiv:2306.00978): scales of input channels that let a grid serve the active channels better."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from graphopt.solve.grid import Scheme, fit_extremes, round_to_nearest
from graphopt.solve.metric import Metric, working_dtype

Array = np.ndarray[Any, Any]

ALPHAS = tuple(step / 20 for step in range(21))


@dataclass(frozen=True, eq=False)
class Scaling:
    """Scales of a layer's input channels, and what they bring.

    Attributes:
        scales: ``[groups, K]`` float32, positive: the weight is multiplied by them, the input divided.
        alpha: the exponent that was chosen; 0 leaves everything as it was.
        error: error in the metric with the scales.
        unscaled: error without.
    """

    scales: Array
    alpha: float
    error: float
    unscaled: float


def awq_scales(weight: Array, metric: Metric, activity: Array, scheme: Scheme) -> Scaling:
    """The scales ``mean|X|**alpha`` of least ``tr((W - Q(W s) / s) H (...)^T)`` over 21 values of ``alpha``.

    Layers that share an input share the scales: stack their weights along ``out``. With one scale a tensor they need a call each.

    Args:
        weight: ``[groups, out, K]``.
        metric: of the inputs as they are now.
        activity: ``[groups, K]``, the mean of ``|X|`` per channel, not negative.
        scheme: the grid that will be used.
    """
    dtype = working_dtype(weight)
    weight = weight.astype(dtype)
    found: list[tuple[float, float, Array]] = []
    for alpha in ALPHAS:
        scales = activity_scales(activity, alpha).astype(dtype)
        scaled = weight * scales[:, None, :]
        restored = round_to_nearest(scaled, fit_extremes(scaled, scheme)).weight / scales[:, None, :]
        found.append((float(metric.error(weight, restored).sum()), alpha, scales))
    error, alpha, scales = min(found, key=lambda one: one[:2])
    return Scaling(scales.astype(np.float32), alpha, error, found[0][0])


def activity_scales(activity: Array, alpha: float) -> Array:
    """``activity**alpha``, normalized so that the largest times the smallest is 1; channels that are never active get 1.

    Args:
        activity: ``[groups, K]``, not negative.
        alpha: the exponent.

    Returns:
        ``[groups, K]`` float64, between 1e-4 and 1e4.
    """
    alive = activity > 0
    powers = np.where(alive, activity, 1.0).astype(np.float64) ** alpha
    largest = np.max(powers, axis=-1, keepdims=True, initial=1e-300, where=alive)
    smallest = np.min(powers, axis=-1, keepdims=True, initial=1e300, where=alive)
    middle = np.where(alive.any(axis=-1, keepdims=True), np.sqrt(largest) * np.sqrt(smallest), 1.0)
    return np.where(alive, np.clip(powers / middle, 1e-4, 1e4), 1.0)

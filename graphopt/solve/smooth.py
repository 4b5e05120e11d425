"""SmoothQuant (arXiv:2211.10438) and Outlier Suppression+ (arXiv:2304.09145): inputs that are easier to quantize, from their extremes.

``X' = (X - shift) / scale``, ``W' = W scale``, ``b' = b + W shift`` is the same function; what comes before the layer absorbs the first.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

SMALLEST = 1e-5
"""Ranges below this share of the largest count as this share, so that no scale explodes."""

WORTH = 0.99
"""Scales must lower the expected error to this share at least."""


@dataclass(frozen=True, eq=False)
class Inputs:
    """What is known of a layer's inputs, channel by channel.

    Attributes:
        low: ``[K]``, the smallest value seen.
        high: ``[K]``, the largest.
        energy: ``[K]``, the mean square: the diagonal of H by the number of positions.
    """

    low: Array
    high: Array
    energy: Array

    @property
    def reach(self) -> Array:
        """``[K]``, the largest magnitude."""
        return np.maximum(np.abs(self.low), np.abs(self.high))

    def shifted(self, mean: Array) -> tuple[Array, Inputs]:
        """Outlier Suppression+'s shift ``(low + high) / 2`` ``[K]``, and the inputs after it; ``mean [K]`` is that of the inputs."""
        shift = (self.low + self.high) / 2
        energy = np.maximum(self.energy - 2 * shift * mean + shift**2, 0.0)
        return shift, Inputs(self.low - shift, self.high - shift, energy)


def smooth_scales(reach: Array, weight_reach: Array, alpha: float) -> Array:
    """SmoothQuant's scales: ``reach**alpha / weight_reach**(1 - alpha)``, with the geometric mean 1.

    Args:
        reach: ``[K]``, the largest magnitude of each input channel.
        weight_reach: ``[K]``, the largest magnitude among its weights, over all layers that share the input.
        alpha: 0 to 1; how much of the difficulty moves from the inputs to the weights.

    Returns:
        ``[K]`` float64, positive; 1 where inputs or weights are all zero.
    """
    alive = (reach > 0) & (weight_reach > 0)
    if not alive.any():
        return np.ones(reach.shape)
    inputs = np.maximum(reach.astype(np.float64), SMALLEST * reach.max())
    weights = np.maximum(weight_reach.astype(np.float64), SMALLEST * weight_reach.max())
    logarithm = np.where(alive, alpha * np.log(inputs) - (1 - alpha) * np.log(weights), 0.0)
    return np.exp(np.where(alive, logarithm - logarithm[alive].mean(), 0.0))


def threshold_scales(reach: Array, threshold: float) -> Array:
    """Outlier Suppression+'s scales: ``max(1, reach / threshold)``: channels beyond the threshold shrink to it, others stay.

    Args:
        reach: ``[K]``, the largest magnitude of each input channel, after the shift.
        threshold: positive.

    Returns:
        ``[K]`` float64, at least 1.
    """
    return np.maximum(1.0, reach.astype(np.float64) / threshold)


def expected_error(weight: Array, inputs: Inputs, scales: Array, weight_levels: int = 255, levels: int = 255) -> float:
    """Mean squared error per position at the output, from the noise of both roundings: one scale for inputs, one a row for weights.

    A rounding step ``d`` makes noise of variance ``d**2 / 12``: enough to compare scales with each other, without running anything.

    Args:
        weight: ``[out, K]``, all layers that share the input stacked along ``out``.
        inputs: before scaling.
        scales: ``[K]``, positive.
        weight_levels: steps that span a row's symmetric range.
        levels: steps that span the inputs' range.
    """
    step = (max(float((inputs.high / scales).max()), 0.0) - min(float((inputs.low / scales).min()), 0.0)) / levels
    scaled = weight.astype(np.float64) * scales
    row_steps = 2 * np.abs(scaled).max(axis=1) / weight_levels
    of_inputs = step**2 / 12 * np.einsum("ok,ok->", scaled, scaled)
    of_weights = np.sum(row_steps**2) / 12 * np.sum(inputs.energy / scales**2)
    return float(of_inputs + of_weights)


def best_smooth(weight: Array, inputs: Inputs, classes: Array | None = None) -> Array:
    """SmoothQuant's scales with the alpha of least expected error; ones where none helps.

    Args:
        weight: ``[out, K]``, all layers that share the input stacked along ``out``.
        inputs: what is known of the input.
        classes: ``[K]``, channels of one class get one scale, as heads that share their values must; None: each has its own.

    Returns:
        ``[K]`` float64.
    """
    weight_reach, reach = np.abs(weight).max(axis=0), inputs.reach
    if classes is not None:
        weight_reach, reach = _largest(weight_reach, classes), _largest(reach, classes)
    return _best(weight, inputs, (smooth_scales(reach, weight_reach, step / 20) for step in range(21)))


def best_threshold(weight: Array, inputs: Inputs) -> Array:
    """Outlier Suppression+'s scales with the threshold of least expected error; ones where none helps.

    Args:
        weight: ``[out, K]``, all layers that share the input stacked along ``out``.
        inputs: what is known of the input, after the shift.

    Returns:
        ``[K]`` float64.
    """
    largest = float(inputs.reach.max(initial=0.0))
    if largest <= 0:
        return np.ones(weight.shape[1])
    return _best(weight, inputs, (threshold_scales(inputs.reach, largest * share) for share in np.geomspace(1.0, 0.01, 41)))


def _largest(values: Array, classes: Array) -> Array:
    """The largest value of each channel's class."""
    largest = np.zeros(classes.max(initial=-1) + 1, values.dtype)
    np.maximum.at(largest, classes, values)
    return largest[classes]


def _best(weight: Array, inputs: Inputs, candidates: Iterable[Array]) -> Array:
    """The candidate of least expected error, or ones where that is not lower by a share worth another rewrite."""
    plain = np.ones(weight.shape[1])
    best = min(candidates, key=lambda scales: expected_error(weight, inputs, scales))
    return best if expected_error(weight, inputs, best) < WORTH * expected_error(weight, inputs, plain) else plain

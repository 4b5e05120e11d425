"""Ranges of activations: which part of a histogram a grid of few codes should cover. Zero always lies within."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

LEVELS = 256
"""Codes of an 8-bit activation."""
WINDOWS = 128
"""Thresholds that the entropy is computed for, where onnxruntime computes all: neighbours hardly differ."""
_FLAT = 1e-3
"""Of what a response reaches over: a quarter of a step of 8-bit codes, which is nothing to look for beyond."""


@dataclass(frozen=True)
class Range:
    """What a grid covers: ``low <= 0 <= high``, since padding and Relu make zeros that must stay zeros."""

    low: float
    high: float

    def __post_init__(self) -> None:
        assert self.low <= 0.0 <= self.high, f"zero lies outside {self.low}..{self.high}"

    @classmethod
    def of(cls, low: float, high: float) -> Range:
        """The smallest range with ``low``, ``high`` and zero."""
        return cls(min(float(low), 0.0), max(float(high), 0.0))

    def clamped(self, low: float | None, high: float | None) -> Range:
        """What is left after a Relu or Clip that directly follows: no codes are spent on what it cuts off."""
        lowest = self.low if low is None else max(self.low, low)
        highest = self.high if high is None else min(self.high, high)
        return Range.of(min(lowest, highest), max(lowest, highest))

    def grid(self, levels: int = LEVELS) -> tuple[float, int]:
        """Scale (rounded to float32) and zero point of the unsigned asymmetric grid: ``x = (code - zero_point) * scale``."""
        span = self.high - self.low
        if span <= 0.0:
            return 1.0, 0
        scale = float(np.float32(max(span / (levels - 1), float(np.finfo(np.float32).tiny))))
        return scale, int(np.clip(np.rint(-self.low / scale), 0, levels - 1))


@dataclass(frozen=True, eq=False)
class Histogram:
    """How often values fell into bins of equal width.

    Attributes:
        counts: ``[bins]``, not negative.
        low: lower edge of the first bin, the smallest value seen.
        high: upper edge of the last bin, the largest value seen.
    """

    counts: Array
    low: float
    high: float

    @property
    def edges(self) -> Array:
        """``[bins + 1]`` float64."""
        return np.linspace(self.low, self.high, len(self.counts) + 1)

    @property
    def centres(self) -> Array:
        """``[bins]`` float64."""
        edges = self.edges
        return (edges[:-1] + edges[1:]) / 2

    @property
    def empty(self) -> bool:
        """Nothing was seen, or always the same value: all rules then give the extremes."""
        return self.high <= self.low or not self.counts.any()


def extremes(histogram: Histogram) -> Range:
    """Everything that was seen."""
    return Range.of(histogram.low, histogram.high)


def percentile(histogram: Histogram, share: float = 0.9999) -> Range:
    """The middle ``share`` of the values: half of the rest is cut off at each side."""
    if histogram.empty:
        return extremes(histogram)
    cumulative = np.concatenate([[0.0], np.cumsum(histogram.counts, dtype=np.float64)])
    cumulative /= cumulative[-1]
    rest = (1.0 - share) / 2
    edges = histogram.edges
    low, high = np.interp([rest, 1.0 - rest], cumulative, edges)
    # Where no value is cut off, interpolation over empty bins must not move the end either.
    return Range.of(low if rest > 0 else histogram.low, high if rest > 0 else histogram.high)


def least_error(histogram: Histogram, response: Callable[[Array], Array] | None = None, levels: int = LEVELS) -> Range:
    """The range with the least mean squared error of rounding and clipping together.

    Args:
        histogram: of the values.
        response: what is made of each value, where it is not the value itself that counts: the error is that of the results.
        levels: codes.
    """
    whole = extremes(histogram)
    if histogram.empty:
        return whole
    values, weights = _occupied(histogram)
    error_of = _Error(values, weights, response or np.asarray, levels)
    best = whole if response is None else _sloping(values, error_of.wanted)
    error, reach = error_of(best), 0.5
    # Coarse to fine: both ends by all pairs of factors, then around the best pair at half the reach.
    for _ in range(5):
        centre = best
        for low in _around(centre.low, whole.low, reach):
            for high in _around(centre.high, whole.high, reach):
                trial = Range(float(low), float(high))
                found = error_of(trial)
                if found < error:
                    best, error = trial, found
        reach /= 2.0
    return best


def entropy(histogram: Histogram, levels: int = 128) -> Range:
    """The range whose quantized distribution diverges least from the clipped one (Kullback-Leibler), as onnxruntime and TensorRT do.

    Thresholds are symmetric about zero and end where the values end. Zeros do not count, since every grid has them: a Relu makes so
    many that else the narrowest range would win, which alone keeps them apart from their neighbours.

    Args:
        histogram: of 2048 bins or so: with few bins there is nothing to choose.
        levels: codes on both sides of zero together.
    """
    whole = extremes(histogram)
    if histogram.empty:
        return whole
    counts, centres = _without_zeros(histogram), histogram.centres
    width = (histogram.high - histogram.low) / len(counts)
    largest = max(-whole.low, whole.high)
    least = levels * width / 2
    if least >= largest:
        return whole
    found = [
        (_divergence(counts, np.abs(centres) <= threshold, centres, levels), threshold)
        for threshold in np.linspace(largest, least, WINDOWS)
    ]
    _, threshold = min(found, key=lambda pair: pair[0])
    return Range(max(whole.low, -float(threshold)), min(whole.high, float(threshold)))


def _without_zeros(histogram: Histogram) -> Array:
    """Counts, float64; the bin that holds zero counts as its neighbours do."""
    counts, edges = histogram.counts.astype(np.float64), histogram.edges
    zero = int(np.clip(np.searchsorted(edges, 0.0, side="right") - 1, 0, len(counts) - 1))
    around = [counts[index] for index in (zero - 1, zero + 1) if 0 <= index < len(counts)]
    counts[zero] = min(counts[zero], np.mean(around)) if around else counts[zero]
    return counts


def _occupied(histogram: Histogram) -> tuple[Array, Array]:
    """Values and their shares, the ends of the histogram themselves instead of the middles of their bins."""
    values, counts = histogram.centres, histogram.counts.astype(np.float64)
    values[0], values[-1] = histogram.low, histogram.high
    seen = counts > 0
    return values[seen], counts[seen] / counts.sum()


def _around(value: float, limit: float, reach: float) -> Array:
    """Ends to try: factors about the best so far, none beyond the extremes."""
    if limit == 0.0:
        return np.zeros(1)
    tried = value * (1.0 + reach * np.linspace(-1.0, 1.0, 9))
    return np.unique(np.clip(tried, min(limit, 0.0), max(limit, 0.0)))


def _sloping(values: Array, wanted: Array) -> Range:
    """The part of rising values between whose ends what is wanted of them changes by more than next to nothing."""
    least = _FLAT * np.ptp(wanted)
    beyond_first, beyond_last = (np.flatnonzero(np.abs(wanted - wanted[end]) > least) for end in (0, -1))
    if not len(beyond_first):
        return Range.of(values[0], values[-1])
    return Range.of(values[beyond_first[0] - 1], values[beyond_last[-1] + 1])


class _Error:
    """The mean squared error of what is made of values, by the range of their grid."""

    def __init__(self, values: Array, weights: Array, response: Callable[[Array], Array], levels: int) -> None:
        self.wanted = response(values)
        self._values, self._weights, self._response, self._levels = values, weights, response, levels

    def __call__(self, trial: Range) -> float:
        scale, zero_point = trial.grid(self._levels)
        codes = np.clip(np.rint(self._values / scale) + zero_point, 0, self._levels - 1)
        return float(self._weights @ (self._response((codes - zero_point) * scale) - self.wanted) ** 2)


def _divergence(counts: Array, inside: Array, centres: Array, levels: int) -> float:
    """KL divergence of the clipped distribution, tails piled up at the ends, from its version with ``levels`` codes."""
    kept = counts[inside]
    bins = len(kept)
    if bins == 0 or kept.sum() == 0:
        return float("inf")
    first = int(np.argmax(inside))
    clipped = kept.copy()
    clipped[0] += counts[:first].sum()
    clipped[-1] += counts[first + bins :].sum()
    # Codes per side keep their width: a one-sided histogram has half of them.
    codes = max(1, min(bins, round(levels * bins * (centres[1] - centres[0]) / (2 * np.abs(centres[inside]).max()))))
    code = np.arange(bins) * codes // bins
    present = clipped > 0
    totals = np.bincount(code, kept, codes)
    members = np.bincount(code, present, codes)
    merged = np.where(present, totals[code] / np.maximum(members[code], 1), 0.0)
    reference, approximation = clipped / clipped.sum(), merged / merged.sum()
    # A bin that holds only clipped values has no counterpart: a small probability instead of an infinite divergence, as onnxruntime.
    used = reference > 0
    return float(np.sum(reference[used] * np.log(reference[used] / np.maximum(approximation[used], 1e-4 / bins))))

"""What samples told about one value: extremes, means and, where wanted, a histogram and extremes by channel."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from graphopt.errors import StatisticsError
from graphopt.runtime.statistics.histogram import Histogram

Array = np.ndarray[Any, Any]

_CHUNK = 1 << 16
"""Elements that are looked at together: they, and the places of their bins, stay in a core's cache."""

_LARGE = 1e30
"""Chunks with larger numbers, as masks of attention have, are summed in float64: float32 would overflow."""


@dataclass
class Channels:
    """Extremes along one axis.

    Attributes:
        axis: which one; negative counts from the end.
        minimum: ``float64 [channels]``.
        maximum: ``float64 [channels]``.
    """

    axis: int
    minimum: Array
    maximum: Array

    @classmethod
    def of(cls, array: Array, axis: int) -> Channels:
        """The extremes of one array."""
        others = tuple(other for other in range(array.ndim) if other != axis % array.ndim)
        low = np.fmin.reduce(array, axis=others, initial=np.inf)
        high = np.fmax.reduce(array, axis=others, initial=-np.inf)
        return cls(axis, low.astype(np.float64), high.astype(np.float64))

    def merge(self, other: Self) -> Channels:
        """The extremes of both.

        Raises:
            StatisticsError: the axes differ in length, as they do where their length is that of a sample.
        """
        if self.axis != other.axis or self.minimum.shape != other.minimum.shape:
            raise StatisticsError(f"axis {self.axis} has {self.minimum.size} channels in one sample and {other.minimum.size} in another")
        return Channels(self.axis, np.fmin(self.minimum, other.minimum), np.fmax(self.maximum, other.maximum))


@dataclass
class ValueStatistics:
    """What samples told about one value.

    Sums are taken in float32 over at most 65,536 elements (over a whole sample where the runtime takes them) and added in
    float64. NaN is left out of extremes and shows in the means.

    Attributes:
        count: elements seen.
        minimum: the smallest; infinite while nothing was seen.
        maximum: the largest; negative infinite while nothing was seen.
        total: the sum.
        channels: extremes along an axis, where they were asked for and something was seen.
        histogram: where it was asked for.
    """

    count: int = 0
    minimum: float = math.inf
    maximum: float = -math.inf
    total: float = 0.0
    channels: Channels | None = None
    histogram: Histogram | None = None

    @property
    def mean(self) -> float:
        """The mean; NaN while nothing was seen."""
        return self.total / self.count if self.count else math.nan

    @property
    def magnitude(self) -> float:
        """The largest absolute value."""
        return max(-self.minimum, self.maximum, 0.0)

    def add(self, array: Array, axis: int | None = None) -> None:
        """Takes in one sample's value.

        Args:
            array: floating, of any shape.
            axis: of the extremes by channel; None for none.
        """
        if array.dtype not in (np.float32, np.float64):
            array = array.astype(np.float32)
        flat = array.reshape(-1)
        for start in range(0, flat.size, _CHUNK):
            self._add_chunk(flat[start : start + _CHUNK])
        if axis is not None and array.size:
            self.add_channels(Channels.of(array, axis))

    def add_channels(self, found: Channels) -> None:
        """Takes in one sample's extremes by channel."""
        self.channels = found if self.channels is None else self.channels.merge(found)

    def absorb(self, other: Self) -> None:
        """Takes in count, extremes and sums of another's."""
        self.count += other.count
        self.minimum, self.maximum = min(self.minimum, other.minimum), max(self.maximum, other.maximum)
        self.total += other.total

    def merge(self, other: Self) -> ValueStatistics:
        """The statistics of both: counts, extremes and histograms exactly, sums to float64 rounding.

        Raises:
            StatisticsError: their channels differ in number.
        """
        channels, histogram = self.channels or other.channels, self.histogram or other.histogram
        if self.channels and other.channels:
            channels = self.channels.merge(other.channels)
        if self.histogram and other.histogram:
            histogram = self.histogram.merge(other.histogram)
        merged = ValueStatistics(channels=channels, histogram=histogram)
        merged.absorb(self)
        merged.absorb(other)
        return merged

    def _add_chunk(self, chunk: Array) -> None:
        low, high = float(chunk.min()), float(chunk.max())
        magnitude = max(-low, high)
        if math.isnan(low):
            low, high = float(np.fmin.reduce(chunk)), float(np.fmax.reduce(chunk))
        self.count += chunk.size
        # `min` and `max` keep their first argument where the second is NaN.
        self.minimum, self.maximum = min(self.minimum, low), max(self.maximum, high)
        wide = None if magnitude < _LARGE else np.float64
        self.total += float(chunk.sum(dtype=wide))
        if self.histogram is not None:
            self.histogram.add(chunk, magnitude)

"""Histograms whose range grows by powers of two, so that merging them is exact."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np

Array = np.ndarray[Any, Any]

SIDE = 4096
"""Bins on either side of zero; between half and all of those of the larger side lie within the range of the values."""

_SIDE_BITS = 12
_NARROWEST = -100
_LIMIT = 2.0**96


def _empty() -> Array:
    return np.zeros(2 * SIDE, dtype=np.int64)


@dataclass
class Histogram:
    """Counts of values in bins of one width, a power of two, with an edge at zero.

    Bin ``i`` holds ``(i - SIDE) * width <= x < (i - SIDE + 1) * width``. When a value lies outside, the width doubles and
    neighbouring bins become one: the counts are those of a histogram that had the final width from the start, so neither the
    order of the values nor the way in which they were shared out matters.

    Attributes:
        exponent: ``width = 2 ** exponent``.
        counts: ``int64 [2 * SIDE]``.
        outside: how many were NaN, or so large (2**96, as masks of attention are) that they would blur all others.
    """

    exponent: int = _NARROWEST
    counts: Array = field(default_factory=_empty)
    outside: int = 0

    @property
    def width(self) -> float:
        """Of a bin."""
        return 2.0**self.exponent

    @property
    def total(self) -> int:
        """How many values were counted; those outside are left out."""
        return int(self.counts.sum())

    def add(self, values: Array, magnitude: float) -> None:
        """Counts values.

        Args:
            values: one axis, floating.
            magnitude: the largest absolute value among them.
        """
        if not magnitude < _LIMIT:  # also where it is NaN
            kept = values[np.abs(values) < _LIMIT]
            self.outside += values.size - kept.size
            values, magnitude = kept, float(np.max(np.abs(kept), initial=0.0))
        self._widen(math.frexp(magnitude)[1] - _SIDE_BITS)
        places = values * values.dtype.type(2.0**-self.exponent)
        np.floor(places, out=places)
        places += places.dtype.type(SIDE)
        self.counts += np.bincount(places.astype(np.intp), minlength=2 * SIDE)

    def merge(self, other: Self) -> Histogram:
        """The histogram of the values of both."""
        merged = Histogram(self.exponent, self.counts.copy(), self.outside + other.outside)
        merged._widen(other.exponent)
        more = Histogram(other.exponent, other.counts)
        more._widen(self.exponent)
        merged.counts += more.counts
        return merged

    def bins(self) -> tuple[Array, Array]:
        """The bins from the first to the last that hold anything.

        Returns:
            Counts ``int64 [bins]`` and edges ``float64 [bins + 1]``; one empty bin at zero where nothing was counted.
        """
        used = np.flatnonzero(self.counts)
        first, last = (int(used[0]), int(used[-1])) if used.size else (SIDE, SIDE)
        return self.counts[first : last + 1], np.arange(first - SIDE, last - SIDE + 2) * self.width

    def quantile(self, share: float) -> float:
        """The value below which a share (0 to 1) of the values lies, to within a bin."""
        counts, edges = self.bins()
        cumulated = np.concatenate([[0], np.cumsum(counts)])
        return float(np.interp(share * cumulated[-1], cumulated, edges))

    def _widen(self, exponent: int) -> None:
        """Makes bins wider where they are narrower than ``2 ** exponent``."""
        if exponent <= self.exponent:
            return
        merged = min(exponent - self.exponent, _SIDE_BITS)
        kept = SIDE >> merged
        counts = _empty()
        counts[SIDE - kept : SIDE + kept] = self.counts.reshape(2 * kept, -1).sum(axis=1)
        self.exponent, self.counts = exponent, counts

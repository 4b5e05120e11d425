"""Tests of histograms: the same in any order, and not blurred by odd numbers."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from graphopt.runtime.statistics import Histogram
from graphopt.runtime.statistics.values import ValueStatistics


@given(st.lists(st.lists(st.integers(-(10**7), 10**7), min_size=1, max_size=40), min_size=1, max_size=6))
def test_histograms_do_not_depend_on_order(parts: list[list[int]]) -> None:
    """However values are shared out and merged, the histogram is that of all of them, and every value is in its bin."""
    arrays = [(np.array(part) / 997).astype(np.float32) for part in parts]
    apart = [Histogram() for _ in arrays]
    together = Histogram()
    for histogram, array in zip(apart, arrays, strict=True):
        histogram.add(array, float(np.abs(array).max()))
    for array in reversed(arrays):
        together.add(array, float(np.abs(array).max()))
    merged = apart[0]
    for histogram in apart[1:]:
        merged = merged.merge(histogram)
    assert merged.exponent == together.exponent
    np.testing.assert_array_equal(merged.counts, together.counts)
    counts, edges = together.bins()
    exact = np.floor(np.concatenate(arrays).astype(np.float64) / together.width)
    np.testing.assert_array_equal(counts, [np.sum(exact == round(edge / together.width)) for edge in edges[:-1]])


def test_odd_numbers_do_not_blur() -> None:
    """NaN, infinities and the huge numbers of masks stay out of the histogram, and empty samples count nothing."""
    value = ValueStatistics(histogram=Histogram())
    value.add(np.array([1.0, np.nan, -np.inf, -3e38, 2.0], np.float32))
    value.add(np.zeros((0, 3), np.float32), axis=1)
    assert value.histogram is not None
    assert (value.count, value.maximum, value.minimum) == (5, 2.0, -np.inf)
    assert (value.histogram.total, value.histogram.outside) == (2, 3)
    assert value.channels is None

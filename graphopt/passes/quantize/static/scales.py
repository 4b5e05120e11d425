"""Scales: the grid that values in codes share, from what samples told about them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx_ir as ir

from graphopt.graph.view import View
from graphopt.passes.base import Context
from graphopt.passes.quantize.static.grids import Shared
from graphopt.passes.quantize.static.response import Response, response_of
from graphopt.runtime.statistics import Request, ValueStatistics
from graphopt.solve import ranges
from graphopt.solve.ranges import Range

Array = np.ndarray[Any, Any]
Rule = Literal["minmax", "percentile", "entropy", "mse"]
Ranges = Literal["measured", "minmax", "percentile", "entropy", "mse"]

_SHARE = 0.99999
"""Of the values, what the percentile rule covers."""
_OF_ROUNDING = 48.0
"""What a rounded offset, squared, in steps, costs: twelve for the noise of a step, which is 1, times four, since all values share it."""
_BINS = 512
"""Of the histogram that the entropy rule sees: with more it would cut off most of a value that is often next to zero."""
_RULES: Mapping[str, Callable[[ranges.Histogram, Response | None], Range]] = {
    "percentile": lambda histogram, _: ranges.percentile(histogram, _SHARE),
    "entropy": lambda histogram, _: ranges.entropy(_coarser(histogram)),
    "mse": ranges.least_error,
}


@dataclass(frozen=True)
class Scale:
    """A grid of 8-bit codes: ``x = (code - zero_point) * scale``."""

    scale: float
    zero_point: int


def known_values(model: ir.Model, grids: Sequence[Shared], view: View, context: Context, rule: Rule) -> dict[ir.Value, Range]:
    """The range of each value by the rule, where samples showed finite numbers.

    Args:
        model: stays as it is.
        grids: hold the values.
        view: of the model.
        context: holds the samples.
        rule: how ranges are chosen.
    """
    values = [value for grid in grids for value in grid.values]
    names = tuple(value.name or "" for value in values if not view.is_constant(value))
    request = Request(values=names) if rule == "minmax" else Request(histograms=names)
    found = context.statistics(model, request).values
    known = {}
    for value in values:
        constant = view.constant(value)
        range_ = _of_constant(constant) if constant is not None else _remembered(value, found.get(value.name or ""), rule, context)
        if range_ is not None:
            known[value] = range_
    return known


def scales_of(grids: Sequence[Shared], known: Mapping[ir.Value, Range]) -> dict[ir.Value, Scale]:
    """The grid of each value: of all ranges that share it, cut off where a Relu or Clip cuts the values off."""
    scales: dict[ir.Value, Scale] = {}
    for grid in grids:
        parts = [_as_first(known[value], *grid.values[value]) for value in grid.values]
        whole = Range.of(min(part.low for part in parts), max(part.high for part in parts))
        if grid.ceiling is not None:
            whole = whole.clamped(0.0, grid.ceiling)
        scale, zero_point = whole.grid()
        if grid.ceiling is not None and scale * 255 > grid.ceiling:  # half a rounding too much, and the runtime keeps the Clip
            scale = float(np.nextafter(np.float32(scale), np.float32(0)))
        elif grid.ceiling is None:
            scale = _in_step(scale, grid)
            zero_point = int(np.clip(np.rint(-whole.low / scale), 0, 255))
        for value, (factor, offset) in grid.values.items():
            moved = int(np.clip(zero_point - np.rint(offset / (factor * scale)), 0, 255))
            scales[value] = Scale(float(np.float32(factor * scale)), moved)
    return scales


def _as_first(found: Range, factor: float, offset: float) -> Range:
    """A range in what the first value of its grid means; that of zero included, which a padding may need."""
    return Range.of((found.low - offset) / factor, (found.high - offset) / factor)


def _in_step(scale: float, grid: Shared) -> float:
    """A scale, a little larger, of which the largest offset is a whole number of steps, where that is better than to round it."""
    largest = max(abs(offset / factor) for factor, offset in grid.values.values())
    steps = largest / scale
    if steps < 1.0:
        return scale
    coarser, missing = steps / np.floor(steps), abs(steps - np.rint(steps))
    return float(np.float32(scale * coarser)) if coarser**2 < 1.0 + _OF_ROUNDING * missing**2 else scale


def _remembered(value: ir.Value, found: ValueStatistics | None, rule: Rule, context: Context) -> Range | None:
    """The range of a value, which is worked out once for as long as its statistics hold."""
    response = response_of(value)
    key = ("range", rule, value.name, response)
    if found is None or context.solved.get(key, (None,))[0] is not found:
        context.solved[key] = found, _of_samples(found, rule, response)
    range_: Range | None = context.solved[key][1]
    return range_


def _of_constant(array: Array) -> Range | None:
    return Range.of(float(array.min()), float(array.max())) if array.size and np.isfinite(array).all() else None


def _of_samples(found: ValueStatistics | None, rule: Rule, response: Response | None) -> Range | None:
    if found is None or not found.count or not np.isfinite([found.minimum, found.maximum, found.total]).all():
        return None
    whole = Range.of(found.minimum, found.maximum)
    if rule == "minmax" or found.histogram is None:
        return whole
    counts, edges = found.histogram.bins()
    chosen = _RULES[rule](ranges.Histogram(counts, float(edges[0]), float(edges[-1])), response)
    return Range.of(max(chosen.low, whole.low), min(chosen.high, whole.high))


def _coarser(histogram: ranges.Histogram) -> ranges.Histogram:
    """The histogram in at most :data:`_BINS` bins; empty ones are added at its ends."""
    factor = -(-len(histogram.counts) // _BINS)
    width = (histogram.high - histogram.low) / len(histogram.counts)
    below = round(-histogram.low / width) % factor if histogram.low < 0 < histogram.high else 0  # zero stays an edge
    below = (factor - below) % factor
    above = -(len(histogram.counts) + below) % factor
    counts = np.pad(histogram.counts, (below, above)).reshape(-1, factor).sum(axis=1)
    return ranges.Histogram(counts, histogram.low - below * width, histogram.high + above * width)

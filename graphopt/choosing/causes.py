"""Causes: why quantizing a layer costs what it costs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx_ir as ir

from graphopt.graph.layers import Layer, Layout, layers_of
from graphopt.passes.base import Context
from graphopt.passes.quantize.saturation import PAIR_LIMIT, largest_pair_sums
from graphopt.runtime.statistics import Request, Statistics, ValueStatistics

Array = np.ndarray[Any, Any]

Kind = Literal["outlier channel", "range", "saturation", "uncalibrated"]

_OUTLIER = 8.0
"""A channel whose range is so many times the typical one's leaves the others few levels."""
_PEAK = 4.0
"""A range so many times as wide as what nearly all values take leaves these few levels."""
_NEARLY_ALL = 0.999


@dataclass(frozen=True)
class Cause:
    """Something that makes quantizing a layer costly.

    Attributes:
        kind: what.
        figure: how much: a ratio; of saturation the largest sum of a pair of products, relative to what 16 bits hold.
        text: in words, with the figure.
    """

    kind: Kind
    figure: float
    text: str


def causes_of(model: ir.Model, names: Iterable[str], context: Context, *, narrow_sums: bool) -> dict[str, list[Cause]]:
    """What stands out at some layers of a float model, by name of the node.

    Args:
        model: before any approximation.
        names: of nodes; those that are no layers of the main graph are left out.
        context: holds the samples.
        narrow_sums: the processor adds pairs of products in 16 bits.
    """
    wanted = set(names)
    layers = [layer for layer in layers_of(model) if layer.name in wanted and layer.graph is model.graph]
    if context.samples.is_synthetic:
        return {layer.name: [Cause("uncalibrated", 0.0, "no samples were given"), *_weight_outliers(layer)] for layer in layers}
    inputs = tuple(dict.fromkeys(layer.input.name or "" for layer in layers))
    channels = {layer.input.name or "": _axis(layer) for layer in layers}
    known = context.statistics(model, Request(histograms=inputs, channels=channels))
    saturated = largest_pair_sums(model, layers, context) if narrow_sums else {}
    return {layer.name: [*_of_input(layer, known), *_weight_outliers(layer), *_saturation(saturated.get(layer.name))] for layer in layers}


def _of_input(layer: Layer, known: Statistics) -> list[Cause]:
    value = known.values.get(layer.input.name or "")
    if value is None or not value.count:
        return [Cause("uncalibrated", 0.0, "no sample has reached its input")]
    if value.minimum == value.maximum:
        return [Cause("uncalibrated", 0.0, f"its input is {value.minimum:g} on all samples")]
    return [*_input_outliers(value), *_peak(value)]


def _input_outliers(value: ValueStatistics) -> list[Cause]:
    if value.channels is None:
        return []
    ranges = np.maximum(-value.channels.minimum, value.channels.maximum)
    ratio, channel = _outlier(ranges)
    if ratio < _OUTLIER:
        return []
    return [Cause("outlier channel", ratio, f"channel {channel} of its input reaches {ratio:.0f} times as far as the typical one")]


def _weight_outliers(layer: Layer) -> list[Cause]:
    ratio, channel = _outlier(np.abs(layer.weight()).max(axis=2).reshape(-1))
    if ratio < _OUTLIER:
        return []
    return [Cause("outlier channel", ratio, f"output channel {channel} of its weight reaches {ratio:.0f} times as far as the typical one")]


def _outlier(ranges: Array) -> tuple[float, int]:
    """How many times the median the largest of some ranges is, and which one that is; dead channels do not count."""
    alive = ranges[np.isfinite(ranges) & (ranges > 0)]
    if alive.size < 2:
        return 1.0, 0
    return float(alive.max() / np.median(alive)), int(np.nanargmax(np.where(np.isfinite(ranges), ranges, 0)))


def _peak(value: ValueStatistics) -> list[Cause]:
    if value.histogram is None or not value.histogram.total:
        return []
    rest = (1 - _NEARLY_ALL) / 2
    low, high = value.histogram.quantile(rest), value.histogram.quantile(1 - rest)
    usual = max(high, 0.0) - min(low, 0.0)
    ratio = (max(value.maximum, 0.0) - min(value.minimum, 0.0)) / usual if usual > 0 else 1.0
    if ratio < _PEAK:
        return []
    return [Cause("range", ratio, f"the range of its input is {ratio:.1f} times what {_NEARLY_ALL:.1%} of its values take")]


def _saturation(largest: int | None) -> list[Cause]:
    if largest is None or largest <= PAIR_LIMIT:
        return []
    return [Cause("saturation", largest / PAIR_LIMIT, f"pairs of its products add up to {largest}, 16 bits hold {PAIR_LIMIT}")]


def _axis(layer: Layer) -> int:
    """The axis of a layer's input that its channels lie along."""
    if layer.layout in (Layout.CONV, Layout.CONV_TRANSPOSE):
        return 1
    return -1 if layer.index else -2


def dominant(causes: Sequence[Cause]) -> str:
    """The causes in words, the most telling first."""
    return "; ".join(cause.text for cause in causes)

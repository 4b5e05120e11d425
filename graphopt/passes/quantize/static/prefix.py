"""The first layers: left in float where integers do not pay there, which whole models beside each other show.

On large pictures of few channels integers often save no time. And the first layers add the most noise, since what they round goes
through all others: a prefix in float lowers it most for the time it costs, where a single layer in float changes next to nothing, as the
values before and after it stay in codes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt import ledger
from graphopt.errors import SessionError
from graphopt.graph.signature import signature_of
from graphopt.passes.base import Context
from graphopt.passes.quantize.static.closeness import decibels
from graphopt.passes.racing import remembered, seconds_of

Array = np.ndarray[Any, Any]
Feed = Mapping[str, Array]
Variant = Callable[[Sequence[ledger.Key]], ir.Model]

COUNTS = (0, 1, 2, 4, 8)
"""How many of the first layers are tried in float."""
WORTH = 0.98
"""What the time, noise counted, must fall to."""
PER_DB = 0.03
"""A decibel less of noise at the output that has the most is worth this share of the time where there is little noise."""
LOUD = 20.0
"""Decibels of signal to noise at which a decibel is worth twice as much: about there noise begins to turn decisions round."""
MOST = 1.1
"""However much closer it is, no variant is taken that needs more than this many times as long as the fastest one."""


def float_prefix(model: ir.Model, keys: Sequence[ledger.Key], variant: Variant, context: Context) -> list[ledger.Key]:
    """The first layers that are better left in float; the ledger hears times and noise.

    Models with none, one, two, four and eight of the first layers in float, but no more than half of all, take turns, on the first
    sample as it is and on one row of it where the model takes any number: who calls it with one picture at a time counts as much as who
    calls it with many. Then they are compared with the original.

    Args:
        model: in float; stays as it is.
        keys: of all layers, in order of execution.
        variant: makes the model in which some are left in float.
        context: tells whether to measure, and holds the samples; what is measured is kept in it.
    """
    counts = [count for count in COUNTS if 2 * count <= len(keys)]
    if not context.measures or len(counts) < 2:
        return []
    found = remembered(context, ("prefix", tuple(keys)), lambda: _compared(model, [variant(keys[:count]) for count in counts], context))
    if not found:
        return []
    times, levels = np.split(np.array(found), 2)
    costs = np.where(times > MOST * times.min(), np.inf, np.log(times / times[0]) + _price(levels) - _price(levels[0]))
    best = int(np.argmin(costs))
    if costs[best] > math.log(WORTH):
        return []
    share, gain = times[best] / times[0], levels[best] - levels[0]
    for key in keys[: counts[best]]:
        figures = f"the model takes {share:.2f} of the time and is {gain:.1f} dB closer"
        ledger.decline(key, f"{figures} with the first {counts[best]} layers in float")
    return list(keys[: counts[best]])


def _price(levels: Array) -> Array:
    """What noise costs, as a share of the time: each decibel alike, and its power besides, by which decisions are lost."""
    power: Array = 10 ** ((LOUD - levels) / 10)
    return PER_DB * (power * 10 / math.log(10) - levels)


def _compared(model: ir.Model, variants: Sequence[ir.Model], context: Context) -> list[float]:
    """The geometric mean of the times of each variant over the feeds, then how close each is; empty where they cannot be run."""
    feed = next(iter(context.samples), None)
    if feed is None:
        return []
    try:
        found = [seconds_of(variants, each, context.options) for each in _feeds(model, feed)]
        levels = decibels(model, variants, context)
    except SessionError:
        return []
    return [*(math.exp(float(np.mean(np.log(times)))) for times in zip(*found, strict=True)), *levels]


def _feeds(model: ir.Model, feed: Feed) -> list[Feed]:
    """A sample, and its first row where the first axis of all inputs is open."""
    inputs = signature_of(model).inputs
    is_open = all(port.shape and not isinstance(port.shape[0], int) for port in inputs)
    rows = {array.shape[0] for array in feed.values() if array.ndim}
    return [feed, {name: array[:1] for name, array in feed.items()}] if is_open and len(rows) == 1 and rows != {1} else [feed]

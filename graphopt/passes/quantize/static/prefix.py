"""The first layers: on large pictures of few channels integers often do not pay, which whole models timed beside each other show."""

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
from graphopt.passes.quantize.racing import remembered, seconds_of

Array = np.ndarray[Any, Any]
Feed = Mapping[str, Array]
Variant = Callable[[Sequence[ledger.Key]], ir.Model]

COUNTS = (0, 1, 2, 4)
"""How many of the first layers are tried in float."""
WORTH = 0.97
"""What the time must fall to."""


def slow_prefix(keys: Sequence[ledger.Key], variant: Variant, context: Context) -> list[ledger.Key]:
    """The first layers that the model is faster without quantizing; the ledger hears the times.

    Models with none, one, two and four of the first layers in float take turns, on the first sample as it is and on one row of it
    where the model takes any number: who calls it with one picture at a time counts as much as who calls it with many.

    Args:
        keys: of all layers, in order of execution.
        variant: makes the model in which some are left in float.
        context: tells whether to measure, and holds the samples; times are kept in it.
    """
    counts = [count for count in COUNTS if count < len(keys)]
    if not context.measures or len(counts) < 2:
        return []
    times = remembered(context, ("prefix", tuple(keys)), lambda: _race([variant(keys[:count]) for count in counts], context))
    if not times:
        return []
    best = int(np.argmin(times))
    if times[best] > WORTH * times[0]:
        return []
    slow = list(keys[: counts[best]])
    for key in slow:
        ledger.decline(key, f"the model takes {times[best] / times[0]:.2f} of the time with the first {len(slow)} layers in float")
    return slow


def _race(models: Sequence[ir.Model], context: Context) -> list[float]:
    """The geometric mean of the times of each model over the feeds; empty where they cannot be run."""
    feed = next(iter(context.samples), None)
    if feed is None:
        return []
    try:
        found = [seconds_of(models, each, context.options) for each in _feeds(models[0], feed)]
    except SessionError:
        return []
    return [math.exp(float(np.mean(np.log(times)))) for times in zip(*found, strict=True)]


def _feeds(model: ir.Model, feed: Feed) -> list[Feed]:
    """A sample, and its first row where the first axis of all inputs is open."""
    inputs = signature_of(model).inputs
    is_open = all(port.shape and not isinstance(port.shape[0], int) for port in inputs)
    rows = {array.shape[0] for array in feed.values() if array.ndim}
    return [feed, {name: array[:1] for name, array in feed.items()}] if is_open and len(rows) == 1 and rows != {1} else [feed]

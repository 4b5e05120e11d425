"""Closeness: how far variants of a model are from it on some of the samples, at the outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.passes.base import Context
from graphopt.runtime.fidelity import Fidelity, measure, merge
from graphopt.runtime.session import Feed, SessionOptions, open_session

_MOST_FEEDS = 32
_MOST_ELEMENTS = 1 << 22
"""So many elements of inputs tell enough; one sample is always used."""


def decibels(model: ir.Model, variants: Sequence[ir.Model], context: Context) -> list[float]:
    """Signal to noise of each variant, at the output that has the most noise.

    Args:
        model: what they should compute.
        variants: with the same inputs and outputs.
        context: holds the samples.

    Raises:
        SessionError: one does not load or does not run.
    """
    feeds = _some(list(islice(context.samples, _MOST_FEEDS)))
    wanted = _outputs(model, feeds, context.options)
    found = (_outputs(one, feeds, context.options) for one in variants)
    return [_least(merge(measure(*pair) for pair in zip(wanted, outputs, strict=True))) for outputs in found]


def _some(feeds: Sequence[Feed]) -> Sequence[Feed]:
    sizes = np.cumsum([sum(array.size for array in feed.values()) for feed in feeds])
    return feeds[: 1 + int(np.searchsorted(sizes, _MOST_ELEMENTS))]


def _outputs(model: ir.Model, feeds: Sequence[Feed], options: SessionOptions) -> list[Mapping[str, Any]]:
    session = open_session(model, "all", options)
    return [session.run(feed) for feed in feeds]


def _least(measured: Mapping[str, Fidelity]) -> float:
    return min((one.sqnr_db for one in measured.values() if not one.exact and one.signal), default=0.0)

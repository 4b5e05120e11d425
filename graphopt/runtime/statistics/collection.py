"""Collection: one streaming pass over samples, or a few where what is gathered would not fit in the memory allowed."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import replace
from itertools import islice

import onnx_ir as ir

from graphopt.errors import StatisticsError
from graphopt.runtime.session import Feed, SessionOptions
from graphopt.runtime.statistics.chain import Chain, prepared
from graphopt.runtime.statistics.model import Statistics, states_of
from graphopt.runtime.statistics.plan import Limits, Plan, Side
from graphopt.runtime.statistics.positions import Positions
from graphopt.runtime.statistics.product import Product
from graphopt.runtime.statistics.request import Request
from graphopt.runtime.trace import ShapeTracer
from graphopt.samples import Samples

logger = logging.getLogger(__name__)

MEMORY = 320 * 2**20
"""Bytes for what is gathered and for activations on their way, where the caller sets no other limit."""

_LOOKED_AT = 32
_MOST_WORKERS = 8


def collect(
    model: ir.Model,
    samples: Samples | Sequence[Feed],
    request: Request,
    options: SessionOptions | None = None,
    memory: int | None = None,
    original: ir.Model | None = None,
) -> Statistics:
    """Runs samples, of any and varying shapes, through a model and gathers statistics.

    Memory does not depend on the number of samples. Three quarters are for what is gathered (in several passes over the samples where
    that is not enough; the Gram matrices of earlier passes then wait in scratch files), one quarter for activations that leave the
    runtime (the model is cut into segments that run one after the other); a single value or layer that needs more gets it. The model's
    weights, and what crosses from one segment to the next, come on top. The size of activations is that of the largest of the first
    32 samples. Gram matrices are of some positions, where samples have more than such a matrix needs; see :class:`Positions`.

    Args:
        model: stays as it is.
        samples: feeds, iterated once per pass.
        request: what is wanted.
        options: how to run.
        memory: bytes; None for 320 MiB.
        original: a model with layers of the same names, that is run beside it, for ``LayerStatistics.cross``.

    Raises:
        StatisticsError: a name is not in the main graph, there are no samples, or the original's layers do not fit.
        SessionError: the model does not load or does not run on a sample.
    """
    if not request.all_values and not request.layers:
        return Statistics(len(samples))
    options, memory = _without_spinning(options or SessionOptions()), MEMORY if memory is None else memory
    largest = max(islice(samples, _LOOKED_AT), key=lambda feed: sum(array.nbytes for array in feed.values()), default=None)
    if largest is None:
        raise StatisticsError("there are no samples to take statistics from")
    own = _side(model, largest, options)
    before = None if original is None else _side(original, largest, options)
    limits = Limits(memory * 3 // 4, memory // 4)
    positions = Positions(len(samples))
    plan = Plan(own, request, limits, Product(options), positions, before)
    passes = plan.passes()
    count = 0
    with ThreadPoolExecutor(min(options.threads or os.cpu_count() or 1, _MOST_WORKERS)) as workers:
        for number, jobs in enumerate(passes):
            listed = ([(before, jobs.before)] if before else []) + [(own, jobs.own)]
            logger.info("pass %d of %d: %d statistics", number + 1, len(passes), len(jobs.own))
            chains = [Chain(side.model, some, side.shapes, limits.passing, options) for side, some in listed]
            count = _run(chains, samples, positions, workers)
            del chains  # their sessions hold the model's weights
            if number + 1 < len(passes):
                for job in jobs.own:
                    job.set_aside()
    statistics = Statistics(count, plan.values(), plan.layers(), skipped=plan.skipped)
    current = states_of(model, original)
    keys = (*(f"value:{name}" for name in statistics.values), *(f"layer:{name}" for name in statistics.layers))
    statistics.states = {key: current[key] for key in keys}
    return statistics


def _without_spinning(options: SessionOptions) -> SessionOptions:
    """The runtime's idle threads would take the cores on which histograms are counted."""
    return replace(options, config={"session.intra_op.allow_spinning": "0", **options.config})


def _side(model: ir.Model, feed: Feed, options: SessionOptions) -> Side:
    ready = prepared(model)
    return Side(ready, ShapeTracer(ready, options).run(feed))


def _run(chains: Sequence[Chain], samples: Iterable[Feed], positions: Positions, workers: Executor) -> int:
    count = 0
    for feed in samples:
        positions.begin(count)
        for chain in chains:
            chain.run(feed, workers)
        count += 1
    for chain in chains:
        chain.finish()
    return count

"""Races between forms of the same computation on this machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.passes.base import Context
from graphopt.runtime.session import Session, SessionOptions, open_session

_ROUNDS = 25
_SHORTEST_S = 1e-3
_LONGEST_S = 2.0

Feed = Mapping[str, "np.ndarray[Any, Any]"]


def remembered(context: Context, key: Hashable, measure: Callable[[], list[float]]) -> list[float]:
    """What a comparison measured, which is made once for all attempts at a stage.

    Args:
        context: of the pass.
        key: names the comparison.
        measure: makes it.
    """
    place = ("race", key)
    if place not in context.solved:
        context.solved[place] = measure()
    found: list[float] = context.solved[place]
    return found


def seconds_of(models: Sequence[ir.Model], feed: Feed, options: SessionOptions) -> list[float]:
    """The least time of a run of each model; they take turns, so that what else the machine does falls on all of them.

    Whatever else runs only adds to a time, and most to models that spread over threads, so that a median would say who shares the
    machine.

    Args:
        models: with the same inputs.
        feed: what they run on.
        options: how they run.

    Raises:
        SessionError: one does not load or does not run.
    """
    sessions = [open_session(model, "all", taking_turns(options)) for model in models]
    for session in sessions:
        session.run(feed)  # the first run allocates
    repeats = [max(1, round(_SHORTEST_S / max(_seconds(session, feed, 1), 1e-9))) for session in sessions]
    times: list[list[float]] = [[] for _ in sessions]
    start = time.perf_counter()
    for number in range(_ROUNDS):
        order = range(len(sessions)) if number % 2 else range(len(sessions) - 1, -1, -1)
        for place in order:
            times[place].append(_seconds(sessions[place], feed, repeats[place]))
        if time.perf_counter() - start > _LONGEST_S and number >= 2:
            break
    return [min(each) for each in times]


def second_chance(models: Sequence[ir.Model], feed: Feed, options: SessionOptions, share: float) -> list[float]:
    """Seconds as :func:`seconds_of` has them; where all lose to the first, of the better of two races: noise lasts longer than one.

    Args:
        models: the first is what the others may replace.
        feed: what they run on.
        options: how they run.
        share: of the first's time that one of the others must take.
    """
    times = seconds_of(models, feed, options)
    if min(times[1:]) <= share * times[0]:
        return times
    return min(times, seconds_of(models, feed, options), key=lambda each: min(each[1:]) / each[0])


def taking_turns(options: SessionOptions) -> SessionOptions:
    """Options with which threads of a session that is not running do not compete with the one that is."""
    return replace(options, config={"session.force_spinning_stop": "1", **options.config})


def _seconds(session: Session, feed: Feed, repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        session.run(feed)
    return (time.perf_counter() - start) / repeats

"""What must hold for every model: the exact passes keep its outputs, its signature and its structure, and come to an end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt import files
from graphopt.errors import SessionError
from graphopt.passes.cleanup import Cleanup
from graphopt.presets import preset
from graphopt.runtime.session import Optimizations, Session, SessionOptions, open_session
from graphopt.stage import Attempt, Stage
from tests.random_graphs.generator import Feed, Sample, Target

Outputs = Mapping[str, np.ndarray[Any, Any]]
LEVELS: tuple[Optimizations, ...] = ("none", "all")
_ONE_THREAD = SessionOptions(threads=1)


class UnfitError(Exception):
    """The original does not serve as a reference; the message is the kind of reason."""


class BrokenError(AssertionError):
    """The passes did something wrong."""


def exact_stage(target: Target = "cpu") -> Stage:
    """All exact passes, with nothing that would take a wrong rewrite back."""
    return Stage(tuple(preset("exact").model_copy(update={"target": target}).build()))


def check(sample: Sample, stage: Stage) -> Counter[str]:
    """Asserts all that must hold for a sample.

    Returns:
        How often each rule fired, as ``pass/rule``.

    Raises:
        UnfitError: the original does not run, or does not agree with itself.
        BrokenError: the passes did something wrong.
    """
    original = original_of(sample)
    references = _references(sample, original)
    attempt = optimized(original, stage)
    try:
        sessions = {level: open_session(attempt.model, level, _ONE_THREAD) for level in LEVELS}
        for feed, expected in references:
            for level, session in sessions.items():
                problem = difference(expected, session.run(feed), sample.tolerance)
                if problem and not _is_noisy(sample, original, level, feed):
                    _excuse(sample, original, feed)
                    raise BrokenError(f"outputs differ with the runtime's optimizations {level}: {problem}; rewrites: {_told(attempt)}")
    except SessionError as error:
        _excuse(sample, original, sample.feeds[0])
        if sample.target == "portable" and _is_without_kernel(error):
            raise UnfitError(f"no kernel in this runtime for a standard operator: {error}") from error
        raise BrokenError(f"does not run any more: {error}; rewrites: {_told(attempt)}") from error
    return fired(attempt)


def original_of(sample: Sample) -> ir.Model:
    """The model as the driver takes it in."""
    return files.from_proto(sample.proto)


def fired(attempt: Attempt) -> Counter[str]:
    """How often each rule fired, as ``pass/rule``."""
    return Counter(f"{rewrite.key.pass_name}/{rewrite.key.rule}" for rewrite in attempt.recorder.rewrites)


def optimized(original: ir.Model, stage: Stage) -> Attempt:
    """The model after the passes, which find nothing more to do in it.

    Raises:
        BrokenError: a pass fails, breaks the structure, or does not reach its fixed point.
    """
    attempt = stage.attempt(original, frozenset())
    if attempt.failure:
        raise BrokenError(f"{attempt.failure}; rewrites: {_told(attempt)}")
    again = stage.attempt(attempt.model, frozenset())
    if again.failure or again.recorder.rewrites:
        raise BrokenError(f"a second run: {again.failure or _told(again)}; first run: {_told(attempt)}")
    return attempt


def _is_without_kernel(error: SessionError) -> bool:
    return "NOT_IMPLEMENTED" in str(error) or "Could not find an implementation" in str(error)


def _told(attempt: Attempt) -> str:
    return " ".join(f"{key.rule}@{key.anchor}" for key in attempt.recorder.allowed)


def _references(sample: Sample, original: ir.Model) -> list[tuple[Feed, Outputs]]:
    try:
        plain, tuned = (open_session(original, level, _ONE_THREAD) for level in LEVELS)
        references = [(feed, _agreed(plain, tuned, feed, sample.tolerance)) for feed in _feeds(sample.feeds, plain)]
    except SessionError as error:
        kind = "no kernel" if _is_without_kernel(error) else "does not run"
        raise UnfitError(f"{kind}: {error}") from error
    for feed in _feeds(sample.others, plain):
        try:
            references.append((feed, _agreed(plain, tuned, feed, sample.tolerance)))
        except (SessionError, UnfitError):
            continue  # not sizes that the original takes
    return references


def _feeds(feeds: Sequence[Feed], session: Session) -> list[Feed]:
    return [{name: array for name, array in feed.items() if name in session.input_names} for feed in feeds]


def _agreed(plain: Session, tuned: Session, feed: Feed, tolerance: float) -> Outputs:
    expected = plain.run(feed)
    problem = difference(expected, tuned.run(feed), tolerance / 2)
    if problem:
        raise UnfitError(f"the runtime's optimizations change it: {problem}")
    return expected


def difference(expected: Outputs, found: Outputs, tolerance: float) -> str:
    """How outputs differ; empty where they agree: exactly for integers, relative to the largest magnitude (or 1) for floats."""
    if list(expected) != list(found):
        return f"other outputs: {list(found)}"
    for name, reference in expected.items():
        other = found[name]
        if reference.dtype != other.dtype or reference.shape != other.shape:
            return f"{name}: {reference.dtype} {reference.shape} expected, found {other.dtype} {other.shape}"
        if reference.dtype.kind != "f":
            if not np.array_equal(reference, other):
                return f"{name}: {np.count_nonzero(reference != other)} elements differ"
            continue
        wide, wide_other = reference.astype(np.float64), other.astype(np.float64)
        scale = max(1.0, float(np.max(np.abs(wide[np.isfinite(wide)]), initial=0)))
        if not np.allclose(wide_other, wide, rtol=0, atol=tolerance * scale, equal_nan=True):
            return f"{name}: off by {np.max(np.abs(wide - wide_other)) / scale:.1e}"
    return ""


def _excuse(sample: Sample, original: ir.Model, feed: Feed) -> None:
    """Asks whether a dead node, or a constant that was an input, kept the runtime's own optimizations from a mistake.

    Raises:
        UnfitError: the original after ``cleanup`` differs between the levels, or does not run with them.
    """
    tidied = Stage((Cleanup(),)).attempt(original, frozenset()).model
    try:
        plain, tuned = (open_session(tidied, level, _ONE_THREAD) for level in LEVELS)
        _agreed(plain, tuned, {name: array for name, array in feed.items() if name in plain.input_names}, sample.tolerance)
    except SessionError as error:
        raise UnfitError(f"the runtime's optimizations break it: {error}") from error


def _is_noisy(sample: Sample, original: ir.Model, level: Optimizations, feed: Feed) -> bool:
    """Whether the original itself changes as much when its inputs move by a few roundings."""
    session = open_session(original, level, _ONE_THREAD)
    moved = {name: array * (1 + 4 * np.finfo(array.dtype).eps) if array.dtype.kind == "f" else array for name, array in feed.items()}
    cast = {name: np.asarray(array, feed[name].dtype) for name, array in moved.items()}
    return bool(difference(session.run(feed), session.run(cast), sample.tolerance / 4))

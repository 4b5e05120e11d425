"""Does a candidate still compute what the original computes? Asked after every stage."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.errors import SessionError
from graphopt.runtime import fidelity
from graphopt.runtime.session import Optimizations, SessionOptions, open_session, shorten

Feed = Mapping[str, "np.ndarray[Any, Any]"]
Noise = Mapping[tuple[int, str], float]
"""By feed and output: the power of the error relative to that of the output; of an exact output the square of the share that differs."""

_LEVELS: tuple[Optimizations, ...] = ("all", "none")
_FEEDS = 3
_CALM = 1e-3
"""Noise below this is no reason to prefer another feed."""
_BEARABLE = 1e-2
"""A feed with more noise is left out where another has less: it would show little."""
_MARGIN = 4
"""How many times its own noise an original may be off."""
_LOOSEST = 5e-2
"""However noisy the original is by itself, a larger relative difference is never accepted."""


@dataclass(frozen=True)
class Verdict:
    """What a check found.

    Attributes:
        reason: the first difference that is too large, or why the candidate does not run; empty where all is well.
        relative: the largest error seen, relative to the largest magnitude of its output.
        sqnr_db: the smallest signal-to-noise ratio seen.
        lossy: the candidate runs as it should, and is further from the original than an approximation may be.
    """

    reason: str = ""
    relative: float = 0.0
    sqnr_db: float = fidelity.IDENTICAL_DB
    lossy: bool = False

    @property
    def ok(self) -> bool:
        """Whether the candidate may be kept."""
        return not self.reason


@dataclass
class Effort:
    """What verification has cost so far."""

    sessions: int = 0
    inferences: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Reference:
    """What the original makes of one feed.

    Attributes:
        feed: the inputs.
        outputs: per level of the runtime's own optimizations.
        noise: per output, how far the original moves by itself: between the levels, and when each float input moves by one
            rounding; relative to the largest magnitude of the output, or a share of elements where the output is exact.
    """

    feed: Feed
    outputs: Mapping[Optimizations, Mapping[str, Any]]
    noise: Mapping[str, float]

    @property
    def loudest(self) -> float:
        """The noise of the noisiest output."""
        return max(self.noise.values(), default=0.0)


@dataclass
class Verifier:
    """Compares candidates with the original, with the runtime's own optimizations on and off.

    An output may differ by the tolerance, or by four times the original's own noise on that feed, whichever is larger:
    where a model magnifies rounding (a sigmoid far in its tail), no rewrite can be closer than the original is to itself.

    Attributes:
        references: the feeds that every candidate is run on, and what the original makes of them.
        tolerance: relative to the largest magnitude of each output.
        options: how sessions are made.
        cut: applied to every candidate before it runs; takes out what the runtime cannot run.
        unstable: outputs that differ between two runs of the original (random generators); they are not compared.
        effort: what verification has cost so far.
    """

    references: Sequence[Reference]
    tolerance: float
    options: SessionOptions
    cut: Callable[[ir.Model], ir.Model]
    unstable: frozenset[str] = frozenset()
    effort: Effort = field(default_factory=Effort)

    def check(self, candidate: ir.Model | Path, min_sqnr: float | None = None) -> Verdict:
        """Runs a candidate at both levels: two session loads and two inferences a feed.

        Args:
            candidate: a model or a file.
            min_sqnr: dB that each output of an approximation must keep on each feed; as amplitude, the share of elements of an
                integer output that may differ. None for a candidate that must be exact.

        Returns:
            The verdict; a candidate that does not load or run is one that fails.
        """
        start, worst, least = time.perf_counter(), 0.0, fidelity.IDENTICAL_DB
        try:
            subject = self.cut(candidate) if isinstance(candidate, ir.Model) else candidate
            for level in self.references[0].outputs:
                for measured, reference in self._measured(subject, level):
                    worst = max(worst, measured.relative)
                    least = least if measured.exact else min(least, measured.sqnr_db)
                    if not self._accepts(measured, reference) and not _keeps(measured, min_sqnr):
                        switched = "on" if level == "all" else "off"
                        lossy = min_sqnr is not None and not measured.problem
                        return Verdict(f"outputs differ with the runtime's optimizations {switched}: {measured}", worst, least, lossy)
        except SessionError as error:
            return Verdict(str(error), worst, least)
        except (ir.serde.SerdeError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error.__cause__, OSError):  # a full disk is not the candidate's fault
                raise
            return Verdict(f"the graph cannot be written: {shorten(str(error.__cause__ or error))}", worst, least)
        finally:
            self.effort.seconds += time.perf_counter() - start
        return Verdict(relative=worst, sqnr_db=least)

    def noise(self, candidate: ir.Model) -> Noise | None:
        """How far a candidate is from the original, with the runtime's optimizations on; None where it does not load or run."""
        start = time.perf_counter()
        found: dict[tuple[int, str], float] = {}
        numbers = {id(reference): number for number, reference in enumerate(self.references)}
        try:
            for measured, reference in self._measured(self.cut(candidate), "all"):
                found[numbers[id(reference)], measured.name] = _relative_power(measured)
        except (SessionError, ir.serde.SerdeError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error.__cause__, OSError):
                raise
            return None
        finally:
            self.effort.seconds += time.perf_counter() - start
        return found

    def _measured(self, subject: ir.Model | Path, level: Optimizations) -> Iterator[tuple[fidelity.Fidelity, Reference]]:
        self.effort.sessions += 1
        session = open_session(subject, level, self.options)
        for reference in self.references:
            self.effort.inferences += 1
            for measured in fidelity.measure(reference.outputs[level], session.run(reference.feed)).values():
                if measured.name not in self.unstable:
                    yield measured, reference

    def _accepts(self, measured: fidelity.Fidelity, reference: Reference) -> bool:
        noise = min(_MARGIN * reference.noise.get(measured.name, 0.0), _LOOSEST)
        if measured.exact:
            return measured.within(self.tolerance) or (not measured.problem and measured.mismatches <= noise)
        return measured.within(max(self.tolerance, noise))


def verifier_of(
    original: ir.Model | Path,
    feeds: Sequence[Feed],
    options: SessionOptions,
    tolerance: float,
    cut: Callable[[ir.Model], ir.Model],
) -> Verifier:
    """Runs the original and keeps its outputs: two session loads, three inferences a feed and one more.

    Args:
        original: the model as it came (or as it had to be lowered for the runtime).
        feeds: samples, best of different shapes; the three on which the original is calmest are kept.
        options: how sessions are made.
        tolerance: relative to the largest magnitude of each output.
        cut: see :class:`Verifier`.

    Raises:
        SessionError: the original itself does not load or run with the runtime's optimizations on.
    """
    start, effort = time.perf_counter(), Effort()
    outputs: list[dict[Optimizations, Mapping[str, Any]]] = [{} for _ in feeds]
    moved: list[Mapping[str, Any]] = []
    repeated: Mapping[str, Any] = {}
    for level in _LEVELS:
        try:
            session = open_session(original, level, options)
            for kept, feed in zip(outputs, feeds, strict=True):
                kept[level] = session.run(feed)
        except SessionError:
            if level == "all":
                raise
            for kept in outputs:  # some models need the runtime's optimizations to run at all
                kept.pop(level, None)
            continue
        effort.sessions += 1
        effort.inferences += len(feeds)
        if level == "all":
            moved = [session.run(_one_rounding_away(feed)) for feed in feeds]
            repeated = session.run(feeds[0])
            effort.inferences += len(feeds) + 1
        del session
    unstable = frozenset(name for name, f in fidelity.measure(outputs[0]["all"], repeated).items() if not f.within(tolerance))
    references = [Reference(feed, kept, _noise(kept, other, unstable)) for feed, kept, other in zip(feeds, outputs, moved, strict=True)]
    calmest = sorted(references, key=lambda reference: max(reference.loudest, _CALM))[:_FEEDS]
    calmest = [reference for reference in calmest if reference.loudest <= max(_BEARABLE, calmest[0].loudest)]
    effort.seconds = time.perf_counter() - start
    return Verifier(calmest, tolerance, options, cut, unstable, effort)


def _keeps(measured: fidelity.Fidelity, min_sqnr: float | None) -> bool:
    """Whether an output of an approximation is close enough."""
    if min_sqnr is None or measured.problem:
        return False
    return measured.mismatches <= 10 ** (-min_sqnr / 20) if measured.exact else measured.sqnr_db >= min_sqnr


def _relative_power(measured: fidelity.Fidelity) -> float:
    if measured.problem or not np.isfinite(measured.noise):
        return float(np.inf)
    if measured.exact:
        return measured.mismatches**2
    return 0.0 if measured.noise == 0.0 else measured.noise / measured.signal if measured.signal else float(np.inf)


def _noise(outputs: Mapping[Optimizations, Mapping[str, Any]], moved: Mapping[str, Any], unstable: frozenset[str]) -> dict[str, float]:
    noise: dict[str, float] = {}
    for other in (*outputs.values(), moved):
        for name, f in fidelity.measure(outputs["all"], other).items():
            if name not in unstable and not f.problem:
                noise[name] = max(noise.get(name, 0.0), f.mismatches if f.exact else f.relative)
    return noise


def _one_rounding_away(feed: Feed) -> Feed:
    """The feed with every float one unit in the last place larger; what is not a float stays."""
    return {
        name: np.nextafter(array, array.dtype.type(np.inf)) if array.dtype.kind == "f" and array.dtype.isbuiltin else array
        for name, array in feed.items()
    }

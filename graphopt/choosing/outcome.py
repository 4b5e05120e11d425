"""Outcomes: stages that are verified, and what of them is kept."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import onnx_ir as ir

from graphopt.choosing.budget import Trial, fewest_left_out
from graphopt.choosing.judge import Judge
from graphopt.choosing.sensitivity import Effect, Effects, Probe, as_array, decibels, effects_of, unmeasured
from graphopt.ledger import Drop, Key, Rewrite
from graphopt.stage import Attempt, Stage
from graphopt.verification import Verdict

logger = logging.getLogger(__name__)

_MOST_CULPRITS = 8
_PLACES_BEFORE_RULE = 2
_SECONDS = 120.0
"""Measuring the effect of each rewrite of a stage may take so long; the rest is estimated."""


@dataclass
class Outcome:
    """What became of a stage.

    Attributes:
        attempt: the run that is kept.
        drops: what had to be left out, and why.
        denied: all rewrites that were denied, those from outside included.
        verdict: of the attempt that is kept.
        declined: what measurements on this machine spoke against; denied too.
        nearest: where the limit left nothing of an approximation, the nearest to it that was reached; else an empty string.
    """

    attempt: Attempt
    drops: list[Drop]
    denied: frozenset[Key]
    verdict: Verdict = field(default_factory=Verdict)
    declined: list[Drop] = field(default_factory=list)
    nearest: str = ""


def run_verified(stage: Stage, snapshot: ir.Model, denied: frozenset[Key], judge: Judge, original: ir.Model | None = None) -> Outcome:
    """Runs a stage; while the result is wrong finds what makes it so, leaves it out and keeps the rest.

    Of a stage that is wrong somewhere, the rewrite is found by bisection. Of an approximation that loses too much, those rewrites are
    left out that cost the most for what they are good for.

    Args:
        stage: what to run.
        snapshot: the model before; stays as it is.
        denied: rewrites that must not happen.
        judge: verifies a candidate's outputs.
        original: what earlier stages approximated; None where none did.
    """
    return _Search(stage, snapshot, judge, original, denied).run()


def first_failing(count: int, fails: Callable[[int], bool]) -> int:
    """The smallest n in 1..count for which ``fails(n)``, by bisection, where ``fails(count)`` holds and ``fails(0)`` does not."""
    low, high = 0, count
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fails(middle) else (middle, high)
    return high


def widened(culprit: Key, drops: Sequence[Drop]) -> Key:
    """The whole rule, where it has been the culprit at two other places before.

    Args:
        culprit: a rewrite.
        drops: what was dropped before it.
    """
    whole = Key(culprit.pass_name, culprit.rule)
    before = sum(1 for drop in drops if Key(drop.key.pass_name, drop.key.rule) == whole)
    return whole if culprit.rule and before >= _PLACES_BEFORE_RULE else culprit


@dataclass
class _Search:
    stage: Stage
    snapshot: ir.Model
    judge: Judge
    original: ir.Model | None
    denied: frozenset[Key]
    drops: list[Drop] = field(default_factory=list)
    declined: list[Drop] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    nearest: str = ""
    seconds: float = 0.0
    faults: int = 0
    closest: str = ""

    def run(self) -> Outcome:
        while True:
            attempt = self.stage.attempt(self.snapshot, self.denied, original=self.original)
            self.declined.extend(attempt.recorder.declined)
            self.denied |= {drop.key for drop in attempt.recorder.declined}
            verdict = self._judged(attempt)
            if verdict.ok:
                return self._kept(attempt, verdict)
            found = self._too_costly(attempt, verdict) if verdict.lossy and self.stage.approximates else self._culprits(attempt, verdict)
            logger.info("dropped %s: %s", ", ".join(str(drop.key) for drop in found), verdict.reason)
            if self.denied.issuperset(drop.key for drop in found):  # not even without any rewrite is it right: it is not their fault
                found = [Drop(key, verdict.reason) for key in self._whole()]
            if self.denied.issuperset(drop.key for drop in found):
                return self._outcome(Attempt.without_change(self.snapshot, self.original, attempt.recorder), Verdict())
            self.drops.extend(found)
            self.denied |= {drop.key for drop in found}

    def _kept(self, attempt: Attempt, verdict: Verdict) -> Outcome:
        """What was done without a rewrite was not verified; preparation and recovery are nothing without an approximation."""
        if not (self._approximations(attempt) if self.stage.approximates else attempt.recorder.rewrites):
            attempt = Attempt.without_change(self.snapshot, self.original, attempt.recorder)
        else:
            self.nearest = ""
        return self._outcome(attempt, verdict)

    def _outcome(self, attempt: Attempt, verdict: Verdict) -> Outcome:
        attempt.recorder.notes.extend(self.notes)
        if self.seconds:
            attempt.seconds["sensitivity"] = self.seconds
        return Outcome(attempt, self.drops, self.denied, verdict, self.declined, self.nearest)

    def _judged(self, attempt: Attempt) -> Verdict:
        if attempt.failure:
            return Verdict(attempt.failure)
        return self.judge(attempt.model) if attempt.recorder.rewrites else Verdict()

    def _approximations(self, attempt: Attempt) -> list[Rewrite]:
        return [rewrite for rewrite in attempt.recorder.rewrites if rewrite.key.pass_name in self.stage.approximating]

    def _whole(self) -> list[Key]:
        return [Key(each.name) for each in self.stage.passes]

    def _culprits(self, attempt: Attempt, verdict: Verdict) -> list[Drop]:
        """What makes a stage wrong: one rewrite; after many, of approximations all from there on, of exact passes all."""
        is_last = self.faults >= _MOST_CULPRITS
        self.faults += 1
        allowed = attempt.recorder.allowed
        if is_last and not self.stage.approximates:
            culprits = self._whole()
        elif attempt.culprit is not None:
            culprits = [attempt.culprit]
        elif not allowed:
            culprits = [Key(self.stage.passes[0].name)]
        else:
            number = first_failing(len(allowed), self._fails)
            culprits = allowed[number - 1 :] if is_last else [allowed[number - 1]]
        return [Drop(widened(culprit, self.drops), verdict.reason) for culprit in culprits]

    def _fails(self, limit: int) -> bool:
        return not self._judged(self.stage.attempt(self.snapshot, self.denied, limit, self.original)).ok

    def _too_costly(self, attempt: Attempt, verdict: Verdict) -> list[Drop]:
        """The approximations that cost the most at the outputs for what they are good for, as few as will do."""
        start = time.perf_counter()
        rewrites = self._approximations(attempt)
        if not rewrites:
            return []
        self.closest = verdict.reason
        probe = Probe(self.stage, self.snapshot, self.denied, self.judge, self.original)
        effects = effects_of(probe, rewrites, _SECONDS)
        found = fewest_left_out(effects, self.judge.allowed, lambda left_out: self._trial(effects, left_out))
        if effects.estimated:
            self.notes.append(
                f"{self.stage.name}: the effects of {effects.estimated} of {len(effects.each)} rewrites were estimated, not measured, "
                f"after {_SECONDS:g} s"
            )
        self.seconds += time.perf_counter() - start
        if len(found) == len(effects.each):
            best = max(effects.each, key=lambda effect: effect.sqnr_db)
            self.nearest = f"{best.sqnr_db:.1f} dB of signal to noise, with {best.key} alone"
            if self.judge.metric is not None:
                self.nearest = self.closest
        return [Drop(effects.each[index].key, self._reason(effects.each[index], effects)) for index in sorted(found)]

    def _trial(self, effects: Effects, left_out: Sequence[int]) -> Trial:
        denied = self.denied | {effects.each[index].key for index in left_out}
        attempt = unmeasured(self.stage).attempt(self.snapshot, denied, original=self.original)
        noise = None if attempt.failure else self.judge.noise(attempt.model)
        verdict = self._judged(attempt)
        if not verdict.ok:  # the more is left out the closer, and each failure leaves out more than the one before
            self.closest = verdict.reason
        logger.info("%s left out: %s", [str(effects.each[index].key) for index in left_out], verdict.reason or f"{verdict.sqnr_db:.1f} dB")
        return Trial(verdict.ok, as_array(noise or {}, effects.pairs))

    def _reason(self, effect: Effect, effects: Effects) -> str:
        how = {"alone": "alone it leaves", "left out": "it takes the outputs to", "estimated": "alone it is estimated to leave"}
        return (
            f"{how[effect.source]} {effect.sqnr_db:.1f} dB of signal to noise, all {len(effects.each)} together leave "
            f"{decibels(effects.total):.1f} dB, and {self.judge.limit} is asked for"
        )

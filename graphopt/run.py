"""One run: stages that are verified one by one, and a written file that is proved; what breaks either is dropped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import onnx_ir as ir

from graphopt.ledger import Drop, Key, Rewrite
from graphopt.progress import Progress
from graphopt.proof import Fault, Prover
from graphopt.recipe import Recipe
from graphopt.result import write_model
from graphopt.stage import Attempt, Outcome, Stage, first_failing, run_verified, widened
from graphopt.subject import Subject
from graphopt.verification import Verdict, Verifier

_MOST_FAULTS = 8
"""After so many rewrites that broke the proof, no more of them are looked for one by one: all passes are dropped."""


@dataclass
class Run:
    """The stages of one run, and what had to be dropped so far.

    Attributes:
        original: the model as it came; stays as it is.
        recipe: what to do.
        stages: in order.
        verifier: of outputs; None where structure alone is verified, or nothing can be run.
        subject: what verification runs.
        prover: of the written file.
        path: where the candidate is written.
        progress: told what is being done.
        must_write: the model had to be changed before the first stage, so that it is written even if no stage changes it.
        outcomes: what became of each stage.
        drops: what was taken back, and why.
        declined: what measurements on this machine spoke against.
        settled: what the resolved recipe keeps out.
        given: rewrites that were denied from outside.
        denied: all rewrites that are denied.
    """

    original: ir.Model
    recipe: Recipe
    stages: Sequence[Stage]
    verifier: Verifier | None
    subject: Subject
    prover: Prover
    path: Path
    progress: Progress
    must_write: bool
    outcomes: Sequence[Outcome] = ()
    drops: list[Drop] = field(default_factory=list)
    declined: list[Drop] = field(default_factory=list)
    settled: Sequence[Drop] = ()
    given: frozenset[Key] = frozenset()
    denied: frozenset[Key] = frozenset()

    def __post_init__(self) -> None:
        """Denies what the recipe skips and what cannot be verified, and what an earlier run found out."""
        skipped = {key for name in self.recipe.skip for key in (Key(name), Key("", name))}
        self.given = frozenset(skipped | {Key("", "", name) for name in self.subject.protected})
        if self.subject.refusal:
            self.drops = [Drop(key, "not run, since nothing can be verified") for key in self._whole()]
            self.given |= set(self._whole())
        resolved = self.recipe.resolved.denied if self.recipe.resolved else frozenset()
        self.settled = [Drop(key, "the run that resolved the recipe dropped it") for key in sorted(resolved)]
        self.denied = self.given | resolved

    @property
    def model(self) -> ir.Model:
        """The model after the last stage."""
        return self.outcomes[-1].attempt.model if self.outcomes else self.original

    @property
    def attempts(self) -> list[Attempt]:
        """The kept attempt of each stage."""
        return [outcome.attempt for outcome in self.outcomes]

    @property
    def min_sqnr(self) -> float | None:
        """What the model after the last stage must keep, in dB; None while it is exact."""
        return self._allowance(self.outcomes)

    def improve_until_proved(self) -> None:
        """Runs all stages, writes and proves; what breaks the proof is dropped, and all of it runs again."""
        faults = 0
        while True:
            self._run_stages()
            rewrites = _rewrites(self.attempts)
            if not rewrites and not self.must_write:
                self.prover.forget()
                return
            with self.progress.step("write and prove"):
                self._write(self.attempts, self.denied)
                fault = self.prover.first_fault(self.path, rewrites)
            if fault is None:
                return
            faults += 1
            with self.progress.step(f"find what broke the proof: {fault.reason}"):
                culprits = [widened(culprit, self.drops) for culprit in self._culprits(fault)] if faults <= _MOST_FAULTS else self._whole()
            self.drops.extend(Drop(culprit, fault.reason) for culprit in culprits)
            self.denied |= set(culprits)

    def _run_stages(self) -> None:
        model = self.original
        outcomes: list[Outcome] = []
        for stage in self.stages:
            with self.progress.step(f"rewrite and verify: {stage.name}"):
                allowance = self.recipe.min_sqnr if stage.approximates else self._allowance(outcomes)
                original = outcomes[-1].attempt.original if outcomes else None
                outcome = run_verified(stage, model, self.denied, partial(self._judge, allowance), original)
            self.denied |= outcome.denied
            self.drops.extend(outcome.drops)
            self.declined.extend(outcome.declined)
            outcomes.append(outcome)
            model = outcome.attempt.model
        self.outcomes = outcomes

    def _allowance(self, outcomes: Sequence[Outcome]) -> float | None:
        """What is allowed to a candidate that comes after some stages: the recipe's dB once one of them has approximated."""
        pairs = zip(self.stages, outcomes, strict=False)
        approximated = any(stage.approximates and outcome.attempt.recorder.rewrites for stage, outcome in pairs)
        return self.recipe.min_sqnr if approximated else None

    def _judge(self, min_sqnr: float | None, candidate: ir.Model) -> Verdict:
        return self.verifier.check(candidate, min_sqnr) if self.verifier else Verdict()

    def _whole(self) -> list[Key]:
        return [Key(each.name) for stage in self.stages for each in stage.passes]

    def _culprits(self, fault: Fault) -> list[Key]:
        """The rewrite that breaks a property; for speed the rule, since one rewrite's share is lost in the noise."""
        allowed = [key for attempt in self.attempts for key in attempt.recorder.allowed]
        if fault.broken == "speed":
            kinds = list(dict.fromkeys(Key(key.pass_name, key.rule) for key in allowed))
            number = first_failing(len(kinds), lambda n: self._still(fault, self.denied | set(kinds[n:]), None))
            return [kinds[number - 1]]
        if self._still(fault, self.denied, 0):  # writing the original again is enough to break it
            return self._whole()
        number = first_failing(len(allowed), lambda n: self._still(fault, self.denied, n))
        return [allowed[number - 1]]

    def _still(self, fault: Fault, denied: frozenset[Key], limit: int | None) -> bool:
        """Whether a fault remains when only some rewrites are allowed."""
        model, attempts = self.original, list[Attempt]()
        for stage in self.stages:
            attempt = stage.attempt(model, denied, limit, attempts[-1].original if attempts else None)
            if limit is not None:
                limit -= len(attempt.recorder.allowed)
            attempts.append(attempt)
            model = attempt.model
        self._write(attempts, denied)
        return bool(self.prover.fault(fault.broken, self.path, _rewrites(attempts)))

    def _write(self, attempts: Sequence[Attempt], denied: frozenset[Key]) -> None:
        """Writes a candidate; its ledger names what is dropped in an order that a replay of the resolved recipe has too."""
        write_model(attempts, sorted(denied - self.given), self.original, self.path, self.prover.original)


def _rewrites(attempts: Sequence[Attempt]) -> list[Rewrite]:
    return [rewrite for attempt in attempts for rewrite in attempt.recorder.rewrites]

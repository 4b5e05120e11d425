"""One run: stages that are verified one by one, and a written file that is proved; what breaks either is dropped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import onnx_ir as ir

from graphopt.choosing.isa import safe_from_saturation
from graphopt.choosing.judge import Judge
from graphopt.choosing.metric import Metric
from graphopt.choosing.outcome import Outcome, first_failing, run_verified, widened
from graphopt.choosing.pace import slow_layers
from graphopt.choosing.selection import unselected
from graphopt.errors import LimitError
from graphopt.ledger import Drop, Key, Rewrite
from graphopt.progress import Progress
from graphopt.proof import Fault, Prover
from graphopt.recipe import Recipe
from graphopt.result import write_model
from graphopt.stage import Attempt, Stage
from graphopt.subject import Subject
from graphopt.verification import Verifier

_MOST_FAULTS = 8
"""After so many rewrites that broke the proof, no more of them are looked for one by one: all passes are dropped."""

_MOST_PROFILES = 3
"""So often layers that take longer than before are looked for, before rules and passes are."""


@dataclass
class Run:
    """The stages of one run, and what had to be dropped so far.

    Attributes:
        original: the model as it came; stays as it is.
        recipe: what to do.
        stages: in order.
        verifier: of outputs; None where structure alone is verified, or nothing can be run.
        metric: the user's own; None where there is none.
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
        is_prepared: the recipe's choice of layers is among them.
    """

    original: ir.Model
    recipe: Recipe
    stages: Sequence[Stage]
    verifier: Verifier | None
    metric: Metric | None
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
    is_prepared: bool = False

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
    def judge(self) -> Judge:
        """What approximations are held to."""
        return Judge(self.verifier, self.recipe.min_sqnr, self.metric)

    @property
    def nearest(self) -> str:
        """Where the limits left nothing of any approximation, the nearest to them that was reached; else an empty string."""
        ended = [outcome for stage, outcome in zip(self.stages, self.outcomes, strict=True) if stage.approximates]
        if any(outcome.attempt.recorder.rewrites for outcome in ended):
            return ""
        return next((outcome.nearest for outcome in ended if outcome.nearest), "")

    @property
    def min_sqnr(self) -> float | None:
        """What the model after the last stage must keep, in dB; None while it is exact."""
        return self._allowance(self.outcomes)

    def improve_until_proved(self) -> None:
        """Runs all stages, writes and proves; what breaks the proof is dropped, and all of it runs again."""
        faults = profiles = 0
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
            if fault.broken == "speed" and profiles < _MOST_PROFILES and (slow := self._slow_layers()):
                profiles += 1
                self.declined.extend(slow)
                self.denied |= {drop.key for drop in slow}
                continue
            faults += 1
            with self.progress.step(f"find what broke the proof: {fault.reason}"):
                culprits = [widened(culprit, self.drops) for culprit in self._culprits(fault)] if faults <= _MOST_FAULTS else self._whole()
            self.drops.extend(Drop(culprit, fault.reason) for culprit in culprits)
            self.denied |= set(culprits)

    def _run_stages(self) -> None:
        model = self.original
        outcomes: list[Outcome] = []
        for number in range(len(self.stages)):
            if self.stages[number].approximates:
                self._prepare_approximations(model)
            stage = self.stages[number]
            with self.progress.step(f"rewrite and verify: {stage.name}"):
                outcomes.append(self._outcome(stage, model, outcomes))
            model = outcomes[-1].attempt.model
        self.outcomes = outcomes
        if self.recipe.insist and self.nearest:
            raise LimitError(
                f"{self.prover.original.name}: no approximation of this recipe keeps {self.judge.limit}; the nearest is {self.nearest}"
            )

    def _outcome(self, stage: Stage, model: ir.Model, before: Sequence[Outcome]) -> Outcome:
        """Runs one stage; a preparation has to be exact, and is worked out once, whatever becomes of the approximations after it."""
        original = before[-1].attempt.original if before else None
        if not stage.approximates:
            return self._take(run_verified(stage, model, self.denied, self._judge(before), original))
        preparation = stage.of_role("prepare")
        if not preparation.passes:
            return self._take(run_verified(stage, model, self.denied, self.judge, original))
        prepared = self._take(run_verified(preparation, model, self.denied, self._judge(before), original)).attempt
        rest = stage.of_role("approximate", "recover")
        outcome = self._take(run_verified(rest, prepared.model, self.denied, self.judge))
        return replace(outcome, attempt=outcome.attempt.after(prepared, model))

    def _prepare_approximations(self, model: ir.Model) -> None:
        """Before the first of them, once: denies what the recipe does not let them touch, and fits them to its instruction set.

        Args:
            model: what the first of them is given.
        """
        if self.is_prepared:
            return
        self.is_prepared = True
        passes = frozenset[str]().union(*(stage.approximating for stage in self.stages))
        self.given |= unselected(model, self.recipe.include, self.recipe.exclude, passes)
        if self.recipe.isa == "avx2":
            self.stages = safe_from_saturation(self.stages, model)
        self.denied |= self.given

    def _take(self, outcome: Outcome) -> Outcome:
        """Denies from now on what had to be left out."""
        self.denied |= outcome.denied
        self.drops.extend(outcome.drops)
        self.declined.extend(outcome.declined)
        return outcome

    def _allowance(self, outcomes: Sequence[Outcome]) -> float | None:
        """What is allowed to a candidate that comes after some stages: the recipe's dB once one of them has approximated."""
        pairs = zip(self.stages, outcomes, strict=False)
        approximated = any(stage.approximates and outcome.attempt.recorder.rewrites for stage, outcome in pairs)
        return self.recipe.min_sqnr if approximated else None

    def _judge(self, outcomes: Sequence[Outcome]) -> Judge:
        """Holds an exact change to the outputs of the original, or to those of the approximations before it."""
        allowance = self._allowance(outcomes)
        return Judge(self.verifier, allowance, None if allowance is None else self.metric)

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

    def _slow_layers(self) -> list[Drop]:
        """The approximations that take longer than what they replace; each is found once, so that this comes to an end."""
        pairs = [(stage, outcome.attempt) for stage, outcome in zip(self.stages, self.outcomes, strict=True)]
        made = [one for stage, attempt in pairs for one in attempt.recorder.rewrites if one.key.pass_name in stage.approximating]
        first = next((number for number, (stage, _) in enumerate(pairs) if stage.approximates), 0)
        before = pairs[first - 1][1].model if first else self.original
        with self.progress.step("find layers that take longer than before"):
            return slow_layers(made, before, self.model, self.prover.feeds, self.prover.options) if made else []

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

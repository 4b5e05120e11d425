"""A stage: passes that are run, verified and kept or dropped together; and the bisection that finds a culprit."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import onnx_ir as ir

from graphopt.errors import GraphoptError, PassError
from graphopt.graph.signature import Signature, signature_of
from graphopt.graph.structure import signature_changes, verify_structure
from graphopt.ledger import Drop, Key, Recorder, recording
from graphopt.passes.base import AnyPass, Context, GuidedPass, Role
from graphopt.passes.foreign import ForeignPass
from graphopt.passes.rules import RuleError
from graphopt.runtime.session import shorten
from graphopt.verification import Verdict

logger = logging.getLogger(__name__)

_MOST_ROUNDS = 12
_MOST_CULPRITS = 8
_PLACES_BEFORE_RULE = 2


@dataclass
class Attempt:
    """One run of a stage.

    Attributes:
        model: the rewritten clone.
        recorder: what was done.
        failure: why the run broke off, or an empty string.
        culprit: the rewrite or pass that broke it, where it is known.
        seconds: time per pass.
        original: what the approximations so far approximate; None while there are none.
    """

    model: ir.Model
    recorder: Recorder
    failure: str = ""
    culprit: Key | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    original: ir.Model | None = None


@dataclass(frozen=True)
class Stage:
    """Exact passes that run together to their common fixed point, or approximations with their preparation and recovery.

    Attributes:
        passes: in order.
        context: what guided passes are given; None for a stage of exact passes.
    """

    passes: tuple[AnyPass | ForeignPass, ...]
    context: Context | None = None

    @property
    def name(self) -> str:
        """The names of the passes."""
        return " + ".join(each.name for each in self.passes)

    @property
    def approximates(self) -> bool:
        """Whether a pass changes the function."""
        return any(role_of(each) == "approximate" for each in self.passes)

    def attempt(self, snapshot: ir.Model, denied: frozenset[Key], limit: int | None = None, original: ir.Model | None = None) -> Attempt:
        """Runs the passes on a clone, checking the structure after each; never raises for what a pass does wrong.

        Args:
            snapshot: the model before; stays as it is.
            denied: rewrites that must not happen.
            limit: how many rewrites may happen; None for all.
            original: what earlier stages approximated; None where none did.
        """
        attempt = Attempt(snapshot.clone(), Recorder(denied, limit), original=original)
        attempt.model.meta.clear()
        signature = signature_of(attempt.model)
        with recording(attempt.recorder):
            for each in self._to_fixed_point(attempt):
                problem = _structural_problem(attempt.model, signature)
                if problem:
                    attempt.failure = f"{each.name}: {problem}"
                    break
        return attempt

    def _to_fixed_point(self, attempt: Attempt) -> Iterator[AnyPass | ForeignPass]:
        """Runs pass after pass until none has anything left to do; yields each that changed the model."""
        waiting = {number: each for number, each in enumerate(self.passes) if not attempt.recorder.denies(Key(each.name))}
        idle: set[int] = set()
        for _ in range(_MOST_ROUNDS):
            for number, each in waiting.items():
                if number in idle:
                    continue
                with _timed(attempt.seconds, each.name):
                    modified = self._run(each, attempt)
                if attempt.failure:
                    return
                if modified:
                    idle = set()
                    yield each
                if not modified or isinstance(each, (GuidedPass, ForeignPass)):
                    idle.add(number)

    def _run(self, each: AnyPass | ForeignPass, attempt: Attempt) -> bool:
        try:
            return self._modifies(each, attempt)
        except MemoryError:
            raise
        except Exception as error:  # a pass that crashes is dropped, never the run
            logger.debug("pass %s failed", each.name, exc_info=error)
            cause = error.__cause__ if isinstance(error, ir.passes.PassError) and error.__cause__ else error
            told = isinstance(cause, GraphoptError)
            attempt.failure = str(cause) if told else f"{each.name}: {type(cause).__name__}: {shorten(str(cause))}"
            attempt.culprit = cause.key if isinstance(cause, RuleError) else Key(each.name)
            return False

    def _modifies(self, each: AnyPass | ForeignPass, attempt: Attempt) -> bool:
        before = len(attempt.recorder.rewrites)
        if isinstance(each, GuidedPass):
            assert self.context is not None, "a stage with guided passes has a context"
            if each.role == "prepare":
                attempt.original = None
            elif attempt.original is None:
                attempt.original = attempt.model.clone()
            modified = each.run(attempt.model, replace(self.context, original=attempt.original))
        else:
            result = each(attempt.model)
            attempt.model, modified = result.model, bool(result.modified)
        if modified and len(attempt.recorder.rewrites) == before:
            raise PassError(f"pass {each.name} changed the model without telling the ledger")
        return modified


@contextlib.contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - start


def _structural_problem(model: ir.Model, signature: Signature) -> str:
    try:
        verify_structure(model)
        return signature_changes(signature, signature_of(model)) or ""
    except GraphoptError as error:
        return str(error)
    except Exception as error:  # what a pass leaves behind need not even be a graph
        return f"no sound graph is left ({type(error).__name__}: {shorten(str(error))})"


Judge = Callable[[ir.Model], Verdict]


@dataclass
class Outcome:
    """What became of a stage.

    Attributes:
        attempt: the run that is kept.
        drops: what had to be left out, and why.
        denied: all rewrites that were denied, those from outside included.
        verdict: of the attempt that is kept.
        declined: what measurements on this machine spoke against; denied too.
    """

    attempt: Attempt
    drops: list[Drop]
    denied: frozenset[Key]
    verdict: Verdict = field(default_factory=Verdict)
    declined: list[Drop] = field(default_factory=list)


def run_verified(stage: Stage, snapshot: ir.Model, denied: frozenset[Key], judge: Judge, original: ir.Model | None = None) -> Outcome:
    """Runs a stage, and while the result is wrong finds the rewrite that makes it so, drops it and keeps the rest.

    Args:
        stage: what to run.
        snapshot: the model before; stays as it is.
        denied: rewrites that must not happen.
        judge: verifies a candidate's outputs.
        original: what earlier stages approximated; None where none did.
    """
    drops: list[Drop] = []
    declined: list[Drop] = []
    while True:
        attempt = stage.attempt(snapshot, denied, original=original)
        declined.extend(attempt.recorder.declined)
        denied |= {drop.key for drop in attempt.recorder.declined}
        verdict = _judged(attempt, judge)
        if verdict.ok:
            if not attempt.recorder.rewrites:  # what was done without a rewrite was not verified either
                attempt.model = snapshot.clone()
            return Outcome(attempt, drops, denied, verdict, declined)
        culprits = _culprits(stage, snapshot, denied, judge, attempt, len(drops), original)
        culprits = [widened(culprit, drops) for culprit in culprits]
        logger.info("dropped %s: %s", ", ".join(map(str, culprits)), verdict.reason)
        if denied.issuperset(culprits):  # not even the stage without any rewrite is right: it is not the rewrites' fault
            culprits = _whole(stage)
        if denied.issuperset(culprits):
            return Outcome(stage_left_out(snapshot, original), drops, denied, declined=declined)
        drops.extend(Drop(culprit, verdict.reason) for culprit in culprits)
        denied |= set(culprits)


def stage_left_out(snapshot: ir.Model, original: ir.Model | None = None) -> Attempt:
    """An attempt that changed nothing."""
    return Attempt(snapshot.clone(), Recorder(), original=original)


def first_failing(count: int, fails: Callable[[int], bool]) -> int:
    """The smallest n in 1..count for which ``fails(n)``, by bisection, where ``fails(count)`` holds and ``fails(0)`` does not."""
    low, high = 0, count
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fails(middle) else (middle, high)
    return high


def _culprits(
    stage: Stage, snapshot: ir.Model, denied: frozenset[Key], judge: Judge, attempt: Attempt, found: int, original: ir.Model | None
) -> list[Key]:
    """What to drop next: one rewrite; after many, of an approximation the one at which too much is lost and all after it."""
    is_last = found >= _MOST_CULPRITS
    if is_last and not stage.approximates:
        return _whole(stage)
    if attempt.culprit is not None:
        return [attempt.culprit]
    allowed = attempt.recorder.allowed
    if not allowed:
        return [Key(stage.passes[0].name)]
    number = first_failing(len(allowed), lambda n: not _judged(stage.attempt(snapshot, denied, n, original), judge).ok)
    return allowed[number - 1 :] if is_last else [allowed[number - 1]]


def widened(culprit: Key, drops: Sequence[Drop]) -> Key:
    """The whole rule, where it has been the culprit at two other places before.

    Args:
        culprit: a rewrite.
        drops: what was dropped before it.
    """
    whole = Key(culprit.pass_name, culprit.rule)
    before = sum(1 for drop in drops if Key(drop.key.pass_name, drop.key.rule) == whole)
    return whole if culprit.rule and before >= _PLACES_BEFORE_RULE else culprit


def _judged(attempt: Attempt, judge: Judge) -> Verdict:
    if attempt.failure:
        return Verdict(attempt.failure)
    return judge(attempt.model) if attempt.recorder.rewrites else Verdict()


def _whole(stage: Stage) -> list[Key]:
    return [Key(each.name) for each in stage.passes]


_ORDER: Sequence[Role] = ("prepare", "approximate", "recover")


def role_of(each: AnyPass | ForeignPass) -> Role | None:
    """The role of a guided pass; None for an exact one."""
    return each.role if isinstance(each, GuidedPass) else None


def stages_of(passes: Sequence[AnyPass | ForeignPass], context: Callable[[], Context]) -> list[Stage]:
    """Groups neighbouring passes: exact ones; and approximations with the preparations before and the recoveries after them."""
    stages: list[Stage] = []
    for each in passes:
        if stages and _follows(role_of(stages[-1].passes[-1]), role_of(each)):
            stages[-1] = replace(stages[-1], passes=(*stages[-1].passes, each))
        else:
            stages.append(Stage((each,), context() if isinstance(each, GuidedPass) else None))
    return stages


def _follows(before: Role | None, after: Role | None) -> bool:
    """Whether a pass belongs to the stage that another one has ended so far."""
    if before is None or after is None:
        return before is after
    return _ORDER.index(before) <= _ORDER.index(after)


def total_seconds(attempts: Sequence[Attempt]) -> Mapping[str, float]:
    """Seconds per pass over all stages."""
    totals: dict[str, float] = {}
    for attempt in attempts:
        for name, seconds in attempt.seconds.items():
            totals[name] = totals.get(name, 0.0) + seconds
    return totals

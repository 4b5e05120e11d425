"""A stage: passes that run together on a clone of the model."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import onnx_ir as ir

from graphopt.errors import GraphoptError, LimitError, PassError, RecipeError
from graphopt.graph.signature import Signature, signature_of
from graphopt.graph.structure import signature_changes, verify_structure
from graphopt.ledger import Key, Recorder, recording
from graphopt.passes.base import AnyPass, Context, GuidedPass, Role
from graphopt.passes.foreign import ForeignPass
from graphopt.passes.rules import RuleError
from graphopt.runtime.session import shorten

logger = logging.getLogger(__name__)

_MOST_ROUNDS = 12


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

    @classmethod
    def without_change(cls, snapshot: ir.Model, original: ir.Model | None = None, told: Recorder | None = None) -> Attempt:
        """An attempt that changed nothing.

        Args:
            snapshot: the model before; stays as it is.
            original: see above.
            told: what an attempt that was not kept told of places that it did not rewrite.
        """
        recorder = Recorder(misses=dict(told.misses), notes=list(told.notes)) if told else Recorder()
        return cls(snapshot.clone(), recorder, original=original)

    def after(self, prepared: Attempt, snapshot: ir.Model) -> Attempt:
        """This attempt and the preparation that it began with, as one; no preparation where it changed nothing.

        Args:
            prepared: what it began with.
            snapshot: the model before both.
        """
        first, second = prepared.recorder, self.recorder
        joined = replace(
            second,
            rewrites=[*first.rewrites, *second.rewrites],
            misses=first.misses | second.misses,
            notes=[*first.notes, *second.notes],
            allowed=[*first.allowed, *second.allowed],
            declined=[*first.declined, *second.declined],
        )
        seconds = prepared.seconds | self.seconds
        if not second.rewrites:
            return replace(Attempt.without_change(snapshot, self.original, joined), seconds=seconds)
        return replace(self, recorder=joined, seconds=seconds)


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
        return bool(self.approximating)

    @property
    def approximating(self) -> frozenset[str]:
        """The names of the passes that change the function."""
        return frozenset(each.name for each in self.passes if role_of(each) == "approximate")

    def of_role(self, *roles: Role) -> Stage:
        """The stage with the passes of some roles alone."""
        return replace(self, passes=tuple(each for each in self.passes if role_of(each) in roles))

    def attempt(
        self,
        snapshot: ir.Model,
        denied: frozenset[Key],
        limit: int | None = None,
        original: ir.Model | None = None,
        only: Mapping[str, frozenset[Key]] | None = None,
    ) -> Attempt:
        """Runs the passes on a clone, checking the structure after each; never raises for what a pass does wrong.

        Args:
            snapshot: the model before; stays as it is.
            denied: rewrites that must not happen.
            limit: how many rewrites may happen; None for all.
            original: what earlier stages approximated; None where none did.
            only: by pass, the rewrites that alone may happen; None for all.
        """
        attempt = Attempt(snapshot.clone(), Recorder(denied, limit, only or {}), original=original)
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
        """Runs exact passes until none has anything left to do, guided ones once; yields each pass that changed the model."""
        waiting = {number: each for number, each in enumerate(self.passes) if not attempt.recorder.denies(Key(each.name))}
        idle: set[int] = set()
        once = {number for number, each in waiting.items() if isinstance(each, GuidedPass)}
        for _ in range(_MOST_ROUNDS):
            for number, each in waiting.items():
                if number in idle:
                    continue
                with _timed(attempt.seconds, each.name):
                    modified = self._run(each, attempt)
                if attempt.failure:
                    return
                if modified:
                    idle &= once
                    yield each
                if not modified or isinstance(each, (GuidedPass, ForeignPass)):
                    idle.add(number)

    def _run(self, each: AnyPass | ForeignPass, attempt: Attempt) -> bool:
        try:
            return self._modifies(each, attempt)
        except (MemoryError, LimitError, RecipeError):  # not to be helped by dropping the pass: the user has to choose
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
    return [_told(stage) for stage in stages]


def _told(stage: Stage) -> Stage:
    """The stage, whose context names its passes, also where only those of one role are run."""
    guided = tuple(each for each in stage.passes if isinstance(each, GuidedPass))
    return stage if stage.context is None else replace(stage, context=replace(stage.context, passes=guided))


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

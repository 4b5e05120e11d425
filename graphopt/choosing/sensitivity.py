"""Sensitivity: what each approximation costs at the model's outputs, by itself."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import onnx_ir as ir

from graphopt.choosing.judge import Judge
from graphopt.errors import GraphoptError
from graphopt.graph.cost import cost_of
from graphopt.ledger import Key, Rewrite
from graphopt.runtime.fidelity import IDENTICAL_DB
from graphopt.runtime.trace import trace_shapes
from graphopt.stage import Stage
from graphopt.verification import Noise

Array = np.ndarray[Any, Any]

logger = logging.getLogger(__name__)

_LOUDEST = 1e12
"""Stands for the noise of outputs that are not finite: it can be added and compared."""

Source = Literal["alone", "left out", "estimated"]


@dataclass(frozen=True)
class Effect:
    """What one rewrite costs.

    Attributes:
        key: the rewrite.
        noise: ``float64 [pairs]``, what it adds to the power of the noise of each output on each feed, relative to the output's own.
        worth: its share of the work and of the bytes of all that are approximated: what leaving it out gives up.
        source: measured with no other rewrite, or as what goes when it alone is left out, or estimated from the others.
    """

    key: Key
    noise: Array
    worth: float
    source: Source

    @property
    def sqnr_db(self) -> float:
        """Signal to noise of the worst output, were it the only rewrite."""
        return decibels(self.noise)


@dataclass(frozen=True)
class Effects:
    """What the rewrites of a stage cost one by one.

    Attributes:
        each: in the order in which they were made.
        pairs: feeds and outputs that the noise is told of.
        base: ``float64 [pairs]``, the noise that is there without any of them.
        total: ``float64 [pairs]``, the noise with all of them.
    """

    each: tuple[Effect, ...]
    pairs: tuple[tuple[int, str], ...]
    base: Array
    total: Array

    @property
    def estimated(self) -> int:
        """How many were not measured, since time was up."""
        return sum(effect.source == "estimated" for effect in self.each)


@dataclass(frozen=True)
class Probe:
    """Runs a stage with some of its approximations alone.

    Attributes:
        stage: its passes.
        snapshot: the model before; stays as it is.
        denied: rewrites that must not happen.
        judge: compares with the original.
        original: what earlier stages approximated; None where none did.
    """

    stage: Stage
    snapshot: ir.Model
    denied: frozenset[Key]
    judge: Judge
    original: ir.Model | None = None

    def noise(self, keys: Iterable[Key]) -> tuple[Noise | None, frozenset[Key]]:
        """The noise that some approximations bring, None where they do not run, and those that could be made without the others.

        Recovery is left out: it would hide what it mends.
        """
        chosen = frozenset(keys)
        only = {name: frozenset(key for key in chosen if key.pass_name == name) for name in self.stage.approximating}
        attempt = (
            unmeasured(self.stage).of_role("prepare", "approximate").attempt(self.snapshot, self.denied, original=self.original, only=only)
        )
        made = frozenset(rewrite.key for rewrite in attempt.recorder.rewrites) & chosen
        return (None if attempt.failure else self.judge.noise(attempt.model)), made


def unmeasured(stage: Stage) -> Stage:
    """The stage as a replay runs it: no candidate is timed."""
    return stage if stage.context is None else replace(stage, context=replace(stage.context, measures=False))


def effects_of(
    probe: Probe, rewrites: Sequence[Rewrite], seconds: float, report: Callable[[Effect], None] = lambda effect: None
) -> Effects:
    """Measures rewrites one by one, those first from which the most harm is expected.

    Args:
        probe: of the stage that made them.
        rewrites: its approximations, as made together.
        seconds: after so many the rest is estimated from their predicted errors, in the proportion of those that were measured.
        report: told each effect when it is known.
    """
    start = time.perf_counter()
    keys = list(dict.fromkeys(rewrite.key for rewrite in rewrites))
    predicted = {rewrite.key: rewrite.predicted_error or 0.0 for rewrite in rewrites}
    worth = worths(probe, keys)
    silent = probe.noise(())[0] or {}
    pairs = tuple(silent)
    base, whole = as_array(silent, pairs), as_array(probe.noise(keys)[0] or {}, pairs)
    found: dict[Key, tuple[Array, Source]] = {}
    for key in sorted(keys, key=lambda key: -predicted[key]):
        if time.perf_counter() - start > seconds:
            break
        measured = _measured(probe, key, keys, pairs, base, whole)
        if measured is not None:
            found[key] = measured
            report(Effect(key, measured[0], worth[key], measured[1]))
    ratio = _typical([noise / max(predicted[key], 1e-9) ** 2 for key, (noise, _) in found.items() if predicted[key]], len(pairs))
    for key in keys:
        if key not in found:
            found[key] = (ratio * max(predicted[key], 1e-3) ** 2, "estimated")
    each = tuple(Effect(key, found[key][0], worth[key], found[key][1]) for key in keys)
    return Effects(each, pairs, base, whole)


def worths(probe: Probe, keys: Sequence[Key]) -> dict[Key, float]:
    """What each rewrite is good for: its node's share of the multiply-accumulates, and of the bytes of constants, of all of them."""
    try:
        feed = probe.judge.verifier.references[0].feed if probe.judge.verifier else {}
        shapes = trace_shapes(probe.snapshot, feed, probe.stage.context.options if probe.stage.context else None)
    except GraphoptError as error:  # bytes alone will do
        logger.info("no shapes: %s", error)
        shapes = {}
    costs = {node.name: node for node in cost_of(probe.snapshot, shapes).nodes}
    macs = [(costs[key.anchor].macs or 0) if key.anchor in costs else 0 for key in keys]
    sizes = [costs[key.anchor].bytes if key.anchor in costs else 0 for key in keys]
    least = 1e-3 / max(len(keys), 1)
    return {key: least + work / max(sum(macs), 1) + size / max(sum(sizes), 1) for key, work, size in zip(keys, macs, sizes, strict=True)}


def as_array(noise: Noise, pairs: Sequence[tuple[int, str]]) -> Array:
    """Noise of some feeds and outputs; what is missing or not finite is as loud as can be."""
    numbers = np.array([noise.get(pair, np.inf) for pair in pairs], np.float64)
    return np.minimum(np.nan_to_num(numbers, nan=np.inf, posinf=np.inf), _LOUDEST)


def decibels(noise: Array) -> float:
    """The smallest signal-to-noise ratio of relative powers of noise."""
    worst = float(noise.max(initial=0.0))
    return IDENTICAL_DB if worst <= 0 else min(IDENTICAL_DB, -10 * float(np.log10(worst)))


def _measured(
    probe: Probe, key: Key, keys: Sequence[Key], pairs: Sequence[tuple[int, str]], base: Array, whole: Array
) -> tuple[Array, Source] | None:
    """A rewrite's noise with no other; where it needs others, what goes when it alone is left out."""
    noise, made = probe.noise([key])
    if noise is not None and made:
        return np.maximum(as_array(noise, pairs) - base, 0.0), "alone"
    noise, made = probe.noise([other for other in keys if other != key])
    if noise is None or key in made:
        return None
    return np.maximum(whole - as_array(noise, pairs), 0.0), "left out"


def _typical(ratios: Sequence[Array], pairs: int) -> Array:
    return np.median(np.stack(ratios), axis=0) if ratios else np.ones(pairs)

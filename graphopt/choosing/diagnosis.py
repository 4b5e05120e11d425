"""Diagnosis: what approximating each layer costs at the model's outputs, alone and after all before it, and why."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from graphopt.choosing.causes import Cause, causes_of
from graphopt.choosing.judge import Judge
from graphopt.choosing.selection import unselected
from graphopt.choosing.sensitivity import Effect, Probe, as_array, decibels, effects_of, unmeasured
from graphopt.errors import RecipeError, SessionError
from graphopt.graph.edits import all_nodes, name_nodes
from graphopt.graph.signature import signature_of
from graphopt.graph.structure import verify_structure
from graphopt.graph.view import operator_of
from graphopt.intake import lowered, take
from graphopt.ledger import Key, Ledger
from graphopt.passes.base import Context
from graphopt.progress import Progress, Quiet
from graphopt.recipe import Recipe
from graphopt.runtime.session import SessionOptions
from graphopt.samples import Samples
from graphopt.stage import Attempt, Stage, stages_of
from graphopt.subject import choose_subject
from graphopt.verification import verifier_of

_SECONDS = 1800.0


@dataclass(frozen=True)
class LayerReport:
    """What approximating one layer costs.

    Attributes:
        name: of the node.
        operator: its type.
        pass_name: what approximates it.
        alone_db: signal to noise of the worst output with this layer alone approximated.
        accumulated_db: the same with all layers up to this one, in the order in which they run.
        source: how ``alone_db`` was found: ``alone``; ``left out``, as what goes when it alone stays as it is; ``estimated``.
        causes: what stands out at the layer.
    """

    name: str
    operator: str
    pass_name: str
    alone_db: float
    accumulated_db: float
    source: str
    causes: tuple[Cause, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        causes = [{"kind": cause.kind, "figure": round(cause.figure, 3), "text": cause.text} for cause in self.causes]
        numbers = {"alone_db": round(self.alone_db, 2), "accumulated_db": round(self.accumulated_db, 2)}
        return {"name": self.name, "operator": self.operator, "pass": self.pass_name, **numbers, "source": self.source, "causes": causes}


@dataclass(frozen=True)
class Diagnosis:
    """What approximating the layers of a model costs.

    Attributes:
        model: its file.
        samples: what was run, in words.
        synthetic: the samples are made up.
        layers: in the order in which they run.
    """

    model: Path
    samples: str
    synthetic: bool
    layers: tuple[LayerReport, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain data; ``version`` counts changes of this form."""
        return {
            "version": 1,
            "model": str(self.model),
            "samples": self.samples,
            "synthetic": self.synthetic,
            "layers": [layer.to_json() for layer in self.layers],
        }


def diagnose(
    model: str | Path,
    data: Samples | str | Path | Iterable[Mapping[str, Any]] | None,
    recipe: Recipe,
    *,
    allow_imports: bool = False,
    options: SessionOptions | None = None,
    progress: Progress | None = None,
) -> Diagnosis:
    """Approximates the layers of a model one by one, and one after the other.

    Args:
        model: a file, or a folder that holds one.
        data: samples; None for made-up ones, on which passes that need real ones do nothing.
        recipe: its exact passes run first; its preparations and approximations are what is examined.
        allow_imports: let the recipe name passes as ``module:Class``.
        options: how sessions are made.
        progress: told what is being done.

    Raises:
        RecipeError: the recipe approximates nothing, or nothing in this model.
        GraphoptError: the model or the samples cannot be used.
    """
    progress, options = progress or Quiet(), options or SessionOptions()
    with ExitStack() as stack:
        with progress.step("load and run the original"):
            intake = take(model, None, in_place=False)
            folder = stack.enter_context(intake.scratch_folder())
            verify_structure(intake.model)
            baseline = lowered(intake, folder, Ledger())
            name_nodes(intake.model)
            samples = data if data is None or isinstance(data, Samples) else Samples.open(data, signature_of(intake.model))
            subject = choose_subject(intake.model, baseline, samples, recipe.shapes, options)
            if subject.refusal or subject.protected:
                raise SessionError(f"{intake.name}: {subject.refusal or 'it does not run as a whole: it has operators that nobody knows'}")
            verifier = verifier_of(subject.original, subject.feeds, options, recipe.tolerance, subject.cut)
        if samples is None:
            feeds = [dict(feed) for feed in subject.feeds]
            samples = Samples(lambda: iter(feeds), len(feeds), f"{len(feeds)} synthetic samples", is_synthetic=True)
        context = Context(samples, recipe.target, options=options, measures=False)
        stages = stages_of(recipe.build(allow_imports=allow_imports), lambda: context)
        examined = _Examination(recipe, context, Judge(verifier, recipe.min_sqnr), progress)
        layers = examined.of(stages, intake.model)
    if not layers:
        raise RecipeError(f"{intake.name}: no pass of this recipe approximates anything in this model")
    return Diagnosis(intake.source or Path(intake.name), samples.description, samples.is_synthetic, layers)


@dataclass(frozen=True)
class _Examination:
    recipe: Recipe
    context: Context
    judge: Judge
    progress: Progress

    def of(self, stages: Sequence[Stage], model: ir.Model) -> tuple[LayerReport, ...]:
        """Goes through the stages; each stands on the approximations of those before it."""
        denied = frozenset(key for name in self.recipe.skip for key in (Key(name), Key("", name)))
        passes = frozenset[str]().union(*(stage.approximating for stage in stages))
        reports: list[LayerReport] = []
        original: ir.Model | None = None
        for stage in stages:
            if not stage.approximates:
                with self.progress.step(f"rewrite: {stage.name}"):
                    model = stage.attempt(model, denied, original=original).model
                continue
            if original is None:
                denied |= unselected(model, self.recipe.include, self.recipe.exclude, passes)
            with self.progress.step(f"approximate layer by layer: {stage.name}"):
                attempt = unmeasured(stage).of_role("prepare", "approximate").attempt(model, denied, original=original)
                reports.extend(self._stage(stage, model, denied, attempt, original))
                model, original = attempt.model, attempt.original
        return tuple(reports)

    def _stage(
        self, stage: Stage, model: ir.Model, denied: frozenset[Key], attempt: Attempt, original: ir.Model | None
    ) -> list[LayerReport]:
        made = [rewrite for rewrite in attempt.recorder.rewrites if rewrite.key.pass_name in stage.approximating]
        places = {node.name or "": (number, operator_of(node)) for number, node in enumerate(all_nodes(model))}
        made.sort(key=lambda rewrite: places.get(rewrite.key.anchor, (len(places), ""))[0])
        if not made:
            return []
        probe = Probe(stage, model, denied, self.judge, original)
        effects = effects_of(probe, made, _SECONDS)
        causes = causes_of(model, [effect.key.anchor for effect in effects.each], self.context, narrow_sums=self.recipe.isa == "avx2")
        reports, keys = [], list[Key]()
        for effect in effects.each:
            keys.append(effect.key)
            noise = as_array(probe.noise(keys)[0] or {}, effects.pairs)
            reports.append(_report(effect, decibels(noise), places.get(effect.key.anchor, (0, ""))[1], causes.get(effect.key.anchor, [])))
        return reports


def _report(effect: Effect, accumulated: float, operator: str, causes: Sequence[Cause]) -> LayerReport:
    return LayerReport(effect.key.anchor, operator, effect.key.pass_name, effect.sqnr_db, accumulated, effect.source, tuple(causes))

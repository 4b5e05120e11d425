"""From recipe, model and samples to a verified model and its ledger: the product on one screen."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

from graphopt import files
from graphopt.choosing.coverage import Coverage, coverage_of
from graphopt.choosing.metric import Function, Metric, function_of
from graphopt.choosing.unguided import unguided
from graphopt.errors import RecipeError, SessionError, VerificationError
from graphopt.graph.edits import name_nodes
from graphopt.graph.scratch import scratch
from graphopt.graph.signature import signature_of
from graphopt.graph.structure import verify_structure
from graphopt.intake import Intake, lowered, take
from graphopt.ledger import Ledger
from graphopt.passes.base import Context
from graphopt.presets import preset
from graphopt.progress import Progress, Quiet
from graphopt.proof import Property, Prover
from graphopt.recipe import Recipe
from graphopt.result import Result, figures_of, place_beside, resolved, write_beside
from graphopt.run import Run
from graphopt.runtime.registry import available_providers
from graphopt.runtime.session import SessionOptions
from graphopt.runtime.trace import trace_shapes
from graphopt.samples import Samples
from graphopt.stage import stages_of, total_seconds
from graphopt.subject import Subject, choose_subject
from graphopt.targets import TARGETS
from graphopt.verification import Effort, Verdict, verifier_of

_CPU = "CPUExecutionProvider"

Source = str | Path | onnx.ModelProto | ir.Model


def optimize(
    model: Source,
    output: str | Path | None = None,
    *,
    recipe: Recipe | str = "exact",
    data: Samples | str | Path | Iterable[Mapping[str, Any]] | None = None,
    in_place: bool = False,
    strict: bool = False,
    keep_ledger: bool = True,
    allow_imports: bool = False,
    custom_ops: Sequence[Path] = (),
    metric: Function | None = None,
    memory: int | None = None,
    progress: Progress | None = None,
) -> Result:
    """Optimizes a model, proves the result against the original, and writes it.

    Args:
        model: a file, a folder with one model and its companions, an ``onnx.ModelProto`` or an ``onnx_ir.Model``; never changed.
        output: where to write; a folder where ``model`` is one. None with ``in_place`` False: nothing is written.
        recipe: a recipe, or the name of a preset.
        data: calibration and evaluation inputs; without them synthetic samples are made from the signature.
        in_place: write onto the input, atomically.
        strict: refuse to write anything where a rewrite had to be dropped.
        keep_ledger: write ``OUT.ledger.json`` beside the model.
        allow_imports: let the recipe name passes as ``module:Class``, and its metric as ``module:function``.
        custom_ops: libraries of custom operators to register with the runtime.
        metric: the function behind the recipe's ``metric``, see :class:`graphopt.choosing.metric.Metric`; None to import it by that name.
        memory: bytes for what samples tell about layers at a time, and for activations on their way: less takes more passes over the
            samples and gives the same result. None for the default, 1 GiB and 320 MiB.
        progress: told what is being done.

    Returns:
        The optimized model, the ledger, and what was measured.

    Raises:
        GraphoptError: the input cannot be used; the message says why, in one line. Nothing has been written then.
    """
    recipe = preset(recipe) if isinstance(recipe, str) else recipe
    progress = progress or Quiet()
    passes = recipe.build(allow_imports=allow_imports)
    function = _function(recipe, metric, allow_imports=allow_imports)
    options = SessionOptions(recipe.session.threads, _providers(recipe), tuple(custom_ops), recipe.session.config)
    with ExitStack() as stack:
        with progress.step("load"):
            intake = take(model, output, in_place=in_place)
            folder = stack.enter_context(intake.scratch_folder())
            ledger = Ledger(notes=[*intake.notes(), *_not_executed(recipe)])
            verify_structure(intake.model)
            baseline = lowered(intake, folder, ledger)
            name_nodes(intake.model)
            samples = data if data is None or isinstance(data, Samples) else Samples.open(data, signature_of(intake.model))
        subject, verifier = Subject(), None
        if recipe.verify != "structure":
            with progress.step("run the original"):
                subject = choose_subject(intake.model, baseline, samples, recipe.shapes, options)
                ledger.notes.extend(subject.notes)
                if subject.feeds:
                    verifier = verifier_of(subject.original, subject.feeds, options, recipe.tolerance, subject.cut)
        own = None if function is None else Metric(str(recipe.metric), function, float(recipe.max_drop or 0), options, baseline)
        if own is not None and (verifier is None or subject.protected):
            raise RecipeError(f"{intake.name}: metric {own.name}: the model does not run as a whole here, or is not to be run (verify)")
        if samples is None or samples.is_synthetic:
            passes, note = unguided(passes)
            ledger.notes.extend([note] if note else [])
        stages = stages_of(passes, functools.cache(lambda: _context(intake.model, samples, subject, recipe, options, memory)))
        prover = Prover(intake.path(folder), baseline, subject.feeds, options, recipe.time_limit, _properties(recipe, subject))
        path = folder / intake.output_name
        if intake.target is not None:  # else the result lives on in memory, and longer than the folder
            stack.enter_context(scratch(folder))
        run = Run(intake.model, recipe, stages, verifier, own, subject, prover, path, progress, must_write=bool(ledger.rewrites))
        run.improve_until_proved()
        result = _conclude(run, intake, ledger)
        if strict and run.drops:
            first = run.drops[0]
            raise VerificationError(
                f"{intake.name}: {len(run.drops)} rewrites had to be dropped, first {first.key}: {subject.refusal or first.reason}"
            )
        if intake.target is None:
            return result
        with progress.step(f"write {intake.target}"):
            beside = write_beside(result, folder, intake.output_name, ledger=keep_ledger)
            intake.copy_companions()  # all that may want space on the disk goes before the model
            if result.changed or intake.target != intake.source:
                files.move_model(path, intake.target)
            place_beside(beside, intake.target)
        return replace(result, held=None)


def _function(recipe: Recipe, given: Function | None, *, allow_imports: bool) -> Function | None:
    """The metric that a recipe names."""
    if recipe.metric is None and given is not None:
        raise RecipeError("metric: the recipe says nothing of it; give it a metric, by any name, and a max_drop")
    if recipe.metric is None or given is not None:
        return given
    if not allow_imports:
        raise RecipeError(f"metric {recipe.metric} would import code: allow it with --allow-imports, or name it with --metric")
    return function_of(recipe.metric)


def _providers(recipe: Recipe) -> tuple[str, ...]:
    """The target's execution provider where the installed runtime has it, and the CPU for what it leaves."""
    wanted = TARGETS[recipe.target].provider
    is_extra = recipe.verify != "structure" and wanted not in (None, _CPU) and wanted in available_providers()
    return (str(wanted), _CPU) if is_extra else (_CPU,)


def _not_executed(recipe: Recipe) -> list[str]:
    wanted = TARGETS[recipe.target].provider
    if wanted is None or recipe.verify == "structure" or wanted in available_providers():
        return []
    return [f"not executed on the target {recipe.target}: the installed runtime has no {wanted}; outputs were verified on the CPU"]


def _properties(recipe: Recipe, subject: Subject) -> tuple[Property, ...]:
    """What is proved of the written file: a replay times nothing, and what cannot run is not timed."""
    if recipe.verify != "full" or not subject.feeds or subject.protected or _not_executed(recipe):
        return ("size",)
    return ("size", "kernels") if recipe.resolved else ("size", "kernels", "speed")


def _context(
    model: ir.Model, samples: Samples | None, subject: Subject, recipe: Recipe, options: SessionOptions, memory: int | None
) -> Context:
    """What guided passes are given; without samples, the made-up ones that the original is known to run on."""
    if samples is None:
        feeds = [dict(feed) for feed in subject.feeds] or list(Samples.synthetic(model, recipe.shapes))
        samples = Samples(lambda: iter(feeds), len(feeds), f"{len(feeds)} synthetic samples", is_synthetic=True)
    measures = recipe.verify == "full" and recipe.resolved is None and not _not_executed(recipe)
    return Context(samples, recipe.target, options=options, measures=measures, memory=memory)


def _conclude(run: Run, intake: Intake, ledger: Ledger) -> Result:
    """Gathers what was done and measured; a run without any change gives back the input byte for byte."""
    for stage, attempt in zip(run.stages, run.attempts, strict=True):
        ledger.absorb(attempt.recorder)
        if stage.approximates and not attempt.recorder.rewrites:
            ledger.notes.append(f"the pass {stage.name} changed nothing: it found no layer that it could change and keep within the limits")
    ledger.drops.extend([*run.settled, *run.drops])
    ledger.declined.extend(run.declined)
    verdict = Verdict()
    if not ledger.rewrites:
        files.copy_model(run.prover.original, run.path)
        ledger.notes.append("nothing to improve: the output equals the input")
    elif run.verifier and not run.subject.protected:
        with run.progress.step("check the written file"):
            verdict = run.verifier.check(run.path, run.min_sqnr)
        if not verdict.ok:
            raise VerificationError(
                f"{intake.name}: the written file failed the last check ({verdict.reason}); please report this as a bug"
            )
        if run.min_sqnr is None and verdict.relative > run.recipe.tolerance:
            noise = max(reference.loudest for reference in run.verifier.references)
            ledger.notes.append(f"on these samples the original itself moves by {noise:.1e} when its inputs move by one rounding")
    coverage = _coverage(run, ledger)
    if coverage is not None and coverage.integer_macs:
        ledger.notes.append(str(coverage))
    effort = run.verifier.effort if run.verifier else Effort()
    figures = figures_of(
        intake,
        run.attempts,
        run.prover,
        run.path,
        relative_error=verdict.relative if run.verifier else None,
        sqnr_db=verdict.sqnr_db if run.verifier and run.min_sqnr is not None else None,
        metric=(own.name, own.before, own.of(run.path)) if (own := run.metric) is not None and run.min_sqnr is not None else None,
        coverage=coverage,
        synthetic=run.subject.synthetic,
        sessions=effort.sessions,
        inferences=effort.inferences,
        seconds={**total_seconds(run.attempts), "verification": effort.seconds, "proof": run.prover.seconds},
    )
    recipe = resolved(run.recipe, run.denied - run.given, measured=run.prover.timed)
    return Result(run.model, intake.target, intake.source, ledger, recipe, figures)


def _coverage(run: Run, ledger: Ledger) -> Coverage | None:
    """What runs in integers, of the model before its first approximation."""
    first = next((number for number, stage in enumerate(run.stages) if stage.approximates), None)
    if first is None or not run.outcomes or not run.subject.feeds or run.subject.protected:
        return None
    before = run.attempts[first - 1].model if first else run.original
    try:
        shapes = trace_shapes(before, run.subject.feeds[0], run.prover.options)
    except SessionError:  # some models need the runtime's optimizations to run at all
        return None
    passes = frozenset[str]().union(*(stage.approximating for stage in run.stages))
    needs_samples = run.subject.synthetic and "static" in passes
    otherwise = "the ranges of its values are known from samples alone" if needs_samples else "no pass of the recipe is for it"
    return coverage_of(before, shapes, ledger, passes, otherwise)

"""What importance, allocation and refit each buy in pruning, on trained models at several budgets: the whole curve.

Needs the folder of trained models that ``GRAPHOPT_ZOO`` names. ``pruning.py [MODEL ...]``; the page keeps what it has of others.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir
import results
from quality import quality
from rich.console import Console
from subjects import Subject, all_subjects

from graphopt import files
from graphopt.graph.edits import name_nodes
from graphopt.graph.signature import signature_of
from graphopt.graph.units import couplings_of, remove
from graphopt.passes.base import Context
from graphopt.passes.prune import Prune
from graphopt.passes.prune.consumers import Importance, consumers_of
from graphopt.passes.prune.curves import Candidate, Curve
from graphopt.passes.prune.plan import Plan
from graphopt.passes.prune.workload import Workload
from graphopt.passes.walk.line import shapes_of_layers
from graphopt.passes.walk.refit import refit
from graphopt.presets import preset
from graphopt.runtime.session import SessionOptions
from graphopt.runtime.statistics import Request
from graphopt.samples import Samples
from graphopt.solve.surgeon import removals
from graphopt.stage import Stage

_MODELS = {"cifar_resnet56_ft": (0.7, 0.5, 0.4), "minilm_l6": (0.75, 0.6), "llama_shakespeare": (0.8, 0.7, 0.6)}
_STEPS: Sequence[tuple[str, Importance, bool, bool]] = (
    ("magnitude, the same share everywhere", "magnitude", False, False),
    ("+ refit", "magnitude", False, True),
    ("+ chosen by the surgeon", "surgeon", False, True),
    ("+ allocation by damage at the outputs", "surgeon", True, True),
)
"""What each row has: how channels are chosen, whether widths follow the damage, whether what is left is refitted."""
_MEASURES = ("value", "drop_error", "top1_agreement_fp32", "agreement_fp32", "mean_cosine_fp32", "sqnr_db_fp32")


@dataclasses.dataclass
class Case:
    """One model ready to be pruned.

    Attributes:
        subject: names it.
        model: after the exact passes.
        context: with its calibration samples.
    """

    subject: Subject
    model: ir.Model
    context: Context

    @classmethod
    def of(cls, subject: Subject) -> Case:
        """Loads a model and its calibration samples."""
        model = files.load(subject.path)
        name_nodes(model)
        model = Stage(tuple(preset("exact").build())).attempt(model, frozenset()).model
        samples = Samples.open(subject.feeds, signature_of(model))
        return cls(subject, model, Context(samples, "cpu", options=SessionOptions(), original=model.clone()))

    def plan(self, importance: Importance, *, measured: bool) -> Plan:
        """What is known of all blocks; damage that is not measured is the same for the same share of any block."""
        prune = Prune(macs=0.5, importance=importance)
        candidates = prune.candidates(couplings_of(self.model))
        shapes = shapes_of_layers(self.model, next(iter(self.context.samples)), self.context.options)
        workload = Workload(self.model, [each.block for each in candidates], shapes)
        if measured:
            return Plan(candidates, prune.curves(self.model, candidates, shapes, self.context), workload)
        return Plan(candidates, [self._uniform(each, importance) for each in candidates], workload)

    def _uniform(self, candidate: Candidate, importance: Importance) -> Curve:
        found = self.context.statistics(self.model, Request(layers=tuple(use.layer.name for use in candidate.uses))).layers
        grams = {name: layer.gram for name, layer in found.items()}
        *_, last = removals(consumers_of(candidate.uses, grams, importance), candidate.widths)
        return Curve([0.0 for _ in candidate.widths], last.gone, 1.0)

    def pruned(self, plan: Plan, widths: Sequence[int], *, refitted: bool) -> ir.Model:
        """The model at some widths."""
        model = self.model.clone()
        parts = remove(model, couplings_of(model), plan.gone(widths))
        if refitted:
            refit(model, self.model, parts, self.context)
        return model


def main() -> None:
    """Measures, prints the table and writes it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", default=list(_MODELS), choices=list(_MODELS))
    chosen = parser.parse_args().models
    path = results.RESULTS / "pruning.json"
    rows: dict[str, list[dict[str, Any]]] = json.loads(path.read_text())["rows"] if path.exists() else {}
    for subject in all_subjects(chosen):
        rows[subject.name] = list(_measured(Case.of(subject)))
    page = ["# Pruning", "", f"On {results.machine()}. No labels, no gradients; seconds are those of all that a row has.", ""]
    for name, found in rows.items():
        measures = [measure for measure in _MEASURES if measure in found[0]]
        head = ["share of the work", "how", *measures, "seconds"]
        cells = [[row["share"], row["how"], *(f"{row[measure]:.4f}" for measure in measures), f"{row['seconds']:.0f}"] for row in found]
        page += [f"## {name}", "", *results.table(head, cells), ""]
    results.write("pruning", page[:-1], {"machine": results.machine(), "rows": rows})
    Console().print("\n".join(page), markup=False)


def _measured(case: Case) -> Iterator[dict[str, Any]]:
    plans: dict[tuple[Importance, bool], tuple[Plan, float]] = {}
    for share in _MODELS[case.subject.name]:
        for how, importance, measured, refitted in _STEPS:
            start = time.perf_counter()
            if (importance, measured) not in plans:
                plans[importance, measured] = case.plan(importance, measured=measured), time.perf_counter() - start
            plan, seconds = plans[importance, measured]
            start = time.perf_counter()
            widths = plan.widths(plan.workload.macs, share) if measured else _same_share(plan, share)
            assert widths is not None, "these models can be pruned so far"
            model = case.pruned(plan, widths, refitted=refitted)
            seconds += time.perf_counter() - start
            with tempfile.TemporaryDirectory() as folder:
                files.save(model, Path(folder) / "pruned.onnx")
                yield quality(case.subject, Path(folder) / "pruned.onnx") | {"share": share, "how": how, "seconds": seconds}


def _same_share(plan: Plan, share: float) -> list[int]:
    """Widths that are about the same share of each block, the widest within the budget."""
    whole = [each.block.count for each in plan.candidates]
    budget = share * plan.workload.macs(whole)
    for percent in range(100, 0, -1):
        widths = [min(each.widths, key=lambda width: abs(width - percent / 100 * each.block.count)) for each in plan.candidates]
        if plan.workload.macs(widths) <= budget:
            return widths
    return [each.widths[-1] for each in plan.candidates]


if __name__ == "__main__":
    main()

"""What the exact passes gain on real inputs, model by model and rule by rule, beside what there was to gain."""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import gains_page
import results
from decoding_model import step_feeds, write_step
from inputs import Feed, inputs_of, one_token
from models import ROOT, Model, all_models
from rich.console import Console
from shares import share_outside_products
from small_graphs import small_graphs

from graphopt import optimize
from graphopt.files import load, save
from graphopt.graph.attention import attentions_of
from graphopt.presets import preset
from graphopt.runtime.session import SessionOptions
from graphopt.runtime.stopwatch import compare
from graphopt.stage import Stage

FUSIONS = ("activations", "normalize", "affine", "attention", "algebra")
"""The passes whose rules are there for speed."""

_DRAFTS = ROOT / "build" / "gains"
_THREADS = (1, 2)
_MODEL_S, _RULE_S = 5.0, 3.0
_STEP_LOADS, _STEP_S = 3, 2.5
_RECIPE = preset("exact").changed(verify="structure")


@dataclass(frozen=True)
class Subject:
    """What is measured as one.

    Attributes:
        name: of the model, and of the inputs where it is measured on several kinds.
        kind: the exporter, or ``decoding`` for steps with a cache; empty for others.
        path: finds, or writes, the model.
        feeds: its inputs.
    """

    name: str
    kind: str
    path: Callable[[], Path]
    feeds: Sequence[Feed]


@dataclass(frozen=True)
class Prepared:
    """A model's results.

    Attributes:
        result: after all exact passes.
        without: for each rule for speed that fired, how often it did, and the result without this rule.
        attentions: how many attentions the result has.
    """

    result: Path
    without: Mapping[str, tuple[int, Path]]
    attentions: int


def subjects() -> Iterator[Subject]:
    """All models with their inputs; those with a cache also for one token, and the step of a larger model."""
    for model in all_models(()):
        feeds = inputs_of(model.path)
        yield Subject(model.name, _exporter(model), partial(Path, model.path), feeds)
        if step := one_token(feeds):
            yield Subject(f"{model.name}, one token", "decoding", partial(Path, model.path), step)
    for label, feed in step_feeds():
        yield Subject(f"decoding step, {label}", "decoding", _step, [feed])


def _exporter(model: Model) -> str:
    if model.is_legacy:
        return "legacy"
    return "dynamo" if load(model.path).producer_name == "pytorch" else ""


@cache
def _step() -> Path:
    path = _DRAFTS / "decoding_step.onnx"
    _DRAFTS.mkdir(parents=True, exist_ok=True)
    write_step(path)
    return path


def prepare(path: Path, folder: Path) -> Prepared:
    """Optimizes a model with all rules, and without each that is there for speed and fires on it; nothing is timed."""
    result = folder / "result.onnx"
    ledger = optimize(path, result, recipe=_RECIPE).ledger
    without = {}
    for name, count in ledger.counts().items():
        kind, _, line = name.partition("/")
        if kind in FUSIONS:
            without[name] = (count, folder / f"without_{line}.onnx")
            optimize(path, without[name][1], recipe=_RECIPE.changed(skip=[line]))
    return Prepared(result, without, len(attentions_of(load(result))))


def measure(subject: Subject, prepared: Prepared) -> dict[str, Any]:
    """Times original and result, and the results without each rule, in turn; shares come from the original."""
    path = subject.path()
    return {
        "model": subject.name,
        "kind": subject.kind,
        "attentions": prepared.attentions,
        "share": share_outside_products(path, subject.feeds[0]),
        "threads": {str(threads): _speed(subject, prepared, threads) for threads in _THREADS},
        "rules": {
            name: {"times": times} | _compare(other, prepared.result, subject.feeds, 1, _RULE_S)
            for name, (times, other) in prepared.without.items()
        },
    }


def _speed(subject: Subject, prepared: Prepared, threads: int) -> dict[str, Any]:
    """Of a step with a cache, which is short or reads its weights from memory: in the process with the median ratio of three.

    Where in memory a model comes to lie makes such a step some percent faster or slower.
    """
    loads, seconds = (_STEP_LOADS, _STEP_S) if subject.kind == "decoding" else (1, _MODEL_S)
    found = [_compare(subject.path(), prepared.result, subject.feeds, threads, seconds) for _ in range(loads)]
    return sorted(found, key=lambda one: float(one["speedup"]["ratio"]))[loads // 2]


def measure_small(folder: Path) -> list[dict[str, Any]]:
    """Times each small graph against what the exact passes make of it; without the driver, which takes back what makes a file larger."""
    stage = Stage(tuple(_RECIPE.build()))
    rows = []
    for number, graph in enumerate(small_graphs()):
        path, result = folder / f"{number}.onnx", folder / f"{number}_result.onnx"
        feed = graph.write(path)
        attempt = stage.attempt(load(path), frozenset())
        save(attempt.model, result)
        fires = any(rewrite.key.rule == graph.rule for rewrite in attempt.recorder.rewrites)
        rows.append({"rule": graph.rule, "graph": graph.label, "fires": fires} | _compare(path, result, [feed], 1, _RULE_S))
    return rows


def _compare(first: Path, second: Path, feeds: Sequence[Feed], threads: int, seconds: float) -> dict[str, Any]:
    """Speed in a fresh process: what other models left behind in the memory of one tells on the next."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(compare, first, second, feeds, SessionOptions(threads=threads), seconds).result()


def main() -> None:
    """Measures all subjects and writes the page; of chosen ones only the figures are printed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", help="parts of names (default: all; only then are results written)")
    parser.add_argument("--resume", action="store_true", help="take what build/gains/ holds of an earlier run instead of measuring again")
    chosen = parser.parse_args()
    console = Console(width=180)
    rows = []
    for subject in subjects():
        if chosen.models and not any(word in subject.name for word in chosen.models):
            continue
        rows.append(_row(subject, resume=chosen.resume))
        console.print(*gains_page.model_cells(rows[-1]), sep="  ")
        for cells in gains_page.rule_cells(rows[-1:]):
            console.print(" ", *cells, sep="  ")
    if chosen.models:
        return
    with tempfile.TemporaryDirectory() as folder:
        small = measure_small(Path(folder))
    (results.RESULTS / "gains.md").write_text("\n".join(gains_page.page(rows, small)) + "\n", encoding="utf-8")
    if slower := gains_page.slower(rows):
        raise SystemExit(f"slower than the original: {', '.join(slower)}")


def _row(subject: Subject, *, resume: bool) -> dict[str, Any]:
    draft = _DRAFTS / f"{subject.name.replace('/', '_')}.json"
    if resume and draft.exists():
        kept: dict[str, Any] = json.loads(draft.read_text(encoding="utf-8"))
        return kept
    with tempfile.TemporaryDirectory() as folder:
        row = measure(subject, prepare(subject.path(), Path(folder)))
    _DRAFTS.mkdir(parents=True, exist_ok=True)
    draft.write_text(json.dumps(row, indent=1), encoding="utf-8")
    return row


if __name__ == "__main__":
    main()

"""How often each rule of the exact passes fires: on trained models, well-known architectures, ONNX's backend suite, small graphs."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import results
from models import ROOT, all_models
from rich.console import Console
from small_graphs import small_graphs

from graphopt import files, optimize
from graphopt.errors import GraphoptError
from graphopt.passes import find
from graphopt.passes.rules import rule_names
from graphopt.presets import preset
from graphopt.stage import Stage

sys.path.insert(0, str(ROOT))
from tests.test_backend import recorded_cases, variants

_BACKEND, _PORTABLE, _SMALL = "backend suite", "backend suite, portable", "small graphs"
_RECIPE = preset("exact").changed(verify="structure")


def source_of(path: Path) -> str:
    """The kind of model that a file is, by the folder that it lies in."""
    for variable, name in (("GRAPHOPT_ZOO", "trained"), ("GRAPHOPT_ARCH", "architectures")):
        if os.environ.get(variable) and Path(os.environ[variable]).resolve() in path.resolve().parents:
            return name
    return "examples"


def fired_on_file(path: Path) -> Counter[str]:
    """How often each rule fires on a model file, as ``pass/rule``."""
    return Counter(optimize(path, recipe=_RECIPE).ledger.counts())


def fired_on_suite(target: str) -> Counter[str]:
    """How often each rule fires for a target on all cases of the backend suite, as they are and with constant inputs."""
    stage = Stage(tuple(_RECIPE.changed(target=target).build()))
    counts: Counter[str] = Counter()
    for case in (variant for one in recorded_cases() for variant in variants(one)):
        try:
            model = files.from_proto(case.proto)
        except GraphoptError:
            continue  # refused with a message, as it would be on the command line
        attempt = stage.attempt(model, frozenset())
        counts.update(f"{rewrite.key.pass_name}/{rewrite.key.rule}" for rewrite in attempt.recorder.rewrites)
    return counts


def fired_on_small_graphs() -> Counter[str]:
    """How often each rule fires on the graphs of a few operators on which its gain is measured."""
    stage = Stage(tuple(_RECIPE.build()))
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        for number, graph in enumerate(small_graphs()):
            path = Path(folder) / f"{number}.onnx"
            graph.write(path)
            counts.update(
                f"{rewrite.key.pass_name}/{rewrite.key.rule}" for rewrite in stage.attempt(files.load(path), frozenset()).recorder.rewrites
            )
    return counts


def all_rules() -> list[str]:
    """Every rule of the exact passes, and every step of those without a table, in order, as ``pass/rule``."""
    return [f"{spec.name}/{name}" for spec in _RECIPE.passes for name in rule_names(find(spec.name))]


def page(counts: dict[str, Counter[str]], models: dict[str, dict[str, int]]) -> list[str]:
    """The page of results."""
    rules = all_rules()
    silent = [name for name in rules if not any(found[name] for found in counts.values())]
    unasked = [
        name for name in rules if name not in silent and not any(found[name] for source, found in counts.items() if source != _SMALL)
    ]
    rows = ([name, *(found[name] or "-" for found in counts.values()), _where(name, models)] for name in rules)
    return [
        "# How often each rule fires",
        "",
        "Written by `benchmarks/firing.py`: rewrites of the exact passes, nothing taken back by measurements, for the target `cpu`; on",
        "the backend suite for `portable` too. The suite is `onnx.backend.test`, each case as it is, with all inputs but the first as",
        "constants, and with all as constants. Small graphs are a few operators that one rule is for, at sizes that occur in networks.",
        "",
        f"Fire on small graphs only, with the gain that `gains.md` states there: {', '.join(unasked) or 'none'}",
        "",
        f"Fire nowhere: {', '.join(silent) or 'none'}. What stands here without a gain to state only makes files readable for the others:",
        "nodes that some tool has written out of order, and functions, which older exporters write.",
        "",
        *results.table(["rule", *counts, "models"], rows),
    ]


def _where(name: str, models: dict[str, dict[str, int]]) -> str:
    """How many model files a rule fires on, and the first few of them."""
    found = [model for model, counts in models.items() if counts.get(name)]
    return f"{len(found)}: {', '.join(found[:3])}{', …' if len(found) > 3 else ''}" if found else "-"


def count(wanted: Sequence[str], console: Console) -> tuple[dict[str, Counter[str]], dict[str, dict[str, int]]]:
    """Counts by kind of model, and by model."""
    by_source: dict[str, Counter[str]] = {name: Counter() for name in ("trained", "architectures", "examples")}
    by_model: dict[str, dict[str, int]] = {}
    for model in all_models(wanted):
        found = fired_on_file(model.path)
        by_source[source_of(model.path)].update(found)
        by_model[model.name] = dict(found)
        console.print(model.name, found.total())
    return by_source, by_model


def _print(counts: Iterable[tuple[str, int]], console: Console) -> None:
    for name, number in counts:
        console.print(f"{number:6} {name}")


def main() -> None:
    """Counts over everything and writes the page; over chosen models it only prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", help="files, or parts of names (default: all models and the backend suite)")
    wanted = parser.parse_args().models
    console = Console(width=180)
    counts, models = count(wanted, console)
    if wanted:
        _print(sum(counts.values(), Counter[str]()).most_common(), console)
        return
    counts[_BACKEND], counts[_PORTABLE], counts[_SMALL] = fired_on_suite("cpu"), fired_on_suite("portable"), fired_on_small_graphs()
    data = {"version": 1, "rules": {name: {source: found[name] for source, found in counts.items()} for name in all_rules()}}
    results.write("firing", page(counts, models), data | {"models": models})


if __name__ == "__main__":
    main()

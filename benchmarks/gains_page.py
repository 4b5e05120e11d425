"""The page about gains: goals, models, rules, small graphs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import results

from graphopt.runtime.timing import NOT_SLOWER

GOALS = {"legacy": 1.10, "dynamo": 1.03, "decoding": 1.30}
"""Geometric means that the exact passes are to reach on transformers of each kind."""

_KINDS = {"legacy": "transformers from the older exporter", "dynamo": "transformers from the newer one", "decoding": "steps with a cache"}

Row = Mapping[str, Any]


def page(rows: Sequence[Row], small: Sequence[Row]) -> list[str]:
    """All of it."""
    per_rule = sorted(rule_cells(rows), key=lambda cells: str(cells[0]))
    return [
        "# What the exact passes gain",
        "",
        "Written by `benchmarks/gains.py`: the preset `exact` for the target `cpu`, nothing taken back by measurements. Speed is",
        "the original's time / the result's time under all optimizations of ONNX Runtime, with its 95 % interval: median of paired,",
        "interleaved runs in a fresh process. Beside it the original against itself shows what noise alone does. Inputs are fixed:",
        "the zoo's calibration items one by one, the architectures' own `inputs.npz`. Steps with a cache are loaded three times, and",
        "the load with the median ratio counts.",
        "",
        f"Machine: {results.machine()}",
        "",
        *_summary(rows),
        "",
        "## Models",
        "",
        "*Left to gain* is the part of the original's run, at one thread, that its profile shows outside matrix products and",
        "convolutions; *at most* is the speed that a run of nothing else would have. Passes that make products smaller, as those",
        "for shared heads do, can go beyond it.",
        "",
        *results.table(MODEL_HEAD, (model_cells(row) for row in rows)),
        "",
        "## Rules",
        "",
        "The time without one rule / the time with all, one thread. A rule whose work another one does instead shows no gain here,",
        "nor does one that only makes room for others, or does at compile time what the runtime does at load.",
        "",
        *results.table(["rule", "model", "fires", "times as fast", "itself"], per_rule),
        "",
        "## Small graphs",
        "",
        "One rule's operators alone, one thread: rules that no measured model asks for, and what rules gain where nothing else takes time.",
        "",
        *results.table(["rule", "graph", "times as fast", "itself", "ms"], (_small_cells(row) for row in small)),
    ]


def _summary(rows: Sequence[Row]) -> Iterator[str]:
    for kind, goal in GOALS.items():
        members = [row for row in rows if row["kind"] == kind and row["attentions"]]
        if members:
            one, two = (mean(row["threads"][threads]["speedup"]["ratio"] for row in members) for threads in ("1", "2"))
            means = f"{one:.3f} at 1 thread, {two:.3f} at 2 threads"
            most = mean(1 / (1 - row["share"]) for row in members)
            yield f"- {_KINDS[kind]}, geometric mean over {len(members)}: {means} (goal {goal:.2f}; at most {most:.2f})"
    yield f"- slower than the original: {', '.join(slower(rows)) or 'none'}"
    yield f"- too noisy to exclude that they are slower: {', '.join(_undecided(rows)) or 'none'}"


def mean(ratios: Iterable[float]) -> float:
    """The geometric mean."""
    logs = [math.log(ratio) for ratio in ratios]
    return math.exp(sum(logs) / len(logs))


def slower(rows: Sequence[Row]) -> list[str]:
    """Names of the models whose upper bound, at any number of threads, says that they are slower."""
    return [row["model"] for row in rows if any(found["speedup"]["high"] < NOT_SLOWER for found in row["threads"].values())]


def _undecided(rows: Sequence[Row]) -> list[str]:
    bounds = ((row["model"], found["speedup"]) for row in rows for found in row["threads"].values())
    return sorted({name for name, speedup in bounds if speedup["low"] < NOT_SLOWER <= speedup["high"]})


MODEL_HEAD = ["model", "left to gain", "at most", "1 thread", "itself", "2 threads", "itself", "ms, 1 thread"]
"""Columns of the table of models."""


def model_cells(row: Row) -> list[object]:
    """A line of the table of models."""
    one, two = (row["threads"][threads] for threads in ("1", "2"))
    share = row["share"]
    return [
        row["model"],
        f"{share:.0%}",
        f"{1 / (1 - share):.2f}",
        *(_interval(found[which]) for found in (one, two) for which in ("speedup", "same")),
        _milliseconds(one),
    ]


def rule_cells(rows: Sequence[Row]) -> list[list[object]]:
    """Lines of the table of rules."""
    return [
        [name, row["model"], found["times"], _interval(found["speedup"]), _interval(found["same"])]
        for row in rows
        for name, found in row["rules"].items()
    ]


def _small_cells(row: Row) -> list[object]:
    speed = _interval(row["speedup"]) if row["fires"] else "does not fire"
    return [row["rule"], row["graph"], speed, _interval(row["same"]), _milliseconds(row)]


def _milliseconds(found: Row) -> str:
    return f"{found['original_seconds'] * 1e3:.3g} → {found['result_seconds'] * 1e3:.3g}"


def _interval(found: Mapping[str, float]) -> str:
    return f"{found['ratio']:.3f} [{found['low']:.3f}, {found['high']:.3f}]"

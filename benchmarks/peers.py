"""Nodes and seconds of graphopt beside onnxslim and onnxsim, each run as a whole process on every model."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import results
from models import Model, all_models, count_nodes, total_bytes
from peer_tools import Tool, graphopt, peers
from processes import run
from rich.console import Console

_OURS, _WITH_OUTPUTS = "graphopt structure", "graphopt outputs"
_OTHERS = ("onnxslim", "onnxsim")
_RUNS = 3
_SHORT_S = 4.0
"""Where a tool's first run is shorter, it is run three times and the median counts."""
_ALLOWED = 1.1


@dataclass(frozen=True)
class Outcome:
    """What one tool made of one model.

    Attributes:
        nodes: of the result; None where there is none.
        bytes: of the result.
        seconds: median over the runs.
        failure: what the tool said instead of giving a result.
    """

    nodes: int | None
    bytes: int | None
    seconds: float
    failure: str = ""


@dataclass(frozen=True)
class Row:
    """All outcomes of one model."""

    name: str
    nodes: int
    bytes: int
    outcomes: dict[str, Outcome]

    @property
    def best_peer(self) -> int | None:
        """The fewest nodes that any other tool reached."""
        return min((nodes for name in _OTHERS if (nodes := self.nodes_of(name)) is not None), default=None)

    def nodes_of(self, tool: str) -> int | None:
        """Nodes of a tool's result."""
        return self.outcomes[tool].nodes if tool in self.outcomes else None


def measure(model: Model, tools: Sequence[Tool]) -> Row:
    """Runs all tools on a model, taking turns."""
    seconds: dict[str, list[float]] = {tool.name: [] for tool in tools}
    found: dict[str, Outcome] = {}
    for turn in range(_RUNS):
        for tool in tools:
            if turn == 0 or (seconds[tool.name][0] < _SHORT_S and not found[tool.name].failure):
                found[tool.name] = _once(model, tool)
                seconds[tool.name].append(found[tool.name].seconds)
    outcomes = {name: Outcome(each.nodes, each.bytes, round(median(seconds[name]), 2), each.failure) for name, each in found.items()}
    return Row(model.name, count_nodes(model.path), model.path.stat().st_size, outcomes)


def _once(model: Model, tool: Tool) -> Outcome:
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "result.onnx"
        finished = run(tool.command(model.path, target))
        if finished.status or not target.exists():
            return Outcome(None, None, finished.seconds, finished.reason.replace(str(model.path), model.name))
        for extra in Path(folder).glob("*.yaml"):  # the recipe, which is no part of the model
            extra.unlink()
        return Outcome(count_nodes(target), total_bytes(Path(folder)), finished.seconds)


def summary(rows: Sequence[Row]) -> dict[str, Any]:
    """The figures that goals are set for."""
    judged = [row for row in rows if row.best_peer is not None]
    over = [row.name for row in judged if (row.nodes_of(_OURS) or row.nodes) > _ALLOWED * (row.best_peer or 0)]
    ratios = {tool: _time_ratios(rows, tool) for tool in (_OURS, _WITH_OUTPUTS)}
    return {
        "files": len(rows),
        "within": len(judged) - len(over),
        "judged": len(judged),
        "over": over,
        "fewer": sum((row.nodes_of(_OURS) or row.nodes) < (row.best_peer or 0) for row in judged),
        "seconds_over_onnxslim": {tool: round(median(found), 2) if found else None for tool, found in ratios.items()},
        "failures": {tool: sum(bool(row.outcomes[tool].failure) for row in rows) for tool in (*_OTHERS, _OURS, _WITH_OUTPUTS)},
        "legacy_over_dynamo": legacy_ratios(rows),
    }


def _time_ratios(rows: Sequence[Row], tool: str) -> list[float]:
    pairs = [(row.outcomes[tool], row.outcomes["onnxslim"]) for row in rows]
    return [ours.seconds / theirs.seconds for ours, theirs in pairs if not ours.failure and not theirs.failure]


def legacy_ratios(rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    """Nodes of the older exporter's file over those of the newer one's, for the originals and each tool."""
    by_name = {row.name: row for row in rows}
    found: dict[str, dict[str, float]] = {}
    for row in rows:
        model = Model(row.name, Path())
        if not model.is_legacy or model.twin not in by_name:
            continue
        twin = by_name[model.twin]
        found[twin.name] = {"original": round(row.nodes / twin.nodes, 3)}
        for tool in row.outcomes:
            legacy, dynamo = row.nodes_of(tool), twin.nodes_of(tool)
            if legacy and dynamo:
                found[twin.name][tool] = round(legacy / dynamo, 3)
    return found


def page(rows: Sequence[Row], tools: Sequence[Tool]) -> list[str]:
    """The page of results."""
    names = [tool.name for tool in tools]
    nodes = ([row.name, row.nodes, *(_cell(row.outcomes[name]) for name in names)] for row in rows)
    sizes = ([row.name, _mb(row.bytes), *(_mb(row.outcomes[name].bytes) for name in names)] for row in rows)
    legacy = ([model, found["original"], *(found.get(name, "-") for name in names)] for model, found in legacy_ratios(rows).items())
    failures = [f"- {row.name}, {tool}: {each.failure}" for row in rows for tool, each in row.outcomes.items() if each.failure]
    return [
        "# graphopt beside onnxslim and onnxsim",
        "",
        "Written by `benchmarks/peers.py`. Nodes include those of subgraphs and functions; `Constant` nodes are not counted. Seconds are",
        f"those of the whole process, the median of {_RUNS} runs where the first took less than {_SHORT_S:.0f} s. MB are 10^6 bytes.",
        "",
        "Neither level of verification asked for here counts kernels or times the result: where `speed.md` lists dropped rewrites, the",
        "default command leaves more nodes than this page says.",
        "",
        f"Machine: {results.machine()}",
        "",
        *(f"- {tool.name}: {', '.join(f'{name} {version}' for name, version in tool.versions.items())}" for tool in tools),
        "",
        "## Summary",
        "",
        *_summary_lines(rows),
        "",
        "## Nodes and seconds",
        "",
        *results.table(["model", "nodes before", *names], nodes),
        "",
        "## MB",
        "",
        *results.table(["model", "before", *names], sizes),
        "",
        "## Nodes of the older exporter's file / nodes of the newer one's",
        "",
        *results.table(["model", "original", *names], legacy),
        "",
        "## Failures",
        "",
        *(failures or ["None."]),
    ]


def _summary_lines(rows: Sequence[Row]) -> list[str]:
    found = summary(rows)
    over = ", ".join(found["over"]) or "none"
    return [
        f"- at most {_ALLOWED} times the nodes of the better peer: {found['within']} of {found['judged']} files; over: {over}",
        f"- fewer nodes than both peers: {found['fewer']} files",
        *(f"- {tool}: seconds / onnxslim's seconds, median over files: {ratio}" for tool, ratio in found["seconds_over_onnxslim"].items()),
        *(f"- files on which {tool} failed: {count}" for tool, count in found["failures"].items()),
    ]


def _cell(outcome: Outcome) -> str:
    return f"{'failed' if outcome.nodes is None else outcome.nodes} ({outcome.seconds:.1f} s)"


def _mb(size: int | None) -> str:
    return "-" if size is None else f"{size / 1e6:.2f}"


def main() -> None:
    """Measures all models and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", help="files, or parts of names (default: all models; only then are results written)")
    wanted = parser.parse_args().models
    console = Console(width=160)
    tools = [*peers(), graphopt("structure"), graphopt("outputs")]
    models = all_models(wanted)
    for tool in tools:
        _once(min(models, key=lambda model: model.path.stat().st_size), tool)  # compiles the modules of a fresh environment
    rows = []
    for model in models:
        rows.append(measure(model, tools))
        console.print(model.name, rows[-1].nodes, *(f"{name}: {_cell(each)}" for name, each in rows[-1].outcomes.items()))
    console.print(summary(rows))
    if not wanted:
        versions = {tool.name: tool.versions for tool in tools}
        data = {"version": 1, "machine": results.machine(), "versions": versions, "summary": summary(rows)}
        results.write("peers", page(rows, tools), data | {"models": [asdict(row) for row in rows]})


if __name__ == "__main__":
    main()

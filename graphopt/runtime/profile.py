"""Profiles: how long each node takes that the runtime executes."""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

from graphopt.runtime.session import Feed, SessionOptions, keep_optimized_graph, load_session, native_session_options

_SUFFIX = "_kernel_time"
_WARMUPS = 2
_FEWEST, _MOST = 5, 200


@dataclass(frozen=True)
class NodeTime:
    """One executed node of the main graph.

    Attributes:
        name: as the runtime calls it; of a fused node often the name of a value or node of the model, with something after it.
        operator: ``domain::operator``; the standard domain is left out.
        seconds: of one run: the median over the runs of each feed, the mean over feeds.
        inputs: names of the values that it reads.
        outputs: names of the values that it makes.
    """

    name: str
    operator: str
    seconds: float
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def profile(model: ir.Model | Path, feeds: Sequence[Feed], options: SessionOptions | None = None, seconds: float = 1.0) -> list[NodeTime]:
    """Runs a model with the runtime's profiler on, all optimizations on.

    Args:
        model: the model or its file.
        feeds: inputs that take turns.
        options: how to run.
        seconds: how long to run for, warm-up left out; every feed runs at least five times.

    Returns:
        The executed nodes of the main graph in order; what a node with subgraphs takes includes them.

    Raises:
        SessionError: the model does not load or does not run.
    """
    chosen = options or SessionOptions()
    with tempfile.TemporaryDirectory(prefix="graphopt-", ignore_cleanup_errors=True) as folder:
        path = Path(folder) / "optimized.onnx"
        native = native_session_options("all", chosen)
        keep_optimized_graph(native, path)
        native.enable_profiling = True
        native.profile_file_prefix = str(Path(folder) / "profile")
        session = load_session(model, native, chosen)
        order: list[int] = []
        for _ in range(_WARMUPS):
            for feed in feeds:
                session.run(feed)
        start = time.perf_counter()
        while len(order) < _FEWEST * len(feeds) or (time.perf_counter() - start < seconds and len(order) < _MOST * len(feeds)):
            number = len(order) % len(feeds)
            session.run(feeds[number])
            order.append(number)
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
        graph = onnx.load(str(path), load_external_data=False).graph
    times = _times(events, _WARMUPS * len(feeds), order)
    return [
        NodeTime(
            node.name,
            f"{node.domain}::{node.op_type}" if node.domain not in ("", "ai.onnx") else node.op_type,
            times.get(node.name, 0.0),
            tuple(node.input),
            tuple(node.output),
        )
        for node in graph.node
    ]


def _times(events: Sequence[dict[str, Any]], skipped: int, order: Sequence[int]) -> dict[str, float]:
    """Seconds by node; a run's nodes come before the event that ends it."""
    runs: list[dict[str, float]] = [defaultdict(float)]
    for event in events:
        name = str(event.get("name", ""))
        if event.get("cat") == "Node" and name.endswith(_SUFFIX):
            runs[-1][name.removesuffix(_SUFFIX)] += event["dur"] / 1e6
        elif name == "model_run":
            runs.append(defaultdict(float))
    kept = runs[skipped : skipped + len(order)]
    names = dict.fromkeys(name for run in kept for name in run)
    feeds = sorted(set(order))

    def typical(name: str) -> float:
        medians = [
            statistics.median(run.get(name, 0.0) for run, number in zip(kept, order, strict=True) if number == feed) for feed in feeds
        ]
        return statistics.mean(medians)

    return {name: typical(name) for name in names}

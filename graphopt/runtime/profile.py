"""Profiles: how long each node takes that the runtime executes."""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

from graphopt.runtime.session import Feed, SessionOptions, keep_optimized_graph, load_session, native_session_options

_SUFFIX = "_kernel_time"
_DETAILS = ',"args"'
_FEWEST, _MOST = 5, 200

_Kind = tuple[tuple[str, tuple[int, ...]], ...]
"""Names and shapes of a feed: those that share them take the same time."""


@dataclass(frozen=True)
class NodeTime:
    """One executed node of the main graph.

    Attributes:
        name: as the runtime calls it; of a fused node often the name of a value or node of the model, with something after it.
        operator: ``domain::operator``; the standard domain is left out.
        seconds: of one run: the median over feeds of the same shapes, the mean over shapes.
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
        seconds: how long to run for, warm-up left out; each runs once at least, and five times where no other has its shapes.

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
        kinds = [tuple((name, array.shape) for name, array in feed.items()) for feed in feeds]
        first = dict(zip(kinds, feeds, strict=True))
        for feed in first.values():  # warms up
            session.run(feed)
        order: list[_Kind] = []
        fewest, start = max(_FEWEST * len(first), len(feeds)), time.perf_counter()
        while len(order) < fewest or (time.perf_counter() - start < seconds and len(order) < _MOST * len(feeds)):
            number = len(order) % len(feeds)
            session.run(feeds[number])
            order.append(kinds[number])
        events = _events(Path(session.end_profiling()))
        times = _times(events, len(first), order)
        graph = onnx.load(str(path), load_external_data=False).graph
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


def _events(path: Path) -> Iterator[dict[str, Any]]:
    """What the profiler wrote, an event a line; nine tenths of it, of tensors and threads, is left out unread."""
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            head, _, more = line.strip("[],\n").partition(_DETAILS)
            if head:
                yield json.loads(f"{head}}}" if more else head)


def _times(events: Iterable[dict[str, Any]], skipped: int, order: Sequence[_Kind]) -> dict[str, float]:
    """Seconds by node; a run's nodes come before the event that ends it."""
    runs: list[dict[str, float]] = [defaultdict(float)]
    for event in events:
        name = str(event.get("name", ""))
        if event.get("cat") == "Node" and name.endswith(_SUFFIX):
            runs[-1][name.removesuffix(_SUFFIX)] += event["dur"] / 1e6
        elif name == "model_run":
            runs.append(defaultdict(float))
    of_kind: dict[_Kind, list[dict[str, float]]] = defaultdict(list)
    for kind, run in zip(order, runs[skipped:], strict=False):  # what comes after the last run is empty
        of_kind[kind].append(run)
    weights = [len(alike) for alike in of_kind.values()]
    names = dict.fromkeys(name for alike in of_kind.values() for run in alike for name in run)

    def typical(name: str) -> float:
        return statistics.fmean((statistics.median(run.get(name, 0.0) for run in alike) for alike in of_kind.values()), weights)

    return {name: typical(name) for name in names}

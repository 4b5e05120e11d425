"""Where the time goes: node by node and kernel by kernel, beside what the machine could do."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import onnx_ir as ir
from rich.console import Group
from rich.table import Table
from rich.text import Text

from graphopt import files
from graphopt.graph.cost import cost_of
from graphopt.graph.view import View
from graphopt.report.attribution import Executed, attribute
from graphopt.report.opening import Data, open_model, open_samples
from graphopt.report.sizing import shapes_at
from graphopt.runtime.profile import profile
from graphopt.runtime.roofline import Roofline, measure_roofline
from graphopt.runtime.session import Feed, SessionOptions
from graphopt.runtime.timing import Load, load_and_memory

FEEDS = 4
"""Samples of which a profile is made."""

_MOST_NODES = 20
_MOST_KERNELS = 12
_MOST_NAMES = 3


@dataclass(frozen=True)
class NodeProfile:
    """One executed node.

    Attributes:
        name: as the runtime calls it.
        kernel: ``domain::operator``, the standard domain left out.
        seconds: of one inference.
        nodes: nodes of the file that it computes; none for what the runtime added.
        macs: multiply-accumulates of these.
        bytes: that it reads and writes at least once, constants included; None where a size is not known.
    """

    name: str
    kernel: str
    seconds: float
    nodes: tuple[str, ...]
    macs: int
    bytes: int | None

    @property
    def intensity(self) -> float | None:
        """Operations for each byte; a multiply-accumulate is two."""
        return 2 * self.macs / self.bytes if self.bytes and self.macs else None

    def reached(self, roofline: Roofline) -> float | None:
        """The share of what is attainable at this intensity; above 1 for integers, which are faster than floats."""
        if self.intensity is None or not self.seconds:
            return None
        return 2 * self.macs / self.seconds / roofline.attainable(self.intensity)


@dataclass(frozen=True)
class Profile:
    """Where the time of a model goes.

    Attributes:
        name: of the file.
        nodes: executed nodes of the main graph, in order; what a node with subgraphs takes includes them.
        roofline: of this machine.
        load: what loading takes, and the peak of memory.
        source: where the samples come from, in words.
        synthetic: they are made up.
    """

    name: str
    nodes: Sequence[NodeProfile]
    roofline: Roofline
    load: Load
    source: str
    synthetic: bool

    @property
    def seconds(self) -> float:
        """Of all nodes, in one inference."""
        return sum(node.seconds for node in self.nodes)

    def to_json(self) -> dict[str, Any]:
        """Plain data; ``version`` counts changes of this form."""
        nodes = [vars(node) | {"intensity": node.intensity, "reached": node.reached(self.roofline)} for node in self.nodes]
        return {
            "version": 1,
            "name": self.name,
            "seconds": self.seconds,
            "load": vars(self.load),
            "roofline": vars(self.roofline),
            "samples": {"source": self.source, "synthetic": self.synthetic},
            "kernels": {kernel: {"count": count, "seconds": seconds} for kernel, (count, seconds) in kernels_of(self.nodes).items()},
            "nodes": nodes,
        }

    def __rich__(self) -> Group:
        peak = "" if self.load.peak_mb is None else f", {self.load.peak_mb:.0f} MB at the peak"
        machine = f"{self.roofline.flops / 1e9:.0f} Gflop/s and {self.roofline.bandwidth / 1e9:.1f} GB/s in 32-bit floats"
        marked = " (made up: real inputs may give other times)" if self.synthetic else ""
        return Group(
            Text(f"{self.seconds * 1e3:.3g} ms in {len(self.nodes)} nodes; loads in {self.load.seconds * 1e3:.0f} ms{peak}"),
            self._kernels(),
            Text(),
            self._nodes(),
            Text(f"this machine reaches {machine}; measured on {self.source}{marked}", style="dim"),
        )

    def _kernels(self) -> Table:
        table = _table("kernel", "nodes", "ms", "share")
        shown = list(kernels_of(self.nodes).items())
        for kernel, (count, seconds) in shown[:_MOST_KERNELS]:
            table.add_row(kernel, str(count), f"{seconds * 1e3:.3f}", self._share(seconds))
        rest = [part for _, part in shown[_MOST_KERNELS:]]
        if rest:
            seconds = sum(part[1] for part in rest)
            table.add_row(f"{len(rest)} more", str(sum(part[0] for part in rest)), f"{seconds * 1e3:.3f}", self._share(seconds))
        return table

    def _nodes(self) -> Table:
        table = _table("slowest", "ms", "share", "Gflop/s", "flop/byte", "of roofline", "nodes of the file")
        table.columns[-1].justify = "left"
        for node in sorted(self.nodes, key=lambda node: -node.seconds)[:_MOST_NODES]:
            reached = node.reached(self.roofline)
            more = f", {len(node.nodes) - _MOST_NAMES} more" if len(node.nodes) > _MOST_NAMES else ""
            names = ", ".join(node.nodes[:_MOST_NAMES]) + more
            table.add_row(
                node.kernel,
                f"{node.seconds * 1e3:.3f}",
                self._share(node.seconds),
                f"{2 * node.macs / node.seconds / 1e9:.1f}" if node.macs and node.seconds else "",
                "" if node.intensity is None else f"{node.intensity:.1f}",
                "" if reached is None else f"{reached:.0%}",
                Text(names or "added by the runtime"),
            )
        return table

    def _share(self, seconds: float) -> str:
        return f"{seconds / self.seconds:.1%}" if self.seconds else ""


def profile_of(
    path: str | Path, data: Data = None, *, shapes: Mapping[str, int] | None = None, options: SessionOptions | None = None
) -> Profile:
    """Profiles a model under ONNX Runtime, and maps what runs back to the file's own nodes.

    Args:
        path: a file, or a folder with one model.
        data: samples, of which the first four are run; None for synthetic ones.
        shapes: lengths of open dimensions for synthetic samples.
        options: how to run.

    Raises:
        ModelFileError: the file cannot be read.
        SamplesError: the samples do not fit, or none can be made up.
        SessionError: the model does not load or run.
    """
    file = files.model_file(Path(path))
    model = open_model(file)
    samples = open_samples(file, model, data, options, shapes=shapes)
    feeds = list(islice(samples, FEEDS))
    return Profile(
        file.name,
        profiles_of_nodes(file, model, feeds, shapes_at(model, feeds, options), options),
        measure_roofline(options),
        load_and_memory(file, feeds, options),
        samples.description,
        samples.is_synthetic,
    )


def profiles_of_nodes(
    file: Path, model: ir.Model, feeds: Sequence[Feed], shapes: Sequence[Mapping[str, tuple[int, ...]]], options: SessionOptions | None
) -> list[NodeProfile]:
    """What the executed nodes of a model take, in order.

    Args:
        file: that holds the model.
        model: of which each node has a name.
        feeds: to run.
        shapes: of all values of the main graph, for each feed.
        options: how to run.

    Raises:
        SessionError: the model does not load or run.
    """
    executed = attribute(model, profile(file, feeds, options))
    macs, sizes = _mean_macs(model, shapes), _sizes(model, shapes)
    return [_node(each, macs, sizes) for each in executed]


def kernels_of(nodes: Iterable[NodeProfile]) -> dict[str, tuple[int, float]]:
    """How many nodes run as each kernel, and their seconds; those that take longest first."""
    found: dict[str, tuple[int, float]] = {}
    for node in nodes:
        count, seconds = found.get(node.kernel, (0, 0.0))
        found[node.kernel] = count + 1, seconds + node.seconds
    return dict(sorted(found.items(), key=lambda item: -item[1][1]))


def _mean_macs(model: ir.Model, traced: Sequence[Mapping[str, tuple[int, ...]]]) -> dict[str, int]:
    distinct = [shapes for number, shapes in enumerate(traced) if shapes not in traced[:number]]
    found: dict[str, int] = {}
    for shapes in distinct:
        share = traced.count(shapes) / len(traced)
        for node in cost_of(model, shapes).nodes:
            found[node.name] = found.get(node.name, 0) + round((node.macs or 0) * share)
    return found


def _sizes(model: ir.Model, traced: Sequence[Mapping[str, tuple[int, ...]]]) -> dict[str, int]:
    """Mean bytes of values, by name."""
    view = View(model)
    values = [*model.graph.inputs, *model.graph.initializers.values(), *(value for node in model.graph for value in node.outputs)]
    known = [(value.name or "", view.dtype(value)) for value in values if value.name]
    return {
        name: int(sum(math.prod(shapes[name]) for shapes in traced) / len(traced) * dtype.itemsize)
        for name, dtype in known
        if dtype is not None and dtype != ir.DataType.STRING and all(name in shapes for shapes in traced)
    }


def _node(executed: Executed, macs: Mapping[str, int], sizes: Mapping[str, int]) -> NodeProfile:
    names = [value.name or "" for value in (*executed.reads, *executed.writes)]
    moved = sum(sizes[name] for name in names) if names and all(name in sizes for name in names) else None
    nodes = tuple(node.name or "" for node in executed.nodes)
    time = executed.time
    return NodeProfile(time.name, time.operator, time.seconds, nodes, sum(macs.get(name, 0) for name in nodes), moved)


def _table(*titles: str) -> Table:
    table = Table(*titles, box=None, header_style="bold", pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    return table

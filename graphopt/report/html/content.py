"""The content of a report: everything that the page shows, as plain data."""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import onnx_ir as ir

from graphopt import __version__, files
from graphopt.errors import LedgerError
from graphopt.graph.cost import Cost, NodeCost, cost_of
from graphopt.graph.difference import Alignment, Flow, align
from graphopt.graph.layers import Layer, layers_of
from graphopt.ledger import Drop, Miss
from graphopt.report.diff import Parting, partings_of
from graphopt.report.html.graph import drawing_of
from graphopt.report.html.histograms import histograms_of
from graphopt.report.lineage import Lineage, titled
from graphopt.report.opening import Data, open_model, open_samples
from graphopt.report.profile import FEEDS, NodeProfile, kernels_of, profiles_of_nodes
from graphopt.report.sizing import shapes_at
from graphopt.result import ledger_beside
from graphopt.runtime.session import Feed, SessionOptions
from graphopt.runtime.timing import Load, load_and_memory
from graphopt.samples import Samples


@dataclass(frozen=True)
class Side:
    """One of the two models.

    Attributes:
        path: its file.
        model: with a name for each node.
        shapes: of all its values, at the first sample's sizes.
        nodes: what the runtime executes.
        load: what loading takes, and the peak of memory.
        feeds: samples that it was run on.
        options: how it runs.
    """

    path: Path
    model: ir.Model
    shapes: Mapping[str, tuple[int, ...]]
    nodes: Sequence[NodeProfile]
    load: Load
    feeds: Sequence[Feed]
    options: SessionOptions | None

    @classmethod
    def of(cls, file: Path, model: ir.Model, samples: Samples, options: SessionOptions | None) -> Side:
        """Profiles a model that has been loaded from a file."""
        feeds = list(islice(samples, FEEDS))
        shapes = shapes_at(model, feeds, options)
        nodes = profiles_of_nodes(file, model, feeds, shapes, options)
        return cls(file, model, shapes[0], nodes, load_and_memory(file, feeds, options), feeds, options)

    @cached_property
    def cost(self) -> Cost:
        """Parameters, bytes and work at the first sample's sizes."""
        return cost_of(self.model, self.shapes)

    @cached_property
    def costs(self) -> dict[str, NodeCost]:
        """The same of each node, by name."""
        return {node.name: node for node in self.cost.nodes}

    @cached_property
    def layers(self) -> dict[str, Layer]:
        """The layers of the main graph by name, in order."""
        return {layer.name: layer for layer in layers_of(self.model) if layer.graph is self.model.graph}

    @cached_property
    def executed(self) -> dict[str, NodeProfile]:
        """The executed node that computes each node of the file."""
        return {name: node for node in self.nodes for name in node.nodes}

    def seconds(self, names: Iterable[str]) -> float:
        """What the executed nodes take that compute some nodes of the file, each once."""
        found = {id(node): node for name in names if (node := self.executed.get(name)) is not None}
        return sum(node.seconds for node in found.values())

    def summary(self) -> dict[str, Any]:
        """The figures of the whole model."""
        return {
            "name": self.path.name,
            "bytes": files.total_bytes(self.path),
            "nodes": len(Flow(self.model).nodes),
            "parameters": self.cost.parameters,
            "macs": self.cost.macs,
            "milliseconds": sum(node.seconds for node in self.nodes) * 1e3,
            "load_milliseconds": self.load.seconds * 1e3,
            "peak_mb": self.load.peak_mb,
        }


def content_of(
    result: Path,
    original: Path | None,
    data: Data,
    options: SessionOptions | None,
) -> dict[str, Any]:
    """Measures what the page shows; see :func:`graphopt.report.html.write_report`."""
    file = files.model_file(result)
    model = open_model(file)
    first, its = (file, model) if original is None else (found := files.model_file(original), open_model(found))
    samples = open_samples(first, its, data, options, count=2)
    after = Side.of(file, model, samples, options)
    before = None if original is None else Side.of(first, its, samples, options)
    lineage = _lineage(file, after.model)
    alignment = None if before is None else _aligned(before.model, after.model)
    values = [] if alignment is None or before is None else partings_of(alignment, before.feeds, options, before.shapes)
    base = before or after
    by_name = {value.a: value for value in values}
    return {
        "version": 1,
        "made_by": f"graphopt {__version__}",
        "samples": {"source": samples.description, "run": len(base.feeds), "of": len(samples), "synthetic": samples.is_synthetic},
        "before": None if before is None else before.summary(),
        "after": after.summary(),
        "run": _run(file),
        "passes": _passes(lineage),
        "refused": [{"rewrite": str(drop.key), "reason": drop.reason} for drop in lineage.refused],
        "misses": [{"rule": str(miss.key), "reason": miss.reason} for miss in lineage.misses],
        "layers": [_layer(layer, base, after if before else None, lineage, by_name) for layer in base.layers.values()],
        "sizes": {"before": None if before is None else _sizes(before), "after": _sizes(after)},
        "times": {"before": None if before is None else _times(before), "after": _times(after)},
        "errors": [_error(number, value) for number, value in enumerate(values) if not value.fidelity.exact],
        "histograms": histograms_of(base.model, base.feeds[0], [layer.name for layer in base.layers.values()], options),
        "graph": drawing_of(after.model, lineage, {name: _execution(node) for name, node in after.executed.items()}),
    }


def _lineage(path: Path, model: ir.Model) -> Lineage:
    """The ledger's; an empty one where there is none, or only counts: the rest of the page needs none."""
    try:
        return Lineage.of(path, model)
    except LedgerError as error:
        return Lineage((), (), (), str(error))


def _aligned(a: ir.Model, b: ir.Model) -> Alignment:
    first = Flow(a)
    return align(first, Flow(b, like=first))


def _run(path: Path) -> dict[str, Any] | None:
    """The figures that the run measured itself, with its proof; None where no ledger stands beside the file."""
    beside = ledger_beside(path)
    if not beside.is_file():
        return None
    content = json.loads(beside.read_text(encoding="utf-8"))
    return {"figures": content.get("figures"), "notes": content.get("notes", [])}


def _passes(lineage: Lineage) -> list[dict[str, Any]]:
    rules: dict[str, Counter[str]] = defaultdict(Counter)
    for rewrite in lineage.rewrites:
        rules[rewrite.key.pass_name][rewrite.key.rule or rewrite.key.pass_name] += 1
    refused = Counter(drop.key.pass_name for drop in lineage.refused)
    names = dict.fromkeys((*rules, *refused))
    return [{"name": name, "rules": dict(rules[name].most_common()), "refused": refused[name]} for name in names]


def _layer(layer: Layer, base: Side, after: Side | None, lineage: Lineage, values: Mapping[str, Parting]) -> dict[str, Any]:
    steps, became = lineage.fate(layer.name)
    against: list[Drop | Miss] = [*lineage.refused, *lineage.misses]
    row: dict[str, Any] = {
        "name": layer.name,
        "operator": layer.node.op_type,
        "shape": list(layer.shape),
        "macs": base.costs[layer.name].macs,
        "bytes": base.costs[layer.name].bytes,
        "milliseconds": base.seconds([layer.name]) * 1e3,
        "kernel": base.executed[layer.name].kernel if layer.name in base.executed else "",
        "passes": list(dict.fromkeys(step.key.pass_name for step in steps)),
        "steps": [f"{titled(step.key)}: {step.reason}" if step.reason else titled(step.key) for step in steps],
        "obstacles": [f"not {titled(each.key)}: {each.reason}" for each in against if each.key.anchor == layer.name],
        "expected_error": next((step.predicted_error for step in reversed(steps) if step.predicted_error is not None), None),
    }
    if after is None:
        return row
    kept = [name for name in became if name in after.costs]
    working = [name for name in kept if name in after.layers] or kept  # what feeds a kernel with codes may be part of another kernel
    slowest = max((after.executed[name] for name in working if name in after.executed), key=lambda node: node.seconds, default=None)
    return row | {
        "became": kept,
        "shapes_after": [list(after.layers[name].shape) for name in kept if name in after.layers],
        "bytes_after": sum(after.costs[name].bytes for name in kept),
        "milliseconds_after": after.seconds(working) * 1e3,
        "kernel_after": "" if slowest is None else slowest.kernel,
        "decibels": _decibels(layer, base, values),
    }


def _decibels(layer: Layer, base: Side, values: Mapping[str, Parting]) -> float | None:
    """How far a layer's output is from its counterpart, or where it has none, the next value that has one before another layer."""
    value = layer.node.outputs[0]
    while (value.name or "") not in values:
        users = value.consumers()
        if len(users) != 1 or users[0].name in base.layers or users[0].graph is not base.model.graph:
            return None
        value = users[0].outputs[0]
    found = values[value.name or ""].decibels
    return found if math.isfinite(found) else None


def _sizes(side: Side) -> dict[str, int]:
    found: Counter[str] = Counter()
    for node in side.cost.nodes:
        found[node.operator] += node.bytes
    return {name: size for name, size in found.most_common() if size}


def _times(side: Side) -> dict[str, float]:
    return {kernel: seconds * 1e3 for kernel, (_, seconds) in kernels_of(side.nodes).items()}


def _error(number: int, value: Parting) -> dict[str, Any]:
    decibels = value.decibels
    return {"number": number, "value": value.a, "maker": " ".join(value.maker), "decibels": decibels if math.isfinite(decibels) else None}


def _execution(node: NodeProfile) -> dict[str, Any]:
    return {"kernel": node.kernel, "milliseconds": node.seconds * 1e3, "macs": node.macs}

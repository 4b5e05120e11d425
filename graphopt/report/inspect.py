"""What is in a model: signature, operators, parameters, work, largest layers; reads no weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir
from rich.console import Group
from rich.table import Table
from rich.text import Text

from graphopt import files
from graphopt.files.weights import slots_of
from graphopt.graph.cost import Cost, NodeCost
from graphopt.graph.edits import all_nodes
from graphopt.graph.layers import layers_of
from graphopt.graph.signature import Signature, signature_of
from graphopt.graph.view import operator_of
from graphopt.report.sizing import sized_cost

_LARGEST = 10
_MOST_OPERATORS = 24


@dataclass(frozen=True)
class Inspection:
    """What is in a model.

    Attributes:
        name: the file's name, or the graph's.
        signature: inputs without a default, and outputs.
        opsets: version by domain; the standard domain is the empty string.
        ir_version: of the file format.
        producer: what wrote the model, and its version.
        operators: number of nodes of each operator, the most frequent first; subgraphs and functions included.
        cost: parameters, bytes and multiply-accumulates.
        lengths: the lengths of the open input dimensions at which the multiply-accumulates are counted.
        given: which of them the caller gave; the others are made up.
        weight_shapes: ``(groups, out, in)`` of the layers, by node.
        metadata: keys of the model's metadata, with the length of each value.
        external_data: bytes of tensors by data file.
        functions: names of model-local functions.
        subgraphs: how many there are.
        file_bytes: of the model on the disk, data files included; None for a model in memory.
    """

    name: str
    signature: Signature
    opsets: Mapping[str, int]
    ir_version: int
    producer: str
    operators: Mapping[str, int]
    cost: Cost
    lengths: Mapping[str, int]
    given: frozenset[str]
    weight_shapes: Mapping[str, tuple[int, int, int]]
    metadata: Mapping[str, int]
    external_data: Mapping[str, int]
    functions: tuple[str, ...]
    subgraphs: int
    file_bytes: int | None

    @property
    def largest(self) -> tuple[NodeCost, ...]:
        """The ten nodes with the most parameters."""
        ordered = sorted((node for node in self.cost.nodes if node.parameters), key=lambda node: -node.parameters)
        return tuple(ordered[:_LARGEST])

    def to_json(self) -> dict[str, Any]:
        """Plain data; ``version`` counts changes of this form."""
        ports = {"inputs": self.signature.inputs, "outputs": self.signature.outputs}
        described = {
            key: [{"name": p.name, "dtype": p.dtype.name.lower() if p.dtype else None, "shape": p.shape} for p in listed]
            for key, listed in ports.items()
        }
        plain = ("name", "ir_version", "producer", "subgraphs", "file_bytes")
        mappings = ("opsets", "operators", "metadata", "external_data")
        return (
            {"version": 1}
            | {name: getattr(self, name) for name in plain}
            | {name: dict(getattr(self, name)) for name in mappings}
            | described
            | {
                "functions": list(self.functions),
                "parameters": self.cost.parameters,
                "weight_bytes": self.cost.bytes,
                "macs": self.cost.macs,
                "macs_unknown": list(self.cost.unknown),
                "lengths": dict(self.lengths),
                "made_up_lengths": [name for name in self.lengths if name not in self.given],
                "largest": [vars(node) | {"weight": self.weight_shapes.get(node.name)} for node in self.largest],
            }
        )

    def __rich__(self) -> Group:
        return Group(self._facts(), Text(), self._operators(), Text(), self._layers())

    def _facts(self) -> Table:
        table = Table(box=None, show_header=False, pad_edge=False)
        table.add_column(style="bold", no_wrap=True)
        table.add_column(overflow="fold")
        for label, text in self._rows():
            table.add_row(label, Text(text))
        return table

    def _rows(self) -> Iterator[tuple[str, str]]:
        yield "model", self.name
        yield "inputs", "\n".join(map(str, self.signature.inputs)) or "none"
        yield "outputs", "\n".join(map(str, self.signature.outputs)) or "none"
        yield "opset", ", ".join(f"{domain or 'ai.onnx'} {version}" for domain, version in self.opsets.items())
        yield "IR version", f"{self.ir_version}, written by {self.producer or 'an unnamed producer'}"
        yield "parameters", f"{self.cost.parameters:,} in {self.cost.bytes:,} bytes"
        if self.file_bytes is not None:
            yield "on the disk", f"{self.file_bytes:,} bytes"
        yield "MACs", f"{self.cost.macs:,}{self._sizes()}"
        if self.cost.unknown:
            first = ", ".join(self.cost.unknown[:3])
            yield "not counted", f"{len(self.cost.unknown)} nodes of unknown operators or shapes: {first}"
        for name, size in self.external_data.items():
            yield "external data", f"{name}: {size:,} bytes"
        if self.functions or self.subgraphs:
            yield "structure", f"{len(self.functions)} functions, {self.subgraphs} subgraphs"
        if self.metadata:
            yield "metadata", ", ".join(f"{key} ({length:,} characters)" for key, length in self.metadata.items())

    def _sizes(self) -> str:
        if not self.lengths:
            return ""
        sizes = ", ".join(f"{name}={length}{'' if name in self.given else ' (made up)'}" for name, length in self.lengths.items())
        return f" at {sizes}"

    def _operators(self) -> Text:
        shown = list(self.operators.items())
        listed = [f"{name} x{count}" for name, count in shown[:_MOST_OPERATORS]]
        rest = [f"{len(shown) - _MOST_OPERATORS} more"] if len(shown) > _MOST_OPERATORS else []
        return Text(f"{sum(self.operators.values())} nodes: {', '.join(listed + rest)}")

    def _layers(self) -> Table:
        table = Table("largest", "operator", "weight", "parameters", "MACs", box=None, header_style="bold", pad_edge=False)
        for column in table.columns[3:]:
            column.justify = "right"
        for node in self.largest:
            shape = self.weight_shapes.get(node.name)
            weight = "" if shape is None else f"{f'{shape[0]} x ' if shape[0] > 1 else ''}{shape[1]} x {shape[2]}"
            macs = "?" if node.macs is None else f"{node.macs:,}"
            table.add_row(Text(node.name), node.operator, weight, f"{node.parameters:,}", macs)
        return table


def inspect(model: str | Path | ir.Model, *, shapes: Mapping[str, int] | None = None) -> Inspection:
    """Looks into a model; reads no weights, and runs it only where shapes cannot be derived.

    Args:
        model: a file, a folder with one model, or a model in memory.
        shapes: lengths of open input dimensions by name (``INPUT.axisN`` for one without a name); others are made up.

    Raises:
        ModelFileError: the file cannot be read.
        SamplesError: a name in ``shapes`` is no open dimension of the model.
    """
    file = None if isinstance(model, ir.Model) else files.model_file(Path(model))
    loaded = model if isinstance(model, ir.Model) else files.load(file or model)
    lengths, cost = sized_cost(loaded, shapes or {})
    return Inspection(
        name=file.name if file else loaded.graph.name or "",
        signature=signature_of(loaded),
        opsets=dict(loaded.opset_imports),
        ir_version=loaded.ir_version,
        producer=" ".join(part for part in (loaded.producer_name, loaded.producer_version) if part),
        operators=_operators(loaded),
        cost=cost,
        lengths=lengths,
        given=frozenset(shapes or {}),
        weight_shapes={layer.name: layer.shape for layer in layers_of(loaded)},
        metadata={key: len(value) for key, value in loaded.metadata_props.items()},
        external_data=_external_data(loaded),
        functions=tuple("::".join(part for part in (domain, name, overload) if part) for domain, name, overload in loaded.functions),
        subgraphs=sum(1 for _ in loaded.graph.subgraphs()),
        file_bytes=files.total_bytes(file) if file else None,
    )


def _operators(model: ir.Model) -> dict[str, int]:
    inner = (node for function in model.functions.values() for node in function.all_nodes())
    return dict(Counter(operator_of(node) for node in (*all_nodes(model), *inner)).most_common())


def _external_data(model: ir.Model) -> dict[str, int]:
    found: Counter[str] = Counter()
    for slot in slots_of(model):
        if isinstance(slot.tensor, ir.ExternalTensor):
            found[str(slot.tensor.location)] += slot.tensor.nbytes
    return dict(found)

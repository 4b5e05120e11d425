"""Changes: what differs between two aligned models, place by place."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import onnx_ir as ir

from graphopt.files.weights import private_map
from graphopt.graph.difference.alignment import Alignment
from graphopt.graph.difference.flow import Flow, weights_of
from graphopt.graph.difference.regions import Region, regions_of
from graphopt.graph.view import operator_of

_FEW = 8
"""Elements of a constant that are shown instead of counted."""

Kind = Literal["removed", "added", "replaced", "attribute", "weight", "input", "type", "signature"]


@dataclass(frozen=True)
class Change:
    """One difference.

    Attributes:
        kind: ``removed``, ``added`` and ``replaced`` are of nodes; the others of a pair of nodes: an attribute, the content of a constant
            input, where an input comes from, the type or shape of an output; ``signature`` is of the models' inputs, outputs and opsets.
        a: names of the nodes of the first model.
        b: names of the nodes of the second model.
        operators: theirs: of the first, then of the second model.
        what: the attribute, weight, input or output; empty for nodes.
        detail: before and after, in words.
        relative: of a weight: the norm of what changed by the norm of what it was, the largest of a replacement; None for anything else.
        place: where it stands among the first model's nodes; -1 for the signature.
    """

    kind: Kind
    a: tuple[str, ...]
    b: tuple[str, ...]
    operators: tuple[tuple[str, ...], tuple[str, ...]]
    what: str = ""
    detail: str = ""
    relative: float | None = None
    place: float = -1.0

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        plain: dict[str, Any] = {
            "kind": self.kind,
            "a": list(self.a),
            "b": list(self.b),
            "operators": [list(each) for each in self.operators],
        }
        optional = {"what": self.what, "detail": self.detail, "relative": self.relative}
        return plain | {name: value for name, value in optional.items() if value not in ("", None)}


def changes_of(alignment: Alignment) -> list[Change]:
    """All differences, those of the models' signatures first, then in the order of the first model's nodes."""
    order: dict[ir.Node, float] = {node: float(number) for number, node in enumerate(alignment.a.nodes)}
    place = {node: order[one] for one, node in alignment.nodes.items()}
    found = [replace(_of_region(alignment, region), place=_place_of(region, order, place, alignment)) for region in regions_of(alignment)]
    for one, other in alignment.nodes.items():
        found.extend(replace(change, place=order[one]) for change in _of_pair(alignment, one, other))
    return [*_of_signature(alignment.a, alignment.b), *sorted(found, key=lambda change: change.place)]


def _place_of(region: Region, order: Mapping[ir.Node, float], place: Mapping[ir.Node, float], alignment: Alignment) -> float:
    ours, theirs = region
    return min(order[node] for node in ours) if ours else min(_before(node, alignment, place) for node in theirs)


def _before(node: ir.Node, alignment: Alignment, place: Mapping[ir.Node, float]) -> float:
    """Where a node that was added stands among those of the first model: after the last that it depends on."""
    pending, seen, last = [node], {node}, -1.0
    while pending:
        for value in alignment.b.inputs[pending.pop()]:
            maker = value.producer() if value is not None else None
            if maker is None:
                continue
            if maker in place:
                last = max(last, place[maker])
            elif maker in alignment.b.inputs and maker not in seen:
                seen.add(maker)
                pending.append(maker)
    return last + 0.5


def _of_region(alignment: Alignment, region: Region) -> Change:
    ours, theirs = region
    kind: Kind = "replaced" if ours and theirs else "removed" if ours else "added"
    names = tuple(tuple(node.name or "" for node in nodes) for nodes in region)
    operators = tuple(tuple(operator_of(node) for node in nodes) for nodes in region)
    weights = [(value, *_weight_change(before, after)) for value, before, after in _other_weights(alignment, region)]
    detail = "; ".join(f"{value.name}: {words}" for value, words, _ in weights)
    relative = max((each for _, _, each in weights if each is not None), default=None)
    return Change(kind, names[0], names[1], (operators[0], operators[1]), "", detail, relative)


def _other_weights(alignment: Alignment, region: Region) -> Iterator[tuple[ir.Value, ir.TensorProtocol, ir.TensorProtocol]]:
    """Weights of a region that its counterpart does not hold, each with the likest of the same type and shape that is new there."""
    flows = alignment.a, alignment.b
    held = [
        {flow.digest(value): value for node in nodes for value, _ in weights_of(flow, node)}
        for flow, nodes in zip(flows, region, strict=True)
    ]
    gone, new = ([value for digest, value in mine.items() if digest not in other] for mine, other in (held, held[::-1]))
    for value in gone:
        tensor = flows[0].constant(value)
        alike = [each for each in new if tensor is not None and _type_of(flows[1].constant(each)) == _type_of(tensor)]
        twin = max(alike, key=lambda each: abs(float(flows[0].direction(value) @ flows[1].direction(each))), default=None)
        after = flows[1].constant(twin)
        if twin is not None and tensor is not None and after is not None:
            new.remove(twin)
            yield value, tensor, after


def _type_of(tensor: ir.TensorProtocol | None) -> str:
    return "" if tensor is None else f"{tensor.dtype.name.lower()}{list(tensor.shape)}"


def _of_pair(alignment: Alignment, one: ir.Node, other: ir.Node) -> Iterator[Change]:
    a, b = alignment.a, alignment.b

    def change(kind: Kind, what: str, detail: str, relative: float | None = None) -> Change:
        operators = (operator_of(one),), (operator_of(other),)
        return Change(kind, (one.name or "",), (other.name or "",), operators, what, detail, relative)

    before, after = a.attributes(one), b.attributes(other)
    for name in sorted(before.keys() | after.keys()):
        if before.get(name) != after.get(name):
            yield change("attribute", name, f"{_shown(before.get(name))} → {_shown(after.get(name))}")
    for position, (value, its) in enumerate(itertools.zip_longest(a.inputs[one], b.inputs[other])):
        ours, theirs = a.constant(value), b.constant(its)
        if value is not None and its is not None and ours is not None and theirs is not None:
            if a.digest(value) != b.digest(its):
                yield change("weight", value.name or "", *_weight_change(ours, theirs))
        elif _moved(alignment, value, its):
            yield change("input", f"input {position}", f"{_source(a, value)} → {_source(b, its)}")
    for value, its in zip(one.outputs, other.outputs, strict=False):
        shapes = [_typed(each) for each in (value, its)]
        if None not in shapes and shapes[0] != shapes[1]:
            yield change("type", value.name or "", f"{shapes[0]} → {shapes[1]}")


def _moved(alignment: Alignment, value: ir.Value | None, its: ir.Value | None) -> bool:
    """Whether an input comes from elsewhere than its counterpart, and no node that came or went explains it."""
    if value is None or its is None:
        return value is not its
    if alignment.values.get(value) is its or alignment.equal(value, its):
        return False
    makers = value.producer(), its.producer()
    if makers[0] is not None and alignment.nodes.get(makers[0]) is makers[1] and value.index() == its.index():
        return False
    lone = makers[0] in alignment.a.inputs and makers[0] not in alignment.nodes
    return not lone and not (makers[1] in alignment.b.inputs and makers[1] not in alignment.back)


def _weight_change(ours: ir.TensorProtocol, theirs: ir.TensorProtocol) -> tuple[str, float | None]:
    shapes = [_type_of(tensor) for tensor in (ours, theirs)]
    if max(ours.size, theirs.size) <= _FEW:
        return " → ".join(f"{shape} {tensor.numpy().tolist()}" for shape, tensor in zip(shapes, (ours, theirs), strict=True)), None
    if shapes[0] != shapes[1]:
        return f"{shapes[0]} → {shapes[1]}", None
    if ours.dtype == ir.DataType.STRING:
        return f"{shapes[0]}: other texts", None
    before, after = (_numbers(tensor) for tensor in (ours, theirs))
    change = np.abs(after - before)
    changed, norm = int(np.count_nonzero(change)), float(np.linalg.norm(before))
    relative = float(np.linalg.norm(change)) / norm if norm else None
    return f"{shapes[0]}: {changed:,} of {before.size:,} elements differ, by at most {change.max(initial=0.0):.3g}", relative


def _numbers(tensor: ir.TensorProtocol) -> np.ndarray[Any, Any]:
    held = private_map(tensor) if isinstance(tensor, ir.ExternalTensor) else tensor
    return np.asarray(held.numpy()).astype(np.float64)


def _shown(value: Any) -> str:
    text = "absent" if value is None else value.decode(errors="replace") if isinstance(value, bytes) else str(value)
    return text if len(text) < 80 else f"{text[:77]}..."


def _source(flow: Flow, value: ir.Value | None) -> str:
    if value is None:
        return "absent"
    if flow.constant(value) is not None:
        return f"constant {value.name}"
    maker = value.producer()
    return f"input {value.name}" if maker is None else f"{value.name} of {operator_of(maker)} {maker.name}"


def _typed(value: ir.Value) -> str | None:
    """Type and shape; None where either is unknown, or a length is only a name."""
    if value.dtype is None or value.shape is None:
        return None
    lengths = [dim if isinstance(dim, int) else None for dim in value.shape]
    return None if None in lengths else f"{value.dtype.name.lower()}{lengths}"


def _of_signature(a: Flow, b: Flow) -> Iterator[Change]:
    def change(what: str, before: object, after: object) -> Change:
        return Change("signature", (), (), ((), ()), what, f"{before} → {after}")

    for what, ours, theirs in (("input", a.fed, b.fed), ("output", a.outputs, b.outputs)):
        for value, its in itertools.zip_longest(ours, theirs):
            before, after = _described(value), _described(its)
            if before != after:
                yield change(what, before, after)
    for domain in sorted(a.domains | b.domains):  # an import that nothing uses is no difference
        opsets = [flow.model.opset_imports.get(domain, "absent") for flow in (a, b)]
        if opsets[0] != opsets[1]:
            yield change(f"opset {domain or 'ai.onnx'}", *opsets)


def _described(value: ir.Value | None) -> str:
    if value is None:
        return "absent"
    shape = "[?]" if value.shape is None else f"[{', '.join(str(dim) for dim in value.shape)}]"
    return f"{value.name}: {value.dtype.name.lower() if value.dtype else '?'}{shape}"

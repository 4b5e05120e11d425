"""What a model costs: parameters, bytes and multiply-accumulates, node by node and in total."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from graphopt.files.weights import slots_of
from graphopt.graph.macs import Shape, macs_of
from graphopt.graph.view import attribute, input_of, operator_of

ShapeOf = Callable[[ir.Value], Shape | None]


@dataclass(frozen=True)
class NodeCost:
    """What one node costs.

    Attributes:
        name: the node's name.
        operator: such as ``Conv`` or ``com.microsoft::FusedConv``.
        parameters: elements of the constants that it reads; several nodes may read the same.
        bytes: what these constants take.
        macs: multiply-accumulates of one inference; None where they are not known. Those of a node with subgraphs include
            theirs: of If the dearer branch, of loops all rounds.
        inside: name of the node whose subgraph it stands in; empty in the main graph.
    """

    name: str
    operator: str
    parameters: int
    bytes: int
    macs: int | None
    inside: str = ""


@dataclass(frozen=True)
class Cost:
    """What a model costs.

    Attributes:
        nodes: all nodes of the main graph, each followed by those of its subgraphs.
        parameters: elements of all constants, those shared by several nodes counted once.
        bytes: what all constants take, shared ones counted once.
    """

    nodes: tuple[NodeCost, ...]
    parameters: int
    bytes: int

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one inference, as far as they are known: see :attr:`unknown`."""
        return sum(node.macs or 0 for node in self.nodes if not node.inside)

    @property
    def unknown(self) -> tuple[str, ...]:
        """Names of the nodes of the main graph whose multiply-accumulates are not known."""
        return tuple(node.name for node in self.nodes if node.macs is None and not node.inside)


def cost_of(model: ir.Model, shapes: Mapping[str, Shape] | None = None) -> Cost:
    """Counts what a model costs; reads no weights.

    Args:
        model: the model; subgraphs are counted too, of functions only the constants.
        shapes: shapes of values by name, from a trace or from symbolic shapes with their symbols bound. Values that it
            lacks count with the shape that the model tells, where that is fixed.
    """
    known = shapes or {}

    def shape_of(value: ir.Value) -> Shape | None:
        found = known.get(value.name or "")
        return _declared(value) if found is None else tuple(found)

    # Several 4-bit weights lie in one stored element: a parameter is a weight, not a byte.
    held: dict[ir.Value | ir.Node, int] = {value: count for node in model.graph.all_nodes() for value, count in _packed(node)}
    totals = [(held.get(slot.holder, slot.tensor.size), slot.tensor.nbytes) for slot in slots_of(model)]
    nodes = tuple(_costs(model.graph, "", shape_of))
    return Cost(nodes, sum(count for count, _ in totals), sum(nbytes for _, nbytes in totals))


def _costs(nodes: Iterable[ir.Node], inside: str, shape_of: ShapeOf) -> Iterator[NodeCost]:
    for node in nodes:
        packed = dict(_packed(node))
        constants = {value: tensor for value in node.inputs if value is not None and (tensor := _constant(value)) is not None}
        parameters = sum(packed.get(value, tensor.size) for value, tensor in constants.items())
        stored = sum(tensor.nbytes for tensor in constants.values())
        yield NodeCost(node.name or "", operator_of(node), parameters, stored, _macs(node, shape_of), inside)
        for graph in _subgraphs(node):
            yield from _costs(graph, node.name or "", shape_of)


def _macs(node: ir.Node, shape_of: ShapeOf) -> int | None:
    bodies = [_sum(_macs(inner, shape_of) for inner in graph) for graph in _subgraphs(node)]
    if not bodies:
        return macs_of(node, shape_of)
    if None in bodies:
        return None
    dearest = max(body for body in bodies if body is not None)
    if not dearest or node.op_type == "If":
        return dearest
    rounds = _rounds(node, shape_of)
    return None if rounds is None else rounds * dearest


def _rounds(node: ir.Node, shape_of: ShapeOf) -> int | None:
    """How often a loop runs: a constant count, or the length of what Scan goes through; a condition may end Loop sooner."""
    if node.op_type == "Loop":
        count = input_of(node, 0)
        tensor = None if count is None else _constant(count)
        return None if tensor is None else int(tensor.numpy().reshape(-1)[0])
    scanned = node.inputs[-1] if node.op_type == "Scan" and node.inputs else None
    shape = None if scanned is None else shape_of(scanned)
    if not shape:
        return None
    axes: tuple[int, ...] = attribute(node, "scan_input_axes", (0,))
    return shape[axes[-1]]


def _packed(node: ir.Node) -> Iterator[tuple[ir.Value, int]]:
    """Constants whose elements hold several weights each, with the number of weights."""
    operator = operator_of(node)
    if operator == "com.microsoft::MatMulNBits" and (weight := input_of(node, 1)) is not None:
        yield weight, attribute(node, "K", 0) * attribute(node, "N", 0)
    elif operator == "com.microsoft::GatherBlockQuantized" and (table := input_of(node, 0)) is not None:
        tensor = _constant(table)
        if tensor is not None and tensor.dtype == ir.DataType.UINT8:
            yield table, tensor.size * 8 // attribute(node, "bits", 4)


def _subgraphs(node: ir.Node) -> Iterator[ir.Graph]:
    for item in node.attributes.values():
        if isinstance(item, ir.Attr) and item.type == ir.AttributeType.GRAPH and not item.is_ref():
            yield item.as_graph()
        elif isinstance(item, ir.Attr) and item.type == ir.AttributeType.GRAPHS and not item.is_ref():
            yield from item.as_graphs()


def _sum(parts: Iterable[int | None]) -> int | None:
    total = 0
    for part in parts:
        if part is None:
            return None
        total += part
    return total


def _constant(value: ir.Value) -> ir.TensorProtocol | None:
    return ir.convenience.get_const_tensor(value)


def _declared(value: ir.Value) -> Shape | None:
    tensor = _constant(value)
    shape = value.shape if tensor is None else tensor.shape
    return tuple(shape.numpy()) if isinstance(shape, ir.Shape) and shape.is_static() else None

"""Regions: nodes without counterparts that stand in the same place of two models."""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence

import networkx as nx
import onnx_ir as ir

from graphopt.graph.difference.alignment import Alignment
from graphopt.graph.difference.flow import Flow

_FEW = 4
"""Readers of a value that tells where in a model one is."""

Region = tuple[list[ir.Node], list[ir.Node]]
"""Nodes of the first model, nodes of the second, each in order."""


def regions_of(alignment: Alignment) -> Iterator[Region]:
    """Nodes without counterparts: neighbours together, and with those of the other model that stand in the same place."""
    lone = _without(alignment.a.nodes, alignment.nodes), _without(alignment.b.nodes, alignment.back)
    graph = nx.Graph()
    for flow, nodes in zip((alignment.a, alignment.b), lone, strict=True):
        graph.add_nodes_from(nodes)
        members = set(nodes)
        graph.add_edges_from((user, maker) for user in nodes for maker in _makers(flow, user) if maker in members)
    only = set(lone[0]), set(lone[1])
    for value, its in _same_readers(alignment):
        makers = value.producer(), its.producer()
        if makers[0] in only[0] and makers[1] in only[1]:
            graph.add_edge(*makers)
    graph.add_edges_from(_beside(alignment, only))
    for region in nx.connected_components(graph):
        yield [node for node in lone[0] if node in region], [node for node in lone[1] if node in region]


def _beside(alignment: Alignment, only: tuple[set[ir.Node], set[ir.Node]]) -> Iterator[tuple[ir.Node, ir.Node]]:
    """Lone nodes of both models that read what the same pair puts out; values that many read, such as masks, join nothing."""
    for one, other in alignment.nodes.items():
        for value, its in zip(one.outputs, other.outputs, strict=False):
            readers = alignment.a.users.get(value, ()), alignment.b.users.get(its, ())
            if max(map(len, readers)) <= _FEW:
                yield from ((ours, theirs) for ours, _ in readers[0] if ours in only[0] for theirs, _ in readers[1] if theirs in only[1])


def _without(nodes: Sequence[ir.Node], paired: Container[ir.Node]) -> list[ir.Node]:
    return [node for node in nodes if node not in paired]


def _makers(flow: Flow, node: ir.Node) -> Iterator[ir.Node]:
    return (maker for value in flow.inputs[node] if value is not None and (maker := value.producer()) is not None)


def _same_readers(alignment: Alignment) -> Iterator[tuple[ir.Value, ir.Value]]:
    """Values that nodes of a pair read in the same place, or that are the same output."""
    for one, other in alignment.nodes.items():
        for value, its in zip(alignment.a.inputs[one], alignment.b.inputs[other], strict=False):
            if value is not None and its is not None:
                yield value, its
    yield from zip(alignment.a.outputs, alignment.b.outputs, strict=False)

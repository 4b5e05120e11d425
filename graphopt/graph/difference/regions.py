"""Regions: nodes without counterparts that stand in the same place of two models."""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence

import networkx as nx
import onnx_ir as ir

from graphopt.graph.difference.alignment import Alignment

_FEW = 4
"""Readers of a value that tells where in a model one is."""

Region = tuple[list[ir.Node], list[ir.Node]]
"""Nodes of the first model, nodes of the second, each in order."""


def regions_of(alignment: Alignment) -> Iterator[Region]:
    """Nodes without counterparts: neighbours together, unless the value between them corresponds to one of the other model.

    Those of both models are together where they read or make values that correspond, or hold the same weight.
    """
    flows = alignment.a, alignment.b
    lone = _without(flows[0].nodes, alignment.nodes), _without(flows[1].nodes, alignment.back)
    known = set(alignment.values), set(alignment.values.values())
    only = set(lone[0]), set(lone[1])
    graph = nx.Graph()
    for side, nodes in enumerate(lone):
        graph.add_nodes_from(nodes)
        for user in nodes:
            between = (value for value in flows[side].inputs[user] if value is not None and value not in known[side])
            graph.add_edges_from((user, maker) for value in between if (maker := value.producer()) in only[side])
    graph.add_edges_from(alignment.kin)
    for value, its in _same_values(alignment):
        makers = value.producer(), its.producer()
        if makers[0] in only[0] and makers[1] in only[1]:
            graph.add_edge(*makers)
        graph.add_edges_from(_beside(alignment, (value, its), only))
    order = {node: number for nodes in lone for number, node in enumerate(nodes)}
    for region in nx.connected_components(graph):
        members = sorted(region, key=order.__getitem__)
        yield [node for node in members if node in only[0]], [node for node in members if node in only[1]]


def _beside(
    alignment: Alignment, pair: tuple[ir.Value, ir.Value], only: tuple[set[ir.Node], set[ir.Node]]
) -> Iterator[tuple[ir.Node, ir.Node]]:
    """Lone nodes of both models that read the same; values that many read, such as masks, join nothing."""
    readers = alignment.a.users.get(pair[0], ()), alignment.b.users.get(pair[1], ())
    if max(map(len, readers)) <= _FEW:
        yield from ((ours, theirs) for ours, _ in readers[0] if ours in only[0] for theirs, _ in readers[1] if theirs in only[1])


def _without(nodes: Sequence[ir.Node], paired: Container[ir.Node]) -> list[ir.Node]:
    return [node for node in nodes if node not in paired]


def _same_values(alignment: Alignment) -> Iterator[tuple[ir.Value, ir.Value]]:
    """Values that correspond, that nodes of a pair read or make in the same place, or that are the same output."""
    yield from alignment.values.items()
    for one, other in alignment.nodes.items():
        yield from zip(one.outputs, other.outputs, strict=False)
        for value, its in zip(alignment.a.inputs[one], alignment.b.inputs[other], strict=False):
            if value is not None and its is not None:
                yield value, its
    yield from zip(alignment.a.outputs, alignment.b.outputs, strict=False)

"""Alignment: which node of one model is which of another, and which values carry the same."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from graphopt.graph.difference.fingerprints import Detail, Fingerprints, Register
from graphopt.graph.difference.flow import Flow
from graphopt.graph.difference.pairing import Pairing
from graphopt.graph.view import operator_of

_DETAILS: tuple[Detail, ...] = ("content", "shape", "operator")
_TELLING = 16
"""Elements from which on a constant is unlikely to be the same by chance."""


@dataclass(frozen=True)
class Alignment:
    """How two models correspond.

    Attributes:
        a, b: the models.
        nodes: nodes of ``a`` and their counterparts in ``b``.
        back: the same the other way round.
        values: values of ``a`` that no constants are, and those of ``b`` that take their place.
        equal: tells whether a value of ``a`` and one of ``b`` are computed in the same way from the same inputs.
    """

    a: Flow
    b: Flow
    nodes: Mapping[ir.Node, ir.Node]
    back: Mapping[ir.Node, ir.Node]
    values: Mapping[ir.Value, ir.Value]
    equal: Callable[[ir.Value | None, ir.Value | None], bool]


def align(a: Flow, b: Flow) -> Alignment:
    """Aligns two models by data flow and content; names only decide between candidates that are otherwise as good.

    Nodes with all before or all after them in common come first; from there pairs grow along the values to their neighbours, those
    first that most neighbours, constants and attributes speak for. Time: O(n log n) for n nodes of bounded degree, and one look at all
    weights.
    """
    pairing = Pairing(a, b)
    register = Register()
    prints = {detail: (Fingerprints(a, detail, register), Fingerprints(b, detail, register)) for detail in _DETAILS}
    content = prints["content"]
    pairing.pair_in_order(functools.partial(_all_around, content))
    pairing.pair_in_order(lambda node, side: content[side].up[node])
    pairing.pair_single(lambda node, side: _weights((a, b)[side], node))
    pairing.pair_single(lambda node, side: content[side].down[node])
    for both in prints.values():
        pairing.pair_single(functools.partial(_all_around, both))
    pairing.grow()
    pairing.pair_sequences(lambda node, side: _layer((a, b)[side], node))
    pairing.grow()
    return Alignment(
        a,
        b,
        pairing.nodes,
        pairing.back,
        _values(a, b, pairing.nodes, pairing.back),
        lambda x, y: content[0].of_value(x) == content[1].of_value(y),
    )


def _all_around(prints: tuple[Fingerprints, Fingerprints], node: ir.Node, side: int) -> Hashable:
    return prints[side].up[node], prints[side].down[node]


def _weights(flow: Flow, node: ir.Node) -> Hashable | None:
    """The operator and the large constants of a node; None where it has none."""
    found = tuple(flow.digest(value) for value, _ in _large(flow, node))
    return (operator_of(node), found) if found else None


def _layer(flow: Flow, node: ir.Node) -> Hashable | None:
    """The operator and the shapes of the large constants of a node; None where it has none."""
    found = tuple(tuple(tensor.shape.numpy()) for _, tensor in _large(flow, node))
    return (operator_of(node), found[0]) if found else None


def _large(flow: Flow, node: ir.Node) -> Iterator[tuple[ir.Value, ir.TensorProtocol]]:
    for value in flow.inputs[node]:
        tensor = flow.constant(value)
        if value is not None and tensor is not None and tensor.size >= _TELLING:
            yield value, tensor


def _values(a: Flow, b: Flow, nodes: Mapping[ir.Node, ir.Node], back: Mapping[ir.Node, ir.Node]) -> dict[ir.Value, ir.Value]:
    """Values by who reads them, then by who makes them: what a layer puts out may be scaled before it is read in one model only."""
    votes: dict[tuple[ir.Value, ir.Value], int] = defaultdict(int)
    twins = {tag: value for value, tag in b.sources.items()}
    fixed = {value: twins[tag] for value, tag in a.sources.items() if tag in twins}
    for one, other in nodes.items():
        for pair in zip(one.outputs, other.outputs, strict=False):
            votes[pair] += 1
        for value, its in zip(a.inputs[one], b.inputs[other], strict=False):
            if value is None or its is None or a.constant(value) is not None or b.constant(its) is not None:
                continue
            makers = value.producer(), its.producer()
            lone = makers[0] not in nodes or makers[1] not in back
            votes[value, its] += 2 * (lone or (makers[0] is not None and nodes[makers[0]] is makers[1]))
    for pair in zip(a.outputs, b.outputs, strict=False):
        votes[pair] += 2
    found, taken = dict(fixed), set(fixed.values())
    for (ours, theirs), count in sorted(votes.items(), key=lambda item: -item[1]):  # stable: in order where votes are equal
        if count and ours not in found and theirs not in taken and ours not in a.sources and theirs not in b.sources:
            found[ours] = theirs
            taken.add(theirs)
    return found

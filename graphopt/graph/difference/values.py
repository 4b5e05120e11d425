"""Values of one model, and those of another that take their place."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

import onnx_ir as ir

from graphopt.graph.difference.flow import Flow, weight_type, weights_of
from graphopt.graph.difference.pairing import Pairing


def values_of(a: Flow, b: Flow, pairing: Pairing, kin: Sequence[tuple[ir.Node, ir.Node]]) -> dict[ir.Value, ir.Value]:
    """Values by who reads them, then by who makes them: what a layer puts out may be scaled before it is read in one model only."""
    votes: dict[tuple[ir.Value, ir.Value], int] = defaultdict(int)
    twins = {tag: value for value, tag in b.sources.items()}
    fixed = {value: twins[tag] for value, tag in a.sources.items() if tag in twins}
    for one, other in pairing.nodes.items():
        for pair in zip(one.outputs, other.outputs, strict=False):
            votes[pair] += _is_unchanged((a, b), (one, other), pairing)
        for value, its in _read(a, b, one, other):
            votes[value, its] += 2 * _are_same(value, its, (one, other), (a, b), pairing)
    for one, other in kin:
        for value, its in _read(a, b, one, other):
            votes[value, its] += 2 * (_hold_alike(a, b, one, other) and pairing.are_lone(value, its))
    for pair in zip(a.outputs, b.outputs, strict=False):
        votes[pair] += 2
    found, taken = dict(fixed), set(fixed.values())
    for (ours, theirs), count in sorted(votes.items(), key=lambda item: -item[1]):  # stable: in order where votes are equal
        if count and ours not in found and theirs not in taken and ours not in a.sources and theirs not in b.sources:
            found[ours] = theirs
            taken.add(theirs)
    return found


def _read(a: Flow, b: Flow, one: ir.Node, other: ir.Node) -> Iterator[tuple[ir.Value, ir.Value]]:
    """What two nodes read in the same places, constants left out."""
    for value, its in zip(a.inputs[one], b.inputs[other], strict=False):
        if value is not None and its is not None and a.constant(value) is None and b.constant(its) is None:
            yield value, its


def _are_same(value: ir.Value, its: ir.Value, readers: tuple[ir.Node, ir.Node], flows: tuple[Flow, Flow], pairing: Pairing) -> bool:
    """Whether what a pair reads is the same: made by two without counterparts, or the readers, or else a pair of makers, are as they were.

    A reader that changed may have taken over what a node did that went, or what its maker did, so that it reads something else.
    """
    one, other = value.producer(), its.producer()
    if one in pairing.nodes and other in pairing.back:
        if one is None or other is None or pairing.nodes[one] is not other:
            return False
        return _are_equal(flows, readers) or _is_unchanged(flows, (one, other), pairing)
    return pairing.are_lone(value, its) or _are_equal(flows, readers)


def _is_unchanged(flows: tuple[Flow, Flow], nodes: tuple[ir.Node, ir.Node], pairing: Pairing) -> bool:
    """Whether a pair is equal and reads nothing that comes from elsewhere."""
    makers = ((value.producer(), its.producer()) for value, its in _read(*flows, *nodes))
    moved = (x in pairing.nodes and y in pairing.back and pairing.nodes[x] is not y for x, y in makers if x is not None)
    return _are_equal(flows, nodes) and not any(moved)


def _hold_alike(a: Flow, b: Flow, one: ir.Node, other: ir.Node) -> bool:
    """Whether two nodes that are akin hold a weight of one shape in the same place."""
    weights = [{value for value, _ in weights_of(flow, node)} for flow, node in ((a, one), (b, other))]
    pairs = ((x, y) for x, y in _constants(a, b, one, other) if x in weights[0] and y in weights[1])
    return any(weight_type(a, x) == weight_type(b, y) for x, y in pairs)


def _are_equal(flows: tuple[Flow, Flow], nodes: tuple[ir.Node, ir.Node]) -> bool:
    """Whether a pair has the same attributes, as many inputs, and the same constants where both have one."""
    (a, b), (one, other) = flows, nodes
    present = ([value is not None for value in flow.inputs[node]] for flow, node in zip(flows, nodes, strict=True))
    if a.attributes(one) != b.attributes(other) or next(present) != next(present):
        return False
    return all(a.digest(x) == b.digest(y) for x, y in _constants(a, b, one, other))


def _constants(a: Flow, b: Flow, one: ir.Node, other: ir.Node) -> Iterator[tuple[ir.Value, ir.Value]]:
    """Constants that two nodes hold in the same places."""
    for value, its in zip(a.inputs[one], b.inputs[other], strict=False):
        if value is not None and its is not None and a.constant(value) is not None and b.constant(its) is not None:
            yield value, its

"""Alignment: which node of one model is which of another, and which values carry the same."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from graphopt.graph.difference.fingerprints import Detail, Fingerprints, Register
from graphopt.graph.difference.flow import Flow, weights_of
from graphopt.graph.difference.kin import kin_of
from graphopt.graph.difference.pairing import Pairing
from graphopt.graph.difference.values import values_of
from graphopt.graph.view import operator_of

_DETAILS: tuple[Detail, ...] = ("content", "shape", "operator")


@dataclass(frozen=True)
class Alignment:
    """How two models correspond.

    Attributes:
        a, b: the models.
        nodes: nodes of ``a`` and their counterparts in ``b``.
        back: the same the other way round.
        values: values of ``a`` that no constants are, and those of ``b`` that take their place.
        kin: nodes of both without counterparts that read the same large constant: what became of a layer under another operator.
        equal: tells whether a value of ``a`` and one of ``b`` are computed in the same way from the same inputs.
    """

    a: Flow
    b: Flow
    nodes: Mapping[ir.Node, ir.Node]
    back: Mapping[ir.Node, ir.Node]
    values: Mapping[ir.Value, ir.Value]
    kin: Sequence[tuple[ir.Node, ir.Node]]
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
    pairing.grow_across(kin_of(a, b, pairing))
    kin = list(kin_of(a, b, pairing))
    return Alignment(
        a,
        b,
        pairing.nodes,
        pairing.back,
        values_of(a, b, pairing, kin),
        kin,
        lambda x, y: content[0].of_value(x) == content[1].of_value(y),
    )


def _all_around(prints: tuple[Fingerprints, Fingerprints], node: ir.Node, side: int) -> Hashable:
    return prints[side].up[node], prints[side].down[node]


def _weights(flow: Flow, node: ir.Node) -> Hashable | None:
    """The operator and the large constants of a node; None where it has none."""
    found = tuple(flow.digest(value) for value, _ in weights_of(flow, node))
    return (operator_of(node), found) if found else None


def _layer(flow: Flow, node: ir.Node) -> Hashable | None:
    """The operator and the shapes of the large constants of a node; None where it has none."""
    found = tuple(tuple(tensor.shape.numpy()) for _, tensor in weights_of(flow, node))
    return (operator_of(node), found[0]) if found else None

"""Kin: nodes of two models that hold the same weight under another operator."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir

from graphopt.graph.difference.flow import Flow, weight_type, weights_of
from graphopt.graph.difference.pairing import Pairing

_ALIKE = 0.9
"""Cosine from which on two weights may be one that changed."""


class _Class(NamedTuple):
    """Readers of weights of one type and shape, and elements of these weights, of both models."""

    nodes: tuple[list[ir.Node], list[ir.Node]]
    directions: tuple[list[np.ndarray[Any, Any]], list[np.ndarray[Any, Any]]]


def kin_of(a: Flow, b: Flow, pairing: Pairing) -> Iterator[tuple[ir.Node, ir.Node]]:
    """Nodes without counterparts that alone read a large constant of the same content, or then one that is likest of all."""
    sides = [(flow, [node for node in flow.nodes if node not in paired]) for flow, paired in ((a, pairing.nodes), (b, pairing.back))]
    readers: list[dict[bytes, list[tuple[ir.Node, ir.Value]]]] = [defaultdict(list), defaultdict(list)]
    for (flow, lone), found in zip(sides, readers, strict=True):
        for node in lone:
            for value, _ in weights_of(flow, node):
                found[flow.digest(value)].append((node, value))
    same = readers[0].keys() & readers[1].keys()
    kin = [
        (readers[0][key][0][0], readers[1][key][0][0])
        for key in readers[0]
        if key in same and len(readers[0][key]) == len(readers[1][key]) == 1
    ]
    others = [[places[0] for key, places in found.items() if key not in same and len(places) == 1] for found in readers]
    yield from dict.fromkeys((*kin, *_alike(a, b, others[0], others[1])))


def _alike(
    a: Flow, b: Flow, ours: Sequence[tuple[ir.Node, ir.Value]], theirs: Sequence[tuple[ir.Node, ir.Value]]
) -> Iterator[tuple[ir.Node, ir.Node]]:
    """Readers of weights that changed a little: of one type and shape, and each nearer to the other than to any third one."""
    classes: dict[Hashable, _Class] = defaultdict(lambda: _Class(([], []), ([], [])))
    for side, (flow, places) in enumerate(((a, ours), (b, theirs))):
        for node, value in places:
            found = classes[weight_type(flow, value)]
            found.nodes[side].append(node)
            found.directions[side].append(flow.direction(value))
    for (one, other), (mine, its) in classes.values():
        if mine and its:
            cosines = np.abs(np.stack(mine) @ np.stack(its).T)
            best, back = cosines.argmax(1), cosines.argmax(0)
            yield from ((node, other[best[n]]) for n, node in enumerate(one) if back[best[n]] == n and cosines[n, best[n]] > _ALIKE)

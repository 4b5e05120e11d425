"""Layout: where the nodes of a graph are drawn, in layers by data flow.

Layers by longest paths, order within them by barycenters: Sugiyama, Tagawa and Toda, 1981. A layout in the browser takes minutes
for thousands of nodes; this takes a second.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

_SWEEPS = 6
_ACROSS = 190
_DOWN = 70


def layered(nodes: Sequence[str], edges: Sequence[tuple[str, str]]) -> dict[str, tuple[int, int]]:
    """Places nodes from top to bottom; O(edges) and a sort of each layer, in six sweeps.

    Args:
        nodes: in an order in which each follows those that it depends on.
        edges: from, to; both among the nodes.

    Returns:
        Coordinates by node, in pixels.
    """
    before: dict[str, list[str]] = {node: [] for node in nodes}
    after: dict[str, list[str]] = {node: [] for node in nodes}
    for tail, head in edges:
        after[tail].append(head)
        before[head].append(tail)
    depth: dict[str, int] = {}
    for node in nodes:
        depth[node] = max((depth[maker] + 1 for maker in before[node]), default=0)
    for node in reversed(nodes):  # what has no input stands just above who reads it, not at the top
        if not before[node] and after[node]:
            depth[node] = max(min(depth[user] for user in after[node]) - 1, 0)
    layers: list[list[str]] = [[] for _ in range(max(depth.values(), default=-1) + 1)]
    for node in nodes:
        layers[depth[node]].append(node)
    place = {node: float(index - (len(layer) - 1) / 2) for layer in layers for index, node in enumerate(layer)}
    for sweep in range(_SWEEPS):
        neighbours = before if sweep % 2 == 0 else after
        for layer in layers if sweep % 2 == 0 else reversed(layers):
            _order(layer, neighbours, place)
    return {node: (round(place[node] * _ACROSS), depth[node] * _DOWN) for node in nodes}


def _order(layer: list[str], neighbours: Mapping[str, Sequence[str]], place: dict[str, float]) -> None:
    """Orders a layer by the mean place of each node's neighbours, and keeps nodes apart."""
    wish = {node: sum(place[each] for each in near) / len(near) if (near := neighbours[node]) else place[node] for node in layer}
    layer.sort(key=lambda node: wish[node])
    centre = sum(wish.values()) / len(layer) if layer else 0.0
    right = -float("inf")
    for node in layer:
        right = place[node] = max(wish[node], right + 1)
    shift = centre - sum(place[node] for node in layer) / len(layer) if layer else 0.0
    for node in layer:
        place[node] += shift

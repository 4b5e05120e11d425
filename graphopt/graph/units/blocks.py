"""Blocks: coupled channels as a person would name them, such as the heads of one attention or the stream of a stage."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import networkx as nx
import numpy as np
import onnx_ir as ir

from graphopt.graph.layers import Layer, Layout, layer_of
from graphopt.graph.units.analysis import Analysis
from graphopt.graph.units.ties import Components
from graphopt.graph.view import operator_of

Array = np.ndarray[Any, Any]
Kind = Literal["attention", "residual", "feed-forward", "channels"]
Role = Literal["makes", "uses", "follows"]

_OUT_AXIS = {Layout.CONV: 0, Layout.CONV_TRANSPOSE: 1, Layout.OUT_IN: -2, Layout.IN_OUT: -1}
_SEES_HEADS = frozenset({"Softmax", "Attention", "com.microsoft::MultiHeadAttention", "com.microsoft::GroupQueryAttention"})


@dataclass(frozen=True)
class Site:
    """An axis of a constant that a node reads.

    Attributes:
        node: the node.
        index: which of its inputs.
        axis: of the constant.
        role: the node makes the channels (a layer's outputs, an embedding), uses them up (what a layer sums over), or follows
            what others make of them (biases, scales).
    """

    node: ir.Node
    index: int
    axis: int
    role: Role

    def __str__(self) -> str:
        return f"{operator_of(self.node)} {self.node.name} {self.role} them"


@dataclass(frozen=True, eq=False)
class Block:
    """Components that stand at the same sites: what one would prune to another width.

    Attributes:
        name: such as "layer 3 feed-forward"; unique in the model.
        kind: what it is.
        sites: where its channels are stored, in order of execution.
        places: for each site, the indices of each component: ``[components, indices]``.
    """

    name: str
    kind: Kind
    sites: tuple[Site, ...]
    places: tuple[Array, ...]

    @property
    def count(self) -> int:
        """How many components there are: each can go by itself."""
        return len(self.places[0])

    @property
    def width(self) -> int:
        """How many channels of a layer go with one component: those of a head, else one."""
        in_layers = [
            places.shape[1]
            for site, places in zip(self.sites, self.places, strict=True)
            if site.role != "follows" and site.node.op_type != "Gather"
        ]
        return int(min(in_layers, default=1))

    def __str__(self) -> str:
        what = f"{self.count} heads of {self.width}" if self.kind == "attention" else f"{self.count} channels"
        return f"{self.name}: {what}" + (f" of {self.width}" if self.kind != "attention" and self.width > 1 else "")


@dataclass(frozen=True)
class Pin:
    """Channels of a layer that must stay.

    Attributes:
        layer: the layer's name.
        role: whether the layer makes or uses them.
        count: how many.
        reason: the first cause that was found: an operator and a node, or an output.
    """

    layer: str
    role: Role
    count: int
    reason: str


@dataclass(frozen=True)
class Couplings:
    """What can be removed from a model, and what cannot and why.

    Attributes:
        blocks: in order of execution.
        pins: channels of layers that must stay.
        analysis: the units of all axes.
        components: which of them go together.
    """

    blocks: tuple[Block, ...]
    pins: tuple[Pin, ...]
    analysis: Analysis = field(repr=False)
    components: Components = field(repr=False)

    def graph(self) -> nx.Graph:
        """Blocks and the nodes that store their channels, with ``role``, ``kind`` and ``count`` as attributes."""
        graph = nx.Graph()
        for block in self.blocks:
            graph.add_node(block.name, bipartite="block", kind=block.kind, count=block.count, width=block.width)
            for site in block.sites:
                graph.add_node(site.node.name, bipartite="node", operator=operator_of(site.node))
                graph.add_edge(block.name, site.node.name, role=site.role)
        return graph


def couplings_of(model: ir.Model) -> Couplings:
    """Finds which channels of a model's main graph only go together, and which must stay.

    Sound for any graph: what an operator without a rule touches stays. Nodes must have names of their own. Reads small constants and
    shapes only.

    Args:
        model: stays as it is; best after the exact passes, which write lengths as constants.
    """
    analysis = Analysis(model)
    components = analysis.ties.components()
    by_component: dict[int, list[tuple[Site, Array]]] = defaultdict(list)
    pins: list[Pin] = []
    for (node, index), axes in analysis.uses.items():
        layer = layer_of(node)
        for axis, units in enumerate(axes):
            if units is None:
                continue
            labels = components.labels[units]
            site = Site(node, index, axis, _role(node, index, axis, len(axes), layer))
            pins.extend(_pins(site, labels, components))
            for label, indices in _places(labels, components):
                by_component[label].append((site, indices))
    grouped: dict[tuple[tuple[Site, int], ...], list[int]] = defaultdict(list)
    for label, found in by_component.items():
        grouped[tuple((site, len(indices)) for site, indices in found)].append(label)
    traits = _Traits(model, analysis, components)
    names = _Names()
    blocks = []
    for signature, members in grouped.items():
        sites = tuple(site for site, _ in signature)
        if not any(site.role == "makes" for site in sites):
            continue
        places = tuple(np.stack([by_component[member][i][1] for member in members]) for i in range(len(sites)))
        kind = traits.kind(members[0], sites)
        blocks.append(Block(names.of(kind, sites), kind, sites, places))
    return Couplings(tuple(blocks), tuple(pins), analysis, components)


class _Traits:
    """What the values say of a component: whether a softmax sees it as heads, whether a sum joins two streams of it."""

    def __init__(self, model: ir.Model, analysis: Analysis, components: Components) -> None:
        self.heads: set[int] = set()
        self.streams: set[int] = set()
        for node in model.graph:
            if operator_of(node) in _SEES_HEADS:
                self.heads |= _labels(analysis, components, node.inputs[0])
            elif node.op_type in ("Add", "Sum"):
                computed = [value for value in node.inputs if value is not None and value.producer() is not None]
                if len(computed) > 1:
                    self.streams |= set.intersection(*(_labels(analysis, components, value) for value in computed))

    def kind(self, label: int, sites: tuple[Site, ...]) -> Kind:
        if label in self.heads:
            return "attention"
        if label in self.streams:
            return "residual"
        layers = [operator_of(site.node) for site in sites if site.role != "follows"]
        return "channels" if any("Conv" in layer for layer in layers) else "feed-forward"


class _Names:
    """Numbers the blocks of each kind."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    def of(self, kind: Kind, sites: tuple[Site, ...]) -> str:
        if kind == "channels":
            maker = next(site.node.name for site in sites if site.role == "makes")
            self._counts[f"channels of {maker}"] += 1
            number = self._counts[f"channels of {maker}"]
            return f"channels of {maker}" + (f" ({number})" if number > 1 else "")
        number = self._counts[kind]
        self._counts[kind] += 1
        return f"stage {number} residual" if kind == "residual" else f"layer {number} {kind}"


def _labels(analysis: Analysis, components: Components, value: ir.Value | None) -> set[int]:
    axes = None if value is None else analysis.axes.get(value)
    return {int(label) for units in axes or () if units is not None for label in np.unique(components.labels[units])}


def _places(labels: Array, components: Components) -> Iterator[tuple[int, Array]]:
    """The components that may go, with their indices along an axis."""
    order = np.argsort(labels, kind="stable")
    found, starts = np.unique(labels[order], return_index=True)
    for label, places in zip(found.tolist(), np.split(order, starts[1:]), strict=True):
        if not components.stays[label]:
            yield label, places


def _pins(site: Site, labels: Array, components: Components) -> Iterator[Pin]:
    if site.role == "follows":
        return
    staying = labels[components.stays[labels]]
    reasons = Counter(components.reasons[label] for label in staying.tolist())
    for reason, count in reasons.items():
        yield Pin(site.node.name or "", site.role, count, reason)


def _role(node: ir.Node, index: int, axis: int, rank: int, layer: Layer | None) -> Role:
    if node.op_type == "Gather" and index == 0:
        return "makes"
    if layer is None or layer.index != index:
        return "follows"
    if axis == _OUT_AXIS[layer.layout] % rank:
        return "makes"
    return "uses" if _contracts(layer, axis, rank) else "follows"


def _contracts(layer: Layer, axis: int, rank: int) -> bool:
    """Whether an axis of a layer's weight is summed over; kernel and batch axes are not channels."""
    if layer.layout in (Layout.CONV, Layout.CONV_TRANSPOSE):
        return axis == 1 - _OUT_AXIS[layer.layout]
    return axis >= rank - 2


__all__ = ["Block", "Couplings", "Kind", "Pin", "Site", "couplings_of"]

"""Pairing: which node of one model is which of another."""

from __future__ import annotations

import difflib
import heapq
import itertools
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence

import onnx_ir as ir

from graphopt.graph.difference.flow import TELLING, Flow
from graphopt.graph.view import operator_of

Key = Callable[[ir.Node, int], Hashable | None]
"""Of a node and the number of its model, 0 or 1; None for a node that has no such key."""

_LEAST = 1.0
"""Likeness below which neighbours of pairs are not paired."""
_ACROSS = 2.0
"""The same for nodes that are not neighbours of a pair."""
_REACH = 3
"""Steps across nodes without counterparts."""
_FEW = 8
"""Readers of a value that are looked at from afar."""


class Pairing:
    """Pairs of nodes of two models, found so far.

    Attributes:
        nodes: of the first model, each with its counterpart in the second.
        back: the same the other way round.

    Args:
        a: the first model.
        b: the second model.
    """

    def __init__(self, a: Flow, b: Flow) -> None:
        self.nodes: dict[ir.Node, ir.Node] = {}
        self.back: dict[ir.Node, ir.Node] = {}
        self._flows = a, b
        self._waiting: list[tuple[float, int, int, ir.Node, ir.Node]] = []
        self._count = itertools.count()
        self._order = {node: number for flow in (a, b) for number, node in enumerate(flow.nodes)}

    def pair_in_order(self, key: Key) -> None:
        """Pairs what shares a key in order, where as many nodes of both models have it: for keys of nodes that compute the same."""
        for ours, theirs in self._classes(key):
            if len(ours) == len(theirs):
                for one, other in zip(ours, theirs, strict=True):
                    self._join(one, other)

    def pair_single(self, key: Key) -> None:
        """Pairs two nodes that share a key with no third one."""
        for ours, theirs in self._classes(key):
            if len(ours) == len(theirs) == 1:
                self._join(ours[0], theirs[0])

    def _classes(self, key: Key) -> Iterable[tuple[list[ir.Node], list[ir.Node]]]:
        classes: dict[Hashable, tuple[list[ir.Node], list[ir.Node]]] = defaultdict(lambda: ([], []))
        for side, (flow, paired) in enumerate(zip(self._flows, (self.nodes, self.back), strict=True)):
            for node in flow.nodes:
                found = None if node in paired else key(node, side)
                if found is not None:
                    classes[found][side].append(node)
        return classes.values()

    def pair_sequences(self, key: Key) -> None:
        """Pairs what lies in the same order between pairs: the longest common subsequence of all nodes that have a key."""
        nodes: tuple[list[ir.Node], list[ir.Node]] = [], []
        tokens: tuple[list[Hashable], list[Hashable]] = [], []
        for side, flow in enumerate(self._flows):
            for node in flow.nodes:
                found = key(node, side)
                if found is not None:
                    nodes[side].append(node)
                    first = node if side == 0 else self.back.get(node)
                    tokens[side].append(first if first in self.nodes else found)
        for start, other, length in difflib.SequenceMatcher(None, *tokens, autojunk=False).get_matching_blocks():
            for one, twin in zip(nodes[0][start : start + length], nodes[1][other : other + length], strict=True):
                if one not in self.nodes:
                    self._join(one, twin)

    def grow(self) -> None:
        """Pairs neighbours of pairs, the likeliest first."""
        self._offer(self._at_ends())
        for pair in list(self.nodes.items()):
            self._offer(self._neighbours(*pair))
        self._take()

    def grow_across(self, kin: Iterable[tuple[ir.Node, ir.Node]]) -> None:
        """Pairs what lies behind nodes without counterparts, as seen from pairs and from nodes of another operator that are akin."""
        for one, other in [*self.nodes.items(), *kin]:
            for after in (True, False):
                self._offer(self._best(self._beyond(0, one, after), self._beyond(1, other, after)))
        self._take()

    def are_lone(self, value: ir.Value, its: ir.Value) -> bool:
        """Whether nodes without counterparts make both of two values."""
        return self._is_lone(0, value.producer()) and self._is_lone(1, its.producer())

    def _is_lone(self, side: int, node: ir.Node | None) -> bool:
        return node in self._flows[side].inputs and node not in (self.nodes, self.back)[side]

    def _beyond(self, side: int, node: ir.Node, after: bool) -> list[ir.Node]:
        """Nodes without counterparts that follow a node, or lead to it, with nothing but such nodes between; at most three steps away."""
        flow = self._flows[side]
        found: dict[ir.Node, None] = {}
        edge = [node]
        for _ in range(_REACH):
            if after:
                near = [user for each in edge for value in each.outputs for user, _ in flow.users.get(value, ())[:_FEW]]
            else:
                values = (value for each in edge for value in flow.inputs[each] if value is not None)
                near = [maker for value in values if (maker := value.producer()) is not None]
            edge = [each for each in dict.fromkeys(near) if each not in found and self._is_lone(side, each)]
            found.update(dict.fromkeys(edge))
        return list(found)

    def _best(self, ours: Sequence[ir.Node], theirs: Sequence[ir.Node]) -> Iterator[tuple[ir.Node, ir.Node]]:
        """Pairs that are likelier than all others of either node."""
        pairs = [(self._likeness(x, y), x, y) for x in ours for y in theirs if operator_of(x) == operator_of(y)]
        for likeness, one, other in pairs:
            rivals = (each for each, x, y in pairs if (x is one) != (y is other))
            if likeness >= _ACROSS and likeness > max(rivals, default=0.0):
                yield one, other

    def _take(self) -> None:
        """Pairs what was offered, the likeliest first, and offers the neighbours of each new pair."""
        while self._waiting:
            likeness, distance, number, one, other = heapq.heappop(self._waiting)
            if one in self.nodes or other in self.back:
                continue
            now = -self._likeness(one, other)
            if now > likeness:  # pairs made meanwhile speak against it: others may be better
                heapq.heappush(self._waiting, (now, distance, number, one, other))
            elif now <= -_LEAST:
                self._join(one, other)
                self._offer(self._neighbours(one, other))

    def _offer(self, candidates: Iterable[tuple[ir.Node, ir.Node]]) -> None:
        for one, other in candidates:
            if one not in self.nodes and other not in self.back and operator_of(one) == operator_of(other):
                distance = abs(self._order[one] - self._order[other])
                heapq.heappush(self._waiting, (-self._likeness(one, other), distance, next(self._count), one, other))

    def _at_ends(self) -> Iterator[tuple[ir.Node, ir.Node]]:
        """Those that read the same input of the model, or make the same output."""
        a, b = self._flows
        twins = {tag: value for value, tag in b.sources.items()}
        for value, tag in a.sources.items():
            if tag in twins:
                yield from self._readers(value, twins[tag])
        for value, its in zip(a.outputs, b.outputs, strict=False):
            makers = value.producer(), its.producer()
            if makers[0] in a.inputs and makers[1] in b.inputs:
                yield makers  # type: ignore[misc]  # both are nodes of the flows, so neither is None

    def _join(self, one: ir.Node, other: ir.Node) -> None:
        self.nodes[one], self.back[other] = other, one

    def _neighbours(self, one: ir.Node, other: ir.Node) -> Iterator[tuple[ir.Node, ir.Node]]:
        a, b = self._flows
        for value, its in zip(a.inputs[one], b.inputs[other], strict=False):
            makers = (value.producer() if value is not None else None), (its.producer() if its is not None else None)
            if makers[0] in a.inputs and makers[1] in b.inputs:
                yield makers  # type: ignore[misc]  # both are nodes of the flows, so neither is None
        for value, its in zip(one.outputs, other.outputs, strict=False):
            yield from self._readers(value, its)

    def _readers(self, value: ir.Value, its: ir.Value) -> Iterator[tuple[ir.Node, ir.Node]]:
        for user, position in self._flows[0].users.get(value, ()):
            yield from ((user, twin) for twin, at in self._flows[1].users.get(its, ()) if at == position)

    def _likeness(self, one: ir.Node, other: ir.Node) -> float:
        """What speaks for a pair: neighbours that are paired, equal constants, attributes and ranks, and last the same name."""
        a, b = self._flows
        score = 0.0
        for value, its in itertools.zip_longest(a.inputs[one], b.inputs[other]):
            score += self._same_input(value, its)
        for value, its in zip(one.outputs, other.outputs, strict=False):
            ours, theirs = a.users.get(value, ()), set(b.users.get(its, ()))
            score += 2 * sum((self.nodes.get(user), position) in theirs for user, position in ours)
            score += 2 * (a.sinks.get(value) is not None and a.sinks.get(value) == b.sinks.get(its))
            score -= value.shape is not None and its.shape is not None and len(value.shape) != len(its.shape)
        return score + (a.attributes(one) == b.attributes(other)) + 0.5 * (one.name == other.name)

    def _same_input(self, value: ir.Value | None, its: ir.Value | None) -> float:
        a, b = self._flows
        if value is None or its is None:
            return 0.0
        ours, theirs = a.constant(value), b.constant(its)
        if ours is not None and theirs is not None:
            return 0.5 + self._similarity(value, its) if ours.shape == theirs.shape and ours.dtype == theirs.dtype else 0.0
        if value in a.sources and its in b.sources:
            return 2.0 * (a.sources[value] == b.sources[its])
        makers = value.producer(), its.producer()
        if makers[0] in self.nodes and self.nodes[makers[0]] is makers[1] and value.index() == its.index():
            return 2.0
        if makers[0] in self.nodes or makers[1] in self.back:
            origins = self._origin(0, value), self._origin(1, its)
            return 1.0 if origins[0] in self.nodes and self.nodes[origins[0]] is origins[1] else -1.0
        return 0.0

    def _origin(self, side: int, value: ir.Value) -> ir.Node | None:
        """Who makes a value, but for nodes of one input that have no counterpart."""
        node = value.producer()
        for _ in range(_REACH):
            if node is None or not self._is_lone(side, node):
                break
            flow = self._flows[side]
            read = [each for each in flow.inputs[node] if each is not None and flow.constant(each) is None]
            node = next((each.producer() for each in read), None) if len(read) == 1 else None
        return node

    def _similarity(self, value: ir.Value, its: ir.Value) -> float:
        """1 for equal constants, else up to 1 by the angle between weights, whatever they are scaled by; numbers have no such angle."""
        a, b = self._flows
        if a.digest(value) == b.digest(its):
            return 1.0
        tensor = a.constant(value)
        is_weight = tensor is not None and tensor.size >= TELLING and tensor.dtype.is_floating_point()
        return abs(float(a.direction(value) @ b.direction(its))) if is_weight else 0.0

"""A line: a model cut into segments that samples go through one after the other, layers that may change alone in theirs."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.errors import StatisticsError
from graphopt.graph.edits import Names, nested
from graphopt.graph.layers import Layer, layer_of, layers_of
from graphopt.graph.scratch import scratch
from graphopt.runtime.memory import give_back
from graphopt.runtime.session import Session, SessionOptions, load_session, native_session_options
from graphopt.runtime.statistics.chain import describe, prepared

Array = np.ndarray[Any, Any]
State = Mapping[str, Array]
"""What one sample has made so far and later segments, or the caller, need: arrays by name."""


@dataclass(frozen=True)
class _Segment:
    """Neighbouring nodes.

    Attributes:
        reads: names of what they are fed.
        makes: names of what they make and later ones need.
        keeps: names of all that later ones need.
    """

    reads: Sequence[str]
    makes: Sequence[str]
    keeps: frozenset[str]


class Line:
    """Runs samples through a model step by step; each node runs once a sample, and all sessions together hold the model's weights once.

    Segments are cut from the model when they are first run, so that weights that were changed before count.

    Args:
        model: a ``prepared`` one.
        stops: names of nodes that get a segment of their own.
        options: how to run.
    """

    def __init__(self, model: ir.Model, stops: Collection[str], options: SessionOptions) -> None:
        self._model, self._options = model, options
        nodes = list(model.graph)
        places = [place for place, node in enumerate(nodes) if node.name in stops]
        bounds = sorted({0, len(nodes), *places, *(place + 1 for place in places)})
        self._segments = list(_segments(model.graph, nodes, bounds))
        starts = {start: number for number, start in enumerate(bounds[:-1])}
        self.steps = {nodes[place].name or "": starts[place] for place in places}
        self.output_names = [value.name or "" for value in model.graph.outputs]
        self._sessions: dict[int, Session | None] = {}

    def __len__(self) -> int:
        return len(self._segments)

    def run(self, state: State, first: int, last: int, instead: Mapping[int, Session] | None = None) -> dict[str, Array]:
        """Takes one sample through the segments ``first`` to ``last - 1``.

        Args:
            state: of the sample before the first of them.
            first: number of a segment.
            last: number of a segment, or of segments.
            instead: sessions that stand for segments.

        Raises:
            StatisticsError: something that is no tensor would have to wait.
            SessionError: a segment does not load or run.
        """
        now = dict(state)
        for number in range(first, last):
            segment = self._segments[number]
            session = (instead or {}).get(number) or self._session(number, now)
            made = {} if session is None else session.run({name: now[name] for name in segment.reads})
            now = {name: array for name, array in (now | made).items() if name in segment.keeps}
        return now

    def with_weight(self, layer: str, weight: Array, state: State) -> Session:
        """A session for the segment of a layer with another weight.

        Args:
            layer: name of a stop.
            weight: ``W [groups, out, in]`` of the same shape.
            state: of a sample before it.
        """
        piece = self._piece(self.steps[layer], state)
        found = layer_of(next(node for node in piece.graph if node.name == layer))
        assert found is not None, "a stop is a layer"
        with scratch(None):  # it is gone before the model is
            found.assign(weight, Names(piece))
        return _open(piece, self._options)

    def forget(self, until: int | None = None) -> None:
        """Closes the sessions of all segments, or of those before one; what runs again opens its own again."""
        for number in [number for number in self._sessions if until is None or number < until]:
            del self._sessions[number]
        give_back()

    def _session(self, number: int, state: State) -> Session | None:
        if number not in self._sessions:
            makes = self._segments[number].makes
            self._sessions[number] = _open(self._piece(number, state), self._options) if makes else None
        return self._sessions[number]

    def _piece(self, number: int, state: State) -> ir.Model:
        segment = self._segments[number]
        graph = ir.convenience.extract(self._model.graph, list(segment.reads), list(segment.makes))
        for value in graph.inputs:
            array = state[value.name or ""]
            if not isinstance(array, np.ndarray):
                raise StatisticsError(f"value {value.name!r} is no tensor: it cannot wait between two layers")
            describe(value, array)
        functions = [function.clone() for function in self._model.functions.values()]
        return ir.Model(graph, ir_version=self._model.ir_version, functions=functions)


def in_turn(options: SessionOptions) -> SessionOptions:
    """Options of sessions that run one after the other: idle threads of one would take the cores that the next runs on."""
    return replace(options, config={"session.intra_op.allow_spinning": "0", **options.config})


def data_of(layer: Layer, state: State) -> Array:
    """What a layer multiplies its weight with, of one sample: what waits before it, or a constant.

    Args:
        layer: of the model that the state is of.
        state: of the sample before the layer.
    """
    found = state.get(layer.input.name or "")
    if found is not None:
        return found
    tensor = ir.convenience.get_const_tensor(layer.input)
    assert tensor is not None, "what is not computed is constant"
    return tensor.numpy()


def shapes_of_layers(model: ir.Model, state: State, options: SessionOptions) -> dict[str, tuple[int, ...]]:
    """The shapes of the weights, inputs and outputs of a main graph's layers on one sample, by name.

    Args:
        model: stays as it is.
        state: the sample.
        options: how to run.
    """
    model = prepared(model)
    layers = [layer for layer in layers_of(model) if layer.graph is model.graph]
    line, shapes, at = Line(model, [layer.name for layer in layers], options), dict[str, tuple[int, ...]](), 0
    for layer in layers:
        step = line.steps[layer.name]
        before = line.run(state, at, step)
        state, at = line.run(before, step, step + 1), step + 1
        line.forget()
        shapes[layer.value.name or ""] = layer.stored_shape
        shapes[layer.input.name or ""] = data_of(layer, before).shape
        shapes |= {name: array.shape for name, array in (before | state).items() if isinstance(array, np.ndarray)}
    return shapes


def _segments(graph: ir.Graph, nodes: Sequence[ir.Node], bounds: Sequence[int]) -> Iterator[_Segment]:
    last_use: dict[ir.Value, int] = {}
    for place, node in enumerate(nodes):
        last_use |= dict.fromkeys(_used(node), place)
    last_use |= dict.fromkeys(graph.outputs, len(nodes))
    made: set[ir.Value] = set(graph.inputs)
    for first, last in pairwise(bounds):
        own = [value for node in nodes[first:last] for value in node.outputs]
        reads = dict.fromkeys(value for node in nodes[first:last] for value in _used(node) if value in made)
        made.update(own)
        makes = [value for value in own if last_use.get(value, -1) >= last]
        keeps = frozenset(value.name or "" for value in made if last_use.get(value, -1) >= last)
        yield _Segment([value.name or "" for value in reads], [value.name or "" for value in makes], keeps)


def _used(node: ir.Node) -> Iterator[ir.Value]:
    return (value for user in (node, *nested(node)) for value in user.inputs if value is not None)


def _open(model: ir.Model, options: SessionOptions) -> Session:
    options = in_turn(options)
    native = native_session_options("all", options)
    native.enable_cpu_mem_arena = False  # each segment would keep its own largest need for good
    native.enable_mem_pattern = False  # samples differ in shape: a pattern for each would stay in memory
    return load_session(model, native, options)

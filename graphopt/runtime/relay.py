"""Relays: samples go through a model leg by leg, and what a layer puts out is changed before they go on."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.graph.edits import nested
from graphopt.runtime.session import Feed, Session, SessionOptions, load_session, native_session_options
from graphopt.runtime.shelf import Shelf
from graphopt.runtime.statistics.chain import describe, prepared

Array = np.ndarray[Any, Any]
Means = Mapping[str, Array]

MEMORY = 320 * 2**20
"""Bytes of activations that wait in memory between two legs; what is more waits on the disk."""

LAST = -1
"""The last axis, however many there are."""

_AXES_AS_INPUT = 18


@dataclass(frozen=True)
class Stop:
    """A value at which samples stop.

    Attributes:
        value: its name.
        axis: that of its channels: 1 of three or more, or :data:`LAST`.
    """

    value: str
    axis: int


class _Mean:
    """The mean of a value, channel by channel, over samples of any shape."""

    def __init__(self) -> None:
        self._total: Array | float = 0.0
        self._count = 0

    def add(self, mean: Array, count: int) -> None:
        if count:
            self._total, self._count = self._total + mean.astype(np.float64) * count, self._count + count

    @property
    def mean(self) -> Array:
        return np.asarray(self._total / max(self._count, 1))


def channel_means(model: ir.Model, stops: Sequence[Stop], feeds: Iterable[Feed], options: SessionOptions) -> Means:
    """The mean of each value over all samples, positions weighing the same: ``[channels]`` float64 by name.

    Args:
        model: stays as it is; the means are taken inside the runtime.
        stops: the values, outputs of nodes of the main graph.
        feeds: the samples.
        options: how to run.

    Raises:
        SessionError: the model does not load or does not run with a feed.
    """
    copy = prepared(model)
    values = {value.name: value for node in copy.graph for value in node.outputs}
    copy.graph.outputs.clear()
    for index, stop in enumerate(stops):
        _append_mean(copy.graph, values[stop.value], stop.axis, index)
    session = _open(copy, options)
    means = {stop.value: _Mean() for stop in stops}
    for feed in feeds:
        found = session.run(feed)
        for index, stop in enumerate(stops):
            mean, shape = found[_name("mean", index)], found[_name("shape", index)]
            means[stop.value].add(mean, int(np.prod(shape)) // max(mean.size, 1))
    return {name: mean.mean for name, mean in means.items()}


def relay(
    model: ir.Model,
    stops: Sequence[Stop],
    feeds: Iterable[Feed],
    shifts_for: Callable[[Means], Means],
    options: SessionOptions,
    memory: int = MEMORY,
) -> None:
    """Runs samples from stop to stop, each node once a sample; all samples reach a stop before any goes on.

    Args:
        model: stays as it is.
        stops: where samples stop; those that do not depend on each other are reached in one leg.
        feeds: the samples.
        shifts_for: told the means ``[channels]`` of the stops that a leg reached; returns what is added to these values before
            the next leg, ``[channels]`` by name.
        options: how to run.
        memory: bytes; see :data:`MEMORY`.

    Raises:
        StatisticsError: something that is no tensor would have to wait.
        SessionError: the model does not load or does not run with a feed.
    """
    copy = prepared(model)
    axes = {stop.value: stop.axis for stop in stops}
    shifts: dict[str, Array] = {}
    with tempfile.TemporaryDirectory(prefix="graphopt-") as folder:
        waiting = Shelf(feeds, Path(folder) / "waiting", memory)
        for leg in _legs(copy.graph, axes):
            means = {name: _Mean() for name in leg.stops}
            session = None
            for sample in range(len(waiting)):
                feed = {name: _shifted(waiting.read(sample, name), shifts.get(name), axes.get(name, LAST)) for name in leg.entering}
                session = session or _open(_part(copy, leg, feed), options)
                found = session.run(feed)
                for name, mean in means.items():
                    mean.add(*_mean_of(found[name], axes[name]))
                waiting.keep(sample, leg.leaving, found)
            shifts |= shifts_for({name: mean.mean for name, mean in means.items()})


@dataclass(frozen=True)
class _Leg:
    """What lies between stops.

    Attributes:
        entering: names of what its nodes read.
        made: names of what its nodes make and later legs read.
        leaving: names of all that later legs read.
        stops: names of the stops that it ends at.
    """

    entering: Sequence[str]
    made: Sequence[str]
    leaving: Sequence[str]
    stops: Sequence[str]


def _legs(graph: ir.Graph, stops: Collection[str]) -> Iterator[_Leg]:
    """Each leg has the nodes that depend on the same number of stops one after the other; what no stop needs is left out."""
    levels: dict[ir.Value, int] = dict.fromkeys(graph.inputs, 0)
    for node in graph:
        known = [levels[value] + (value.name in stops) for value in _used(node) if value in levels]
        is_stop = any(value.name in stops for value in node.outputs)
        if known or is_stop:  # what else constants alone determine is computed again in each leg that reads it
            levels |= dict.fromkeys(node.outputs, max(known, default=0))
    needed = {value for value in levels if value.name in stops}
    readers: dict[ir.Value, set[int]] = {value: set() for value in levels}
    for node in reversed(graph):
        if needed.isdisjoint(node.outputs):
            continue
        for value in _used(node):
            if value in levels:
                needed.add(value)
                readers[value].add(levels[node.outputs[0]])
    inputs = set(graph.inputs)
    for number in range(1 + max((levels[value] for value in needed), default=-1)):
        leaving = [value for value, legs in readers.items() if levels[value] <= number and any(leg > number for leg in legs)]
        yield _Leg(
            [value.name or "" for value, legs in readers.items() if number in legs and (levels[value] < number or value in inputs)],
            [value.name or "" for value in leaving if levels[value] == number and value not in inputs],
            [value.name or "" for value in leaving],
            [value.name or "" for value in needed if value.name in stops and levels[value] == number],
        )


def _used(node: ir.Node) -> Iterator[ir.Value]:
    return (value for user in (node, *nested(node)) for value in user.inputs if value is not None)


def _part(model: ir.Model, leg: _Leg, feed: Feed) -> ir.Model:
    """A leg as a model; its inputs are described as the first sample has them."""
    graph = ir.convenience.extract(model.graph, list(leg.entering), list(dict.fromkeys((*leg.stops, *leg.made))))
    for value in graph.inputs:
        describe(value, feed[value.name or ""])
    return ir.Model(graph, ir_version=model.ir_version, functions=[function.clone() for function in model.functions.values()])


def _shifted(array: Array, shift: Array | None, axis: int) -> Array:
    if shift is None:
        return array
    shape = [1] * array.ndim
    shape[axis] = -1
    moved: Array = array + shift.reshape(shape).astype(array.dtype)
    return moved


def _mean_of(array: Array, axis: int) -> tuple[Array, int]:
    others = tuple(other for other in range(array.ndim) if other != axis % array.ndim)
    return array.mean(axis=others, dtype=np.float64), array.size // max(array.shape[axis], 1)


def _append_mean(graph: ir.Graph, value: ir.Value, axis: int, index: int) -> None:
    """Adds two outputs: the mean of a value along all axes but one, and its shape."""
    cast = _added(graph, "cast", index, ir.node("Cast", [value], {"to": ir.DataType.FLOAT.value}))
    if axis == LAST:
        rows, others = _added(graph, "rows", index, ir.node("Flatten", [cast], {"axis": LAST})), [0]
    else:
        lengths = _constant(graph, "lengths", index, [0, 0, -1])
        rows, others = _added(graph, "rows", index, ir.node("Reshape", [cast, lengths])), [0, 2]
    if graph.opset_imports.get("", 1) >= _AXES_AS_INPUT:
        node = ir.node("ReduceMean", [rows, _constant(graph, "axes", index, others)], {"keepdims": 0})
    else:
        node = ir.node("ReduceMean", [rows], {"axes": others, "keepdims": 0})
    graph.outputs.append(_added(graph, "mean", index, node))
    graph.outputs.append(_added(graph, "shape", index, ir.node("Shape", [value]), ir.DataType.INT64))


def _added(graph: ir.Graph, kind: str, index: int, node: ir.Node, dtype: ir.DataType = ir.DataType.FLOAT) -> ir.Value:
    graph.append(node)
    node.outputs[0].name, node.outputs[0].type = _name(kind, index), ir.TensorType(dtype)
    return node.outputs[0]


def _constant(graph: ir.Graph, kind: str, index: int, content: list[int]) -> ir.Value:
    value = ir.val(_name(kind, index), const_value=ir.tensor(np.array(content, np.int64), name=_name(kind, index)))
    graph.register_initializer(value)
    return value


def _name(kind: str, index: int) -> str:
    return f"graphopt_{kind}:{index}"


def _open(model: ir.Model, options: SessionOptions) -> Session:
    native = native_session_options("all", options)
    native.enable_cpu_mem_arena = False  # each leg would keep its own largest need for good
    native.enable_mem_pattern = False  # samples differ in shape: a pattern for each would stay in memory
    return load_session(model, native, options)

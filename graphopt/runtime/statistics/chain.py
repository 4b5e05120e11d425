"""Chains: a model cut into segments that run one after the other, so that few activations are in memory at a time."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphopt.graph.edits import nested
from graphopt.graph.view import View
from graphopt.runtime.session import Feed, Session, SessionOptions, load_session, native_session_options
from graphopt.runtime.statistics.jobs import Job
from graphopt.runtime.statistics.probe import Probes

Shapes = Mapping[str, tuple[int, ...]]


@dataclass
class _Segment:
    """A part of a model.

    Attributes:
        session: runs it; None for a first segment without nodes.
        inputs: names of what it is fed.
        jobs: what is taken after it ran, each with the outputs that it wants.
        kept: names of what later segments need.
    """

    session: Session | None
    inputs: tuple[str, ...]
    jobs: Sequence[tuple[Job, Sequence[str]]]
    kept: frozenset[str]


class Chain:
    """A model prepared for some jobs: a sample goes through all segments, and each statistic is taken as soon as it can be.

    What crosses from one segment to the next is held in memory; the model runs once a sample, however many segments there are.

    Args:
        model: a :func:`prepared` one.
        jobs: what to take.
        shapes: of the values on a large sample.
        limit: bytes of activations that the jobs of one segment may need; a single job may need more.
        options: how to run.

    Raises:
        SessionError: the model does not load.
    """

    def __init__(self, model: ir.Model, jobs: Sequence[Job], shapes: Shapes, limit: int, options: SessionOptions) -> None:
        self._jobs = jobs
        fed = {value.name or "" for value in model.graph.inputs}
        by_source: dict[str, list[Job]] = {}
        for job in jobs:
            by_source.setdefault(job.source, []).append(job)
        first = [(job, [job.source]) for job in jobs if job.source in fed]
        cuts = list(_cuts(model, {source: sum(job.passing for job in listed) for source, listed in by_source.items()}, limit))
        self._segments = [_Segment(None, (), first, frozenset(fed))] if first else []
        for part in cuts:
            inside = [job for source in part.made for job in by_source.get(source, ())]
            self._segments.append(_segment(model, part, inside, shapes, options))

    def __len__(self) -> int:
        return len(self._segments)

    def run(self, feed: Feed, workers: Executor) -> None:
        """Runs one sample and takes all statistics.

        Raises:
            SessionError: the model does not run with `feed`.
        """
        live: dict[str, np.ndarray] = dict(feed)
        for segment in self._segments:
            if segment.session is not None:
                live |= segment.session.run({name: live[name] for name in segment.inputs})
            tasks = [workers.submit(job.take, [live[name] for name in names]) for job, names in segment.jobs]
            for task in tasks:
                task.result()
            live = {name: array for name, array in live.items() if name in segment.kept}

    def finish(self) -> None:
        """Called after the last sample."""
        for job in self._jobs:
            job.finish()


def prepared(model: ir.Model) -> ir.Model:
    """A copy in which every constant is an initializer that cannot be fed; values know their type, vectors of sizes their length."""
    from onnx_ir.passes import common

    copy = model.clone()
    common.RemoveInitializersFromInputsPass()(copy)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(copy)
    common.ClearMetadataAndDocStringPass()(copy)
    view = View(copy)
    for node in copy.graph:
        for value in node.outputs:
            dtype = view.dtype(value)
            if value.type is None and dtype is not None:
                value.type = ir.TensorType(dtype)
            if dtype == ir.DataType.INT64 and view.rank(value) == 1 and (length := view.static_shape(value)) is not None:
                value.shape = ir.Shape(length)
    return copy


def describe(value: ir.Value, array: np.ndarray) -> None:
    """Tells the type and shape of what a part of a prepared model is fed; other samples may have other lengths.

    Args:
        value: an input of the part.
        array: what one sample feeds.
    """
    value.type = ir.TensorType(ir.DataType.from_numpy(array.dtype))
    # The runtime takes an unknown number of sizes for none; there are as many as the picture has axes.
    is_sizes = any(user.op_type == "Resize" and user.inputs[0] is not value for user in value.consumers())
    is_known = array.dtype == np.int64 and value.shape == array.shape
    value.shape = ir.Shape(array.shape if is_sizes or is_known else [None] * array.ndim)


@dataclass(frozen=True)
class _Part:
    """Where a segment begins and ends.

    Attributes:
        entering: names of what earlier segments made and it, or a later one, needs.
        leaving: names of what later segments need.
        made: names of what its nodes make.
    """

    entering: Sequence[str]
    leaving: Sequence[str]
    made: Collection[str]


def _cuts(model: ir.Model, passing: Mapping[str, int], limit: int) -> Iterator[_Part]:
    """Cuts where the wanted values would need more than `limit` bytes and all that crosses are tensors of known type."""
    nodes = list(model.graph)
    ends = [index for index, node in enumerate(nodes) if any(value.name in passing for value in node.outputs)]
    nodes = nodes[: ends[-1] + 1] if ends else []
    last_use = {
        value: index for index, node in enumerate(nodes) for user in (node, *nested(node)) for value in user.inputs if value is not None
    }
    live: dict[ir.Value, None] = dict.fromkeys(model.graph.inputs)
    entering, made, total = _names(live, last_use, -1), dict[str, None](), 0
    for index, node in enumerate(nodes):
        wanted = sum(passing.get(value.name or "", 0) for value in node.outputs)
        crossing = {value: None for value in live if last_use.get(value, -1) >= index}
        if total and total + wanted > limit and all(isinstance(value.type, ir.TensorType) and value.dtype for value in crossing):
            leaving = _names(crossing, last_use, index - 1)
            yield _Part(entering, leaving, made)
            entering, made, total = leaving, {}, 0
        total += wanted
        live = crossing | dict.fromkeys(node.outputs)
        made |= dict.fromkeys(value.name or "" for value in node.outputs)
    if nodes:
        yield _Part(entering, (), made)


def _names(values: Collection[ir.Value], last_use: Mapping[ir.Value, int], after: int) -> list[str]:
    return [value.name or "" for value in values if last_use.get(value, -1) > after]


def _segment(model: ir.Model, part: _Part, jobs: Sequence[Job], shapes: Shapes, options: SessionOptions) -> _Segment:
    made = set(part.made)
    outputs = list(dict.fromkeys([*(name for name in part.leaving if name in made), *(job.source for job in jobs)]))
    graph = ir.convenience.extract(model.graph, list(part.entering), outputs)
    for value in graph.inputs:
        shape = shapes.get(value.name or "")
        value.shape = None if shape is None else ir.Shape([None] * len(shape))
    probes = Probes(graph)
    taken = [(job, job.attach(probes) or [job.source]) for job in jobs]
    needed = {name for _, names in taken for name in names} | set(part.leaving)
    graph.outputs[:] = [value for value in graph.outputs if value.name in needed]
    functions = [function.clone() for function in model.functions.values()]
    piece = ir.Model(graph, ir_version=model.ir_version, functions=functions)
    return _Segment(_session(piece, options), tuple(value.name or "" for value in graph.inputs), taken, frozenset(part.leaving))


def _session(model: ir.Model, options: SessionOptions) -> Session:
    native = native_session_options("all", options)
    native.enable_cpu_mem_arena = False  # each segment would keep its own largest need for good
    native.enable_mem_pattern = False  # samples differ in shape: a pattern for each would stay in memory
    return load_session(model, native, options)

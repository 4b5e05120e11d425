"""Traces: exact shapes, and values, of what flows through a model's main graph, by running it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import onnx_ir as ir

from graphopt.errors import SessionError
from graphopt.runtime.session import Feed, Session, SessionOptions, open_session

_PREFIX = "graphopt_shape_of:"
_NO_TENSOR = frozenset(
    {"SequenceEmpty", "SequenceConstruct", "SequenceInsert", "SequenceErase", "SequenceMap", "SplitToSequence", "Optional", "ZipMap"}
)
_MAYBE_NO_TENSOR = frozenset({"If", "Loop", "Scan", "Identity", "OptionalGetElement"})


class ShapeTracer:
    """A model of which every tensor of the main graph reports its shape; runs with many feeds.

    Each tensor gets a ``Shape`` node, so that a run returns a few bytes a tensor however large the tensors are. The runtime's
    optimizations are off, so that nothing is fused away.

    Raises:
        SessionError: the model does not load.
    """

    def __init__(self, model: ir.Model, options: SessionOptions | None = None) -> None:
        try:
            self._session = _with_shapes(model, _certain(model) + _uncertain(model), options)
        except SessionError:
            self._session = _with_shapes(model, _certain(model), options)
        constants = model.graph.initializers.items()
        self._constants = {name: tuple(v.const_value.shape.numpy()) for name, v in constants if v.const_value is not None}

    def run(self, feed: Feed) -> dict[str, tuple[int, ...]]:
        """Shapes of all inputs, initializers and node outputs of the main graph that are tensors, by name.

        Raises:
            SessionError: the model does not run with `feed`.
        """
        outputs = self._session.run(feed)
        traced = {
            name.removeprefix(_PREFIX): tuple(int(length) for length in value)
            for name, value in outputs.items()
            if name.startswith(_PREFIX)
        }
        return self._constants | {name: array.shape for name, array in feed.items()} | traced


def trace_shapes(model: ir.Model, feed: Feed, options: SessionOptions | None = None) -> dict[str, tuple[int, ...]]:
    """Exact shapes of all tensors of the main graph for one feed; see `ShapeTracer` for several.

    Values in subgraphs and functions, sequences and optionals are left out.

    Raises:
        SessionError: the model does not load or does not run with `feed`.
    """
    return ShapeTracer(model, options).run(feed)


class ValueTracer:
    """A model of which chosen values of the main graph can be read; runs with many feeds, without the runtime's optimizations.

    Args:
        model: the model to run; it stays as it is.
        names: which values: inputs, initializers or node outputs. All of them are held in memory at once.
        options: how to run.

    Raises:
        SessionError: the main graph has no such value, or the model does not load.
    """

    def __init__(self, model: ir.Model, names: Iterable[str], options: SessionOptions | None = None) -> None:
        self._names = list(dict.fromkeys(names))
        traced = model.clone()
        self._values = _values(traced)
        unknown = [name for name in self._names if name not in self._values]
        if unknown:
            raise SessionError(f"the main graph has no value {unknown[0]!r}")
        present = {value.name for value in traced.graph.outputs}
        wanted = (self._values[name] for name in self._names if name not in present)
        traced.graph.outputs.extend(value for value in wanted if value.producer() is not None)
        self._session = open_session(traced, "none", options)

    def run(self, feed: Feed) -> dict[str, np.ndarray]:
        """The values by name.

        Raises:
            SessionError: the model does not run with ``feed``.
        """
        outputs = self._session.run(feed)
        return {name: outputs[name] if name in outputs else _given(name, self._values[name], feed) for name in self._names}


def trace_values(model: ir.Model, feed: Feed, names: Iterable[str], options: SessionOptions | None = None) -> dict[str, np.ndarray]:
    """Values of the main graph for one feed; see `ValueTracer` for several.

    Raises:
        SessionError: the main graph has no such value, or the model does not load or run.
    """
    return ValueTracer(model, names, options).run(feed)


def _given(name: str, value: ir.Value, feed: Feed) -> np.ndarray:
    if name in feed:
        return np.asarray(feed[name])
    if value.const_value is None:
        raise SessionError(f"the feed lacks {name!r}")
    return value.const_value.numpy()


def _values(model: ir.Model) -> Mapping[str, ir.Value]:
    graph = model.graph
    found = {value.name: value for value in (*graph.inputs, *graph.initializers.values()) if value.name}
    return found | {value.name: value for node in graph for value in node.outputs if value.name}


def _certain(model: ir.Model) -> list[str]:
    """Names of node outputs that are tensors for sure."""
    outputs = _node_outputs(model).items()
    return [name for name, value in outputs if isinstance(value.type, ir.TensorType) or (value.type is None and not _doubtful(value))]


def _uncertain(model: ir.Model) -> list[str]:
    """Names of node outputs whose operator may return a tensor or something else, and whose type is not known."""
    return [name for name, value in _node_outputs(model).items() if value.type is None and _doubtful(value)]


def _node_outputs(model: ir.Model) -> dict[str, ir.Value]:
    return {value.name: value for node in model.graph if node.op_type not in _NO_TENSOR for value in node.outputs if value.name}


def _doubtful(value: ir.Value) -> bool:
    producer = value.producer()
    return producer is not None and (producer.op_type in _MAYBE_NO_TENSOR or producer.domain not in ("", "ai.onnx"))


def _with_shapes(model: ir.Model, names: list[str], options: SessionOptions | None) -> Session:
    traced = model.clone()
    graph = traced.graph
    graph.opset_imports.setdefault("", 17)
    values = _values(traced)
    for name in names:
        node = ir.node("Shape", [values[name]])
        node.outputs[0].name = _PREFIX + name
        node.outputs[0].type = ir.TensorType(ir.DataType.INT64)
        graph.append(node)
        graph.outputs.append(node.outputs[0])
    return open_session(traced, "none", options)

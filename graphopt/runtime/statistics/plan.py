"""Plans: which jobs fulfil a request, which values need none of their own, and which jobs share a pass over the samples."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import onnx_ir as ir

from graphopt.errors import StatisticsError
from graphopt.graph.layers import Layer, layers_of
from graphopt.graph.view import View, operator_of
from graphopt.runtime.statistics.columns import Columns
from graphopt.runtime.statistics.histogram import SIDE, Histogram
from graphopt.runtime.statistics.jobs import FetchedLayer, FetchedValue, Job, Kept, KeptInput, ReducedValue
from graphopt.runtime.statistics.layers import LayerStatistics
from graphopt.runtime.statistics.positions import Positions
from graphopt.runtime.statistics.product import Product
from graphopt.runtime.statistics.request import FLOATS, Request
from graphopt.runtime.statistics.state import States
from graphopt.runtime.statistics.values import ValueStatistics

Shapes = Mapping[str, tuple[int, ...]]

_MOVERS = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Identity"})
"""Operators whose output holds exactly the elements of their first input."""

_RECORD_BYTES = 512
_INSIDE = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16})
"""Element types that are reduced inside the runtime; it has too few kernels for bfloat16, and float32 is too coarse for double."""


@dataclass(frozen=True)
class Limits:
    """Bytes that may be used.

    Attributes:
        gathered: by what one pass over the samples gathers.
        passing: by activations that leave the runtime at a time.
    """

    gathered: int
    passing: int


@dataclass(frozen=True)
class Side:
    """One of the models that are run.

    Attributes:
        model: a prepared one.
        shapes: of its values on a large sample.
    """

    model: ir.Model
    shapes: Shapes


@dataclass
class Pass:
    """The jobs of one pass over the samples: those of the original, which runs first, and those of the model itself."""

    before: list[Job] = field(default_factory=list)
    own: list[Job] = field(default_factory=list)


class Plan:
    """What is done to fulfil a request.

    Args:
        own: the model.
        request: what is wanted.
        limits: on memory.
        multiply: multiplies columns.
        positions: says of which columns Gram matrices are taken.
        before: the original that runs beside it, or None.

    Attributes:
        skipped: what is asked for and will not be taken, with the reason.

    Raises:
        StatisticsError: a name is not in the main graph.
    """

    def __init__(
        self, own: Side, request: Request, limits: Limits, multiply: Product, positions: Positions, before: Side | None = None
    ) -> None:
        self.skipped: dict[str, str] = {}
        self._own, self._before, self._limits, self._multiply, self._positions = own, before, limits, multiply, positions
        model = own.model
        self._view, self._states, self._shapes = View(model), States(model), own.shapes
        self._nodes: dict[str, ir.Value] = {value.name or "": value for node in model.graph for value in node.outputs}
        self._all = self._nodes | {value.name or "": value for value in (*model.graph.inputs, *model.graph.initializers.values())}
        self._values: dict[str, ValueStatistics] = {}
        self._layers: dict[str, LayerStatistics] = {}
        self._jobs: list[tuple[Job, Job | None]] = []
        self._plan_values(request)
        self._plan_layers(request.layers)

    def values(self) -> dict[str, ValueStatistics]:
        """The statistics of each value; values with the same elements share one object."""
        return self._values

    def layers(self) -> dict[str, LayerStatistics]:
        """The statistics of each layer; layers with the same unfolded input share one object."""
        return self._layers

    def passes(self) -> list[Pass]:
        """The jobs in groups that each gather no more than the limit, a single larger one excepted."""
        groups, total = [Pass()], 0
        for job, before in self._jobs:
            # What is kept of the original waits in memory until the model beside it has been run.
            held = job.held + (before.passing if before else 0)
            if groups[-1].own and total + held > self._limits.gathered:
                groups.append(Pass())
                total = 0
            total += held
            groups[-1].own.append(job)
            groups[-1].before.extend([before] if before else [])
        return groups

    def _plan_values(self, request: Request) -> None:
        shared: dict[tuple[str, int | None], ValueStatistics] = {}
        histograms = {self._root(name) for name in request.histograms}
        for name in request.all_values:
            axis = request.channels.get(name)
            source = name if axis is not None else self._root(name)
            reason = self._refusal(source)
            if reason:
                self.skipped[f"value:{name}"] = reason
                continue
            key = (source, axis)
            if key not in shared:
                shared[key] = self._plan_value(source, axis, wants_histogram=self._root(name) in histograms)
            self._values[name] = shared[key]

    def _plan_value(self, source: str, axis: int | None, *, wants_histogram: bool) -> ValueStatistics:
        found = ValueStatistics(histogram=Histogram() if wants_histogram else None)
        shape = self._shapes[source]
        if axis is not None and not -len(shape) <= axis < len(shape):
            raise StatisticsError(f"value {source!r} has no axis {axis}: it has {len(shape)} axes")
        held = _RECORD_BYTES + (2 * SIDE * 8 if wants_histogram else 0)
        passing = 4 * math.prod(shape)
        inside = not wants_histogram and source in self._nodes and self._view.dtype(self._all[source]) in _INSIDE
        job: Job = (
            ReducedValue(source, held, passing, found, axis, len(shape)) if inside else FetchedValue(source, held, passing, found, axis)
        )
        self._jobs.append((job, None))
        return found

    def _plan_layers(self, names: tuple[str, ...]) -> None:
        layers = {layer.name: layer for layer in layers_of(self._own.model)}
        other_states = None if self._before is None else States(self._before.model)
        others = {} if self._before is None else _main_layers(self._before.model)
        shared: dict[str, LayerStatistics] = {}
        for name in names:
            if name not in layers:
                raise StatisticsError(f"the model has no layer {name!r}; it has {', '.join(list(layers)[:3]) or 'none'}")
            layer, other = layers[name], others.get(name)
            reason = self._layer_refusal(layer)
            if not reason and self._before and (other is None or other.input.name not in self._before.shapes):
                reason = "the original has no such layer"
            if reason:
                self.skipped[f"layer:{name}"] = reason
                continue
            state = self._states.of_layer(layer) + (other_states.of_layer(other) if other and other_states else "")
            if state not in shared:
                shared[state] = self._plan_layer(layer, other)
            self._layers[name] = shared[state]

    def _plan_layer(self, layer: Layer, other: Layer | None) -> LayerStatistics:
        groups, _, width = layer.shape
        found = LayerStatistics.empty(groups, width, None if other is None else other.shape[2])
        source = layer.input.name or ""
        passing = 4 * math.prod(self._shapes[source])
        held = found.gram.nbytes + (found.cross.nbytes if found.cross is not None else 0)
        held += 4 * groups * width * 2 * width  # columns wait until there are as many as rows
        kept = None if other is None else Kept(Columns(other))
        before = None
        if other is not None and kept is not None and self._before is not None:
            name = other.input.name or ""
            before = KeptInput(name, 0, 4 * math.prod(self._before.shapes[name]), kept)
        self._jobs.append((FetchedLayer(source, held, passing, found, layer, self._multiply, self._positions, kept), before))
        return found

    def _root(self, name: str) -> str:
        """The value that a value holds the elements of."""
        while True:
            value = self._nodes.get(name)
            producer = None if value is None else value.producer()
            first = producer.inputs[0] if producer is not None and producer.inputs else None
            if producer is None or first is None or operator_of(producer) not in _MOVERS or not first.name or first.is_initializer():
                return name
            name = first.name

    def _refusal(self, name: str) -> str:
        """Why no statistics are taken of a value, or an empty string."""
        value = self._all.get(name)
        if value is None:
            raise StatisticsError(f"the main graph has no value {name!r}")
        if value.is_initializer():
            return "a constant"
        dtype = self._view.dtype(value)
        if name not in self._shapes or dtype is None:
            return "not a tensor of known type"
        return "" if dtype in FLOATS else f"{dtype.name.lower()}, not floating"

    def _layer_refusal(self, layer: Layer) -> str:
        if layer.graph is not self._own.model.graph:
            return "inside a subgraph"
        reason = self._refusal(layer.input.name or "")
        return f"its input is {reason}" if reason else ""


def _main_layers(model: ir.Model) -> dict[str, Layer]:
    return {layer.name: layer for layer in layers_of(model) if layer.graph is model.graph}

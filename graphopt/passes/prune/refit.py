"""Refit: layers make the original's outputs of what is left, by least squares.

The design's ``W* = W C H^-1`` in its direct form: ``W C`` is the product of the original's outputs and today's inputs, so those outputs
are all that is needed of the original; and what the stream that a layer adds to has lost may then be asked of the layer too.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.graph.edits import Names
from graphopt.graph.layers import Layer, layers_of
from graphopt.graph.unfold import unfold
from graphopt.graph.units.removal import Parts
from graphopt.graph.view import View
from graphopt.passes.base import Context
from graphopt.passes.prune.line import Line, State
from graphopt.passes.prune.outputs import Output, as_matrix, output_of
from graphopt.runtime.shelf import Shelf
from graphopt.runtime.statistics.chain import prepared
from graphopt.runtime.statistics.product import Product
from graphopt.solve.metric import Metric
from graphopt.solve.regression import Moments, regression

Array = np.ndarray[Any, Any]

_HELD_OUT = 4
"""Each fourth sample is kept out of a fit, to judge it."""


Projection = Callable[[Array, Metric], Array]
"""Brings a weight ``[groups, out, K]`` to the closest one of some kind in a metric."""


def refit(
    model: ir.Model, original: ir.Model, parts: Parts, context: Context, projections: Mapping[str, Projection] = MappingProxyType({})
) -> int:
    """Refits all layers from the first that changed on, each on the inputs that the refitted ones before it make.

    Where a layer's output is added to a stream, it is fitted to what the stream has lost as well. Every fourth sample is kept out: a
    layer takes the damping that is best there, then fitted to all samples, and stays as it was where none is better.

    Args:
        model: pruned; rewritten in place.
        original: before pruning, with layers of the same names.
        parts: what stays of the weights.
        context: holds the samples, real ones.
        projections: layers whose weights must be of some kind, by name: they become so.

    Returns:
        How many layers were refitted.
    """
    places = list(_places(model, original, parts, projections))
    now, before = prepared(model), prepared(original)
    twins = {layer.name: layer for layer in layers_of(now)}
    stops = [place.layer.name for place in places]
    lines = Line(now, stops, context.options), Line(before, stops, context.options)
    names, own_names, product, count = Names(model), Names(now), Product(context.options), 0
    with tempfile.TemporaryDirectory(prefix="graphopt-") as folder:
        shelves = [Shelf(context.samples, Path(folder) / side) for side in ("now", "before")]
        at = [0, 0]
        for place in sorted(places, key=lambda place: lines[0].steps[place.layer.name]):
            steps = [line.steps[place.layer.name] for line in lines]
            moments = [Moments.empty(*place.layer.shape) for _ in range(2)]
            for number in range(len(shelves[0])):
                states = [line.run(shelf[number], first, step) for line, shelf, first, step in zip(lines, shelves, at, steps, strict=True)]
                shelves[0][number] = states[0]
                shelves[1][number] = wanted = lines[1].run(states[1], steps[1], steps[1] + 1)
                moments[number % _HELD_OUT == _HELD_OUT - 1].add(*place.pair(states[0], states[1], wanted), product)
            at = [steps[0], steps[1] + 1]
            projection = projections.get(place.layer.name)
            found = regression(moments[0], moments[1], place.layer.weight(), affine=place.output.shift is not None, project=projection)
            if found is not None:
                place.apply(place.layer, *found, names)
                place.apply(twins[place.layer.name], *found, own_names)
                count += 1
    return count


@dataclass(frozen=True)
class _Place:
    """A layer to refit.

    Attributes:
        layer: of the pruned model.
        output: where its output goes.
        rows: ``[groups, out]``, which of the original's output channels it still makes.
    """

    layer: Layer
    output: Output
    rows: Array

    def pair(self, now: State, before: State, wanted: State) -> tuple[Array, Array]:
        """One sample's inputs ``[groups, K, positions]`` and the outputs wanted of them without the bias, ``[groups, out, positions]``.

        Args:
            now: of the pruned model, before the layer.
            before: of the original, before the layer.
            wanted: of the original, after it.
        """
        layer = self.layer
        expected = wanted[layer.node.outputs[0].name or ""]
        target = as_matrix(layer, expected, self.rows)
        for stream in self.output.streams:
            if stream not in now or stream not in before or before[stream].shape != expected.shape:
                continue  # it is made later, or broadcast
            target = target + (as_matrix(layer, before[stream], self.rows) - as_matrix(layer, now[stream], None))
        inside = self.output.bias(layer)[:, :, None].astype(target.dtype)
        return unfold(layer, now[layer.input.name or ""]), (target - inside) / np.asarray(layer.scale, target.dtype)

    def apply(self, layer: Layer, weight: Array, shift: Array, names: Names) -> None:
        """Gives a layer, this one or its twin, another weight, and shifts its output."""
        layer.assign(weight.astype(layer.weight().dtype), names)
        if self.output.shift is not None:
            self.output.move(layer, shift * layer.scale, names)


def _places(model: ir.Model, original: ir.Model, parts: Parts, changed: Collection[str]) -> Iterator[_Place]:
    """The layers from the first that changes or lost inputs on: what comes after sees other inputs, and makes up for some of the loss."""
    before, view, has_begun = {layer.name: layer for layer in layers_of(original)}, View(model), False
    for layer in layers_of(model):
        old = before.get(layer.name)
        if old is None or layer.groups != old.groups:
            continue  # a depthwise layer that lost channels sums over the same inputs in those that stay
        has_begun = has_begun or layer.shape[2] != old.shape[2] or layer.name in changed
        output = output_of(layer, view) if has_begun and layer.graph is model.graph else None
        if output is not None:
            yield _Place(layer, output, _rows(old, layer, parts.get((layer.name, layer.index), ())))


def _rows(before: Layer, now: Layer, kept: tuple[Array | None, ...]) -> Array:
    """Which output channels of the original are still there: ``[groups, out]``."""
    groups, out, width = before.shape
    rows = before.restore(np.broadcast_to(np.arange(out)[None, :, None], (groups, out, width)))
    for axis, indices in enumerate(kept):
        if indices is not None:
            rows = np.take(rows, indices, axis=axis)
    return now.as_matrix(rows)[:, :, 0]

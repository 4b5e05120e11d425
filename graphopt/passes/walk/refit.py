"""Refit: layers make the original's outputs of what is left, by least squares.

The design's ``W* = W C H^-1`` in its direct form: ``W C`` is the product of the original's outputs and today's inputs, so those outputs
are all that is needed of the original; and what the stream that a layer adds to has lost may then be asked of the layer too.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
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
from graphopt.passes.walk.line import data_of, in_turn
from graphopt.passes.walk.outputs import Output, output_of
from graphopt.passes.walk.stops import HELD_OUT, stops
from graphopt.runtime.statistics.chain import prepared
from graphopt.runtime.statistics.product import Product
from graphopt.solve.evidence import Evidence
from graphopt.solve.metric import Metric

Array = np.ndarray[Any, Any]

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
    places = {place.layer.name: place for place in _places(model, original, parts, projections)}
    now, before = prepared(model), prepared(original)
    twins = {layer.name: layer for layer in layers_of(now)}
    names, own_names, product, count = Names(model), Names(now), Product(in_turn(context.options)), 0
    for name, samples in stops(now, before, places, context):
        place = places[name]
        layer, output = place.layer, place.output
        fit, held = Evidence(*layer.shape, product), Evidence(*layer.shape, product)
        for number, sample in enumerate(samples):
            x = unfold(layer, data_of(layer, sample.now))
            (held if number % HELD_OUT == HELD_OUT - 1 else fit).add(x, sample.target(layer, output, place.rows))
        found = fit.refitted(held, layer.weight(), affine=output.shift is not None, project=projections.get(name))
        if found is not None:
            weight, shift = found
            twin, shift = twins[name], shift * layer.scale
            layer.assign(weight, names)
            tensor = layer.value.const_value
            assert tensor is not None, "it was assigned"
            twin.put(tensor, own_names)
            if output.shift is not None:
                output.move(layer, shift, names)
                output.move(twin, shift, own_names)
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
    return now.as_matrix(rows)[:, :, 0].copy()  # a view would hold an index for each weight

"""SmoothQuant (arXiv:2211.10438): inputs of linear layers made easier to quantize by scales for their channels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from graphopt import ledger
from graphopt.graph.absorb import Absorber, NotAbsorbed, absorber, multiply
from graphopt.graph.edits import Builder, Names
from graphopt.graph.layers import GEMMS, MATMULS, Layer, layers_of
from graphopt.graph.view import View, attribute, operator_of
from graphopt.passes.base import Context, GuidedPass, Role
from graphopt.passes.quantize.candidates import that_pay
from graphopt.passes.quantize.dynamic import FORM, Dynamic
from graphopt.passes.quantize.linear import places_of
from graphopt.runtime.relay import LAST, Stop, channel_means
from graphopt.runtime.statistics import Request
from graphopt.runtime.trace import trace_shapes
from graphopt.solve.smooth import WORTH, Inputs, best_smooth, expected_error

Array = np.ndarray[Any, Any]

_LOOKED_AT = 32
_LARGEST_SHARE = 0.5
"""The expected error must fall to this share for a Mul that runs at each call."""
_LEAST_OUTPUTS = 512
"""The layers behind a Mul must have so many outputs together: with fewer, it adds more than a tenth to their time."""


@dataclass(frozen=True)
class _Place:
    """A value that linear layers read.

    Attributes:
        value: their input.
        layers: what its factors are taken back in; all that read it, where an absorber takes the factors.
        absorber: where factors can go; None where only a Mul between the value and the layers can take them.
    """

    value: ir.Value
    layers: tuple[Layer, ...]
    absorber: Absorber | None

    @property
    def key(self) -> ledger.Key:
        """Of its rewrite."""
        return ledger.Key(Smooth.name, "", self.layers[0].name)

    @property
    def least(self) -> float:
        """The expected error must fall to this share."""
        return WORTH if self.absorber else _LARGEST_SHARE

    def weight(self) -> Array:
        """``[out, K]``, those of all layers along ``out``."""
        return np.concatenate([layer.weight()[0] * np.float32(layer.scale) for layer in self.layers])

    def multiply(self, factors: Array, names: Names) -> tuple[str, ...]:
        """Multiplies what the layers read with ``factors [K]``; returns the names of the nodes that this takes."""
        if self.absorber:
            self.absorber.apply(factors, names)
            return ()
        op = Builder(self.layers[0].node, names)
        scaled = op.op("Mul", self.value, op.constant(factors.astype(np.float32)))
        scaled.type, scaled.shape = self.value.type, None if self.value.shape is None else self.value.shape.copy()
        for layer in self.layers:
            layer.node.replace_input_with(1 - layer.index, scaled)
        return tuple(node.name or "" for node in op.added)


@dataclass(frozen=True)
class Smooth(GuidedPass):
    """Replaces weights of linear layers and of what makes their inputs with ones between which channels are scaled.

    Outlier channels of the input shrink, and their weights grow by as much. The factors go into the scale of a normalization, into
    the layer that makes the input, through gates, activations that pass positive factors, and attention, and then cost nothing when
    the result runs. Where nothing takes them, as where a normalization's output is also added to later ones, one Mul stands between
    the input and all layers that share it and that ``dynamic`` will replace: if the expected error falls by half at least, and the
    layers have 512 outputs together, for which the Mul adds a few percent to their time. Scales are those of least expected error
    after both are rounded to 8 bits, and are left out where that hardly falls. Exact up to float rounding; pays together with the
    quantization of data after it.
    """

    name: ClassVar[str] = "smooth"
    role: ClassVar[Role] = "prepare"

    def run(self, model: ir.Model, context: Context) -> bool:
        """Scales the inputs of all linear layers for which it pays."""
        if context.samples.is_synthetic:
            ledger.note("smooth: without samples nobody knows which channels are outliers")
            return False
        places = _places(model, context)
        if not places:
            return False
        names, changed = Names(model), False
        known = _inputs(model, places, context)
        for place in places:
            inputs = known.get(place.value.name or "")
            if inputs is not None and _smooth(place, inputs, names):
                changed = True
        return changed


def _smooth(place: _Place, inputs: Inputs, names: Names) -> bool:
    weight = place.weight()
    scales = best_smooth(weight, inputs, place.absorber.classes if place.absorber else None)
    share = expected_error(weight, inputs, scales) / expected_error(weight, inputs, np.ones_like(scales))
    if (scales == 1).all():
        ledger.miss(place.key, "no scales lower the expected error")
        return False
    if share > place.least:
        ledger.miss(place.key, f"only a Mul could scale it, and the expected error would fall to no less than {share:.0%}")
        return False
    if not ledger.allow(place.key):
        return False
    for layer in place.layers:
        multiply(layer.node, layer.index, _input_axis(layer), scales, names)
    added = place.multiply(1 / scales, names)
    how = "explicit Mul, " if added else ""
    ledger.record(ledger.Rewrite(place.key, added=added, reason=f"{how}expected error of 8 bits falls to {share:.0%}"))
    return True


def _input_axis(layer: Layer) -> int:
    return -1 if attribute(layer.node, "transB", 0) else -2


def _places(model: ir.Model, context: Context) -> list[_Place]:
    """The values whose channels can be scaled, in the order in which they are made."""
    readers: dict[ir.Value, list[Layer]] = {}
    for layer in layers_of(model):
        if operator_of(layer.node) in MATMULS | GEMMS and layer.graph is model.graph:
            readers.setdefault(layer.input, []).append(layer)
    view = View(model)
    shapes = trace_shapes(model, _largest(context), context.options) if readers else {}
    found: dict[ir.Value, _Place] = {}
    refused: dict[ir.Value, list[Layer]] = {}
    for value, layers in readers.items():
        key = ledger.Key(Smooth.name, "", layers[0].name)
        if ledger.denies(key):
            continue
        try:
            found[value] = _place(value, layers, view, shapes)
        except NotAbsorbed as refusal:
            ledger.miss(key, str(refusal))
            refused[value] = layers
    found |= _multiplied(model, refused, context)
    return [found[value] for value in readers if value in found]


def _multiplied(model: ir.Model, refused: Mapping[ir.Value, Sequence[Layer]], context: Context) -> dict[ir.Value, _Place]:
    """The values for which only a Mul is left, before those of their layers that ``dynamic`` will replace."""
    if not refused:
        return {}
    known = {place.layer.node: place for place in places_of(model, Dynamic.name, FORM.operator, context, (), (), Dynamic.min_size)}
    found = {}
    for value, layers in refused.items():
        taken = [known[layer.node] for layer in layers if layer.node in known]
        if sum(place.layer.shape[1] for place in taken) >= _LEAST_OUTPUTS:
            paying = that_pay(model, taken, FORM, Dynamic.name, context)
            if paying:
                found[value] = _Place(value, tuple(place.layer for place in paying), None)
    return found


def _place(value: ir.Value, layers: Sequence[Layer], view: View, shapes: Mapping[str, tuple[int, ...]]) -> _Place:
    if not all(_is_plain(layer, view) for layer in layers):
        raise NotAbsorbed("a layer that reads it has no float32 matrix on the right")
    if len(layers) != len(value.uses()) or value.is_graph_output():
        raise NotAbsorbed(f"{value.name} is used elsewhere too")
    found = absorber(value, LAST, view, shapes)
    if found.classes.max(initial=0) == 0:
        raise NotAbsorbed("all its channels must have the same factor")
    return _Place(value, tuple(layers), found)


def _is_plain(layer: Layer, view: View) -> bool:
    return (
        layer.index == 1
        and len(layer.stored_shape) == 2
        and not attribute(layer.node, "transA", 0)
        and view.dtype(layer.value) == ir.DataType.FLOAT
    )


def _largest(context: Context) -> Mapping[str, Array]:
    """The largest of the first samples: on it, axes that could be mistaken for each other are the least likely to be of length 1."""
    return max(islice(context.samples, _LOOKED_AT), key=lambda feed: sum(array.size for array in feed.values()))


def _inputs(model: ir.Model, places: Sequence[_Place], context: Context) -> dict[str, Inputs]:
    """Extremes and mean squares of the places' values, channel by channel, over all samples."""
    names = [place.value.name or "" for place in places]
    extremes = context.statistics(model, Request(channels=dict.fromkeys(names, LAST))).values
    squared = model.clone()
    values = {value.name: value for node in squared.graph for value in node.outputs}
    stops = []
    for name in names:
        node = ir.node("Mul", [values[name], values[name]])
        node.outputs[0].name = f"graphopt_square:{name}"
        squared.graph.append(node)
        stops.append(Stop(node.outputs[0].name, LAST))
    energies = channel_means(squared, stops, context.samples, context.options)
    found = {}
    for name, stop in zip(names, stops, strict=True):
        channels = extremes[name].channels if name in extremes else None
        if channels is not None:
            found[name] = Inputs(channels.minimum, channels.maximum, energies[stop.value])
    return found

"""Outliers of the inputs of linear layers moved into their weights, by scales for the channels (arXiv:2211.10438, arXiv:2304.09145)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from graphopt import ledger
from graphopt.graph.absorb import Absorber, NotAbsorbed, absorber, multiply
from graphopt.graph.edits import Builder, Names
from graphopt.graph.layers import GEMMS, MATMULS, Layer, layers_of, select
from graphopt.graph.view import View, attribute, operator_of
from graphopt.passes.base import Context, GuidedPass, Role
from graphopt.passes.quantize.candidates import race
from graphopt.passes.quantize.dynamic import FORMS, Dynamic
from graphopt.passes.quantize.linear import Place, places_of
from graphopt.passes.quantize.static import Static
from graphopt.runtime.calls import Call, calls_of
from graphopt.runtime.relay import LAST
from graphopt.runtime.trace import trace_shapes
from graphopt.solve.smooth import Inputs, best_threshold, measured_error
from graphopt.targets.emit import DYNAMIC_QUANTIZE_MATMUL

Array = np.ndarray[Any, Any]

_LOOKED_AT = 32
"""Samples that are looked at, spread over all."""
_HELD_OUT = 4
"""Each fourth of them is kept out of the choice, to judge it."""
_ROWS = 32
"""Rows of each that products are measured on."""
_OUTPUTS = 512
"""Outputs of each layer that errors are taken of, spread over all."""
_WORTH = 0.99
"""The error must fall to this share."""
_WORTH_A_MUL = 0.5
"""The error must fall to this share for a Mul that runs at each call."""
_LEAST_OUTPUTS = 512
"""The layers behind a Mul must have so many outputs together: with fewer, it adds more than a tenth to their time."""


@dataclass(frozen=True)
class _Target:
    """A value that linear layers read.

    Attributes:
        value: their input.
        layers: what its factors are taken back in; all that read it, where an absorber takes the factors.
        quantized: those of them whose data will be quantized.
        absorber: where factors can go; None where only a Mul between the value and the layers can take them.
    """

    value: ir.Value
    layers: tuple[Layer, ...]
    quantized: tuple[Layer, ...]
    absorber: Absorber | None

    @property
    def key(self) -> ledger.Key:
        """Of its rewrite."""
        return ledger.Key(Smooth.name, "", self.layers[0].name)

    @property
    def least(self) -> float:
        """The error must fall to this share."""
        return _WORTH if self.absorber else _WORTH_A_MUL

    def weight(self) -> Array:
        """``[out, K]``, some outputs of each layer whose data will be quantized, along ``out``."""
        parts = ((layer.weight()[0], layer.scale) for layer in self.quantized)
        return np.concatenate([part[:: max(1, math.ceil(len(part) / _OUTPUTS))] * np.float32(scale) for part, scale in parts])

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
    """Replaces weights of linear layers and of what makes their inputs with ones between which outlier channels are scaled.

    Serves the layers whose data a pass after it quantizes: their input's outlier channels shrink, and the weights of these grow by as
    much. The factors go into the scale of a normalization, into the layer that makes the input, through gates, activations that pass
    positive factors, and attention, and then cost nothing when the result runs. Where nothing takes them, as where a normalization's
    output is also added to later ones, one Mul stands between the input and all layers that share it and that ``dynamic`` will
    replace: if the error falls by half at least, and the layers have 512 outputs together, for which the Mul adds a few percent to
    their time. Scales are chosen by the ranges of single calls, and made only where they lower the error of 8 bits on samples kept
    out of the choice. Exact up to float rounding; pays together with the quantization of data after it.
    """

    name: ClassVar[str] = "smooth"
    role: ClassVar[Role] = "prepare"

    def run(self, model: ir.Model, context: Context) -> bool:
        """Scales the inputs of all linear layers for which it pays."""
        if context.samples.is_synthetic:
            ledger.note("smooth: without samples nobody knows which channels are outliers")
            return False
        if not any(isinstance(each, (Dynamic, Static)) for each in context.passes):
            ledger.note("smooth: no pass after it quantizes the data of linear layers")
            return False
        targets = _targets(model, context)
        if not targets:
            return False
        step = math.ceil(len(context.samples) / _LOOKED_AT)
        feeds = islice(context.samples, 0, None, step)
        seen = calls_of(model, [target.value.name or "" for target in targets], feeds, context.options, _ROWS)
        names, changed = Names(model), False
        for target in targets:
            changed |= _smooth(target, seen[target.value.name or ""], names)
        return changed


def _smooth(target: _Target, calls: Sequence[Call], names: Names) -> bool:
    if not calls:
        ledger.miss(target.key, "no sample reaches it")
        return False
    weight, held_out = target.weight(), calls[_HELD_OUT - 1 :: _HELD_OUT] or calls
    chosen_on = [call for number, call in enumerate(calls) if number % _HELD_OUT != _HELD_OUT - 1]
    scales = best_threshold(weight, _inputs(chosen_on), target.absorber.classes if target.absorber else None)
    if (scales == 1).all():
        ledger.miss(target.key, "no scales lower the expected error")
        return False
    share = _error(weight, held_out, scales) / (_error(weight, held_out, np.ones_like(scales)) or math.inf)
    if share > target.least:
        how = "scales" if target.absorber else "only a Mul could scale it, and that"
        ledger.miss(target.key, f"{how} would leave {share:.0%} of the error of 8 bits on samples kept out")
        return False
    if not ledger.allow(target.key):
        return False
    for layer in target.layers:
        multiply(layer.node, layer.index, _input_axis(layer), scales, names)
    added = target.multiply(1 / scales, names)
    how = "explicit Mul, " if added else ""
    ledger.record(ledger.Rewrite(target.key, added=added, reason=f"{how}error of 8 bits falls to {share:.0%} on samples kept out"))
    return True


def _inputs(calls: Sequence[Call]) -> Inputs:
    low, high, energy = (np.stack([getattr(call, part) for call in calls]) for part in ("low", "high", "energy"))
    return Inputs(low, high, energy.mean(axis=0))


def _error(weight: Array, calls: Sequence[Call], scales: Array) -> float:
    return math.fsum(measured_error(weight, call.rows, call.low, call.high, scales) for call in calls)


def _input_axis(layer: Layer) -> int:
    return -1 if attribute(layer.node, "transB", 0) else -2


def _targets(model: ir.Model, context: Context) -> list[_Target]:
    """The values whose channels can be scaled for layers that will be quantized, in the order in which they are made."""
    readers: dict[ir.Value, list[Layer]] = {}
    for layer in layers_of(model):
        if operator_of(layer.node) in MATMULS | GEMMS and layer.graph is model.graph:
            readers.setdefault(layer.input, []).append(layer)
    dynamic = _dynamic(model, context) if readers else {}
    quantized = {*dynamic, *_static(model, context)}
    readers = {value: layers for value, layers in readers.items() if any(layer.node in quantized for layer in layers)}
    view = View(model)
    shapes = trace_shapes(model, _largest(context), context.options) if readers else {}
    found: dict[ir.Value, _Target] = {}
    for value, layers in readers.items():
        key = ledger.Key(Smooth.name, "", layers[0].name)
        if ledger.denies(key):
            continue
        try:
            taker = _absorber(value, layers, view, shapes)
        except NotAbsorbed as refusal:
            ledger.miss(key, str(refusal))
            paying = _behind_a_mul(model, [dynamic[layer.node] for layer in layers if layer.node in dynamic], context)
            if paying:
                found[value] = _Target(value, paying, paying, None)
        else:
            found[value] = _Target(value, tuple(layers), tuple(layer for layer in layers if layer.node in quantized), taker)
    return list(found.values())


def _dynamic(model: ir.Model, context: Context) -> Mapping[ir.Node, Place]:
    """The layers that ``dynamic`` will replace as far as its options and the target tell, each with what it is to that pass."""
    found: dict[ir.Node, Place] = {}
    for each in context.passes:
        if isinstance(each, Dynamic):
            places = places_of(model, each.name, DYNAMIC_QUANTIZE_MATMUL, context, each.include, each.exclude, each.min_size)
            found |= {place.layer.node: place for place in places}
    return found


def _static(model: ir.Model, context: Context) -> set[ir.Node]:
    """The layers that ``static`` may replace: where it will, the whole graph decides."""
    layers, found = list(layers_of(model)), set[ir.Node]()
    for each in context.passes:
        if isinstance(each, Static):
            kept = {layer.node for layer in select(layers, names=each.exclude)} if each.exclude else set()
            chosen = {layer.node for layer in select(layers, names=each.include)} - kept
            found |= {node for node in chosen if not ledger.denies(ledger.Key(each.name, "", node.name or ""))}
    return found


def _behind_a_mul(model: ir.Model, places: Sequence[Place], context: Context) -> tuple[Layer, ...]:
    """The layers of a value that one Mul is to serve."""
    if sum(place.layer.shape[1] for place in places) < _LEAST_OUTPUTS:
        return ()
    verdicts = race(model, places, FORMS, context)
    return tuple(place.layer for place in places if place.layer.name not in verdicts or verdicts[place.layer.name].form)


def _absorber(value: ir.Value, layers: Sequence[Layer], view: View, shapes: Mapping[str, tuple[int, ...]]) -> Absorber:
    if not all(_is_plain(layer, view) for layer in layers):
        raise NotAbsorbed("a layer that reads it has no float32 matrix on the right")
    if len(layers) != len(value.uses()) or value.is_graph_output():
        raise NotAbsorbed(f"{value.name} is used elsewhere too")
    found = absorber(value, LAST, view, shapes)
    if found.classes.max(initial=0) == 0:
        raise NotAbsorbed("all its channels must have the same factor")
    return found


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

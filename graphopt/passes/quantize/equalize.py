"""Cross-layer equalization (arXiv:1906.04721): channels between convolutions scaled so that both sides use their grids well."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from graphopt import ledger
from graphopt.graph.absorb import Absorber, NotAbsorbed, absorber, multiply
from graphopt.graph.edits import Names
from graphopt.graph.layers import Layer, layers_of
from graphopt.graph.view import View, operator_of
from graphopt.passes.base import Context, GuidedPass, Role
from graphopt.runtime.trace import trace_shapes
from graphopt.solve.equalize import equalizing_scales

Array = np.ndarray[Any, Any]

_ROUNDS = 20
_NEAR_ONE = 0.01
"""Scales within this of 1 change nothing any more."""
_WORTH = 0.05
"""Channels that need no larger change are left as they are."""
_OF_BIAS = 1 / 32
"""A channel counts as at least this share of its bias: else one with next to no weights would be scaled up beyond all others."""


@dataclass(frozen=True)
class _Pair:
    """A value between convolutions.

    Attributes:
        producer: makes it, followed by what passes positive factors.
        absorber: where factors on its channels go: into the producer's weight and bias.
        consumers: the convolutions that read it; nothing else does.
    """

    producer: Layer
    absorber: Absorber
    consumers: tuple[Layer, ...]

    @property
    def key(self) -> ledger.Key:
        """Of its rewrite."""
        return ledger.Key(Equalize.name, "", self.consumers[0].name)


@dataclass(frozen=True)
class Equalize(GuidedPass):
    """Replaces the weights of convolutions that follow one another with ones whose shared channels have the same range in both.

    Applies where a convolution's output reaches others, plain or depthwise, through nothing but activations that pass positive factors
    (Relu, LeakyRelu). Needs no samples: ranges are those of the weights. Exact up to float rounding; pays together with quantization
    after it, most where one layer's channels differ much, and costs nothing when the result runs.
    """

    name: ClassVar[str] = "equalize"
    role: ClassVar[Role] = "prepare"

    def run(self, model: ir.Model, context: Context) -> bool:
        """Equalizes all chains of convolutions."""
        pairs = _pairs(model, context)
        scales = _scales(pairs)
        names, changed = Names(model), False
        for pair, scale in zip(pairs, scales, strict=True):
            if np.abs(np.log(scale)).max() < _WORTH:
                ledger.miss(pair.key, "its channels have the same ranges already")
            elif ledger.allow(pair.key):
                pair.absorber.apply(1 / scale, names)
                for layer in pair.consumers:
                    _multiply_inputs(layer, scale, names)
                ledger.record(ledger.Rewrite(pair.key, reason=f"channels scaled by {scale.min():.2g} to {scale.max():.2g}"))
                changed = True
        return changed


def _pairs(model: ir.Model, context: Context) -> list[_Pair]:
    """The values between convolutions that can be equalized, in order."""
    view = View(model)
    layers = {layer.node: layer for layer in layers_of(model) if operator_of(layer.node) == "Conv" and layer.graph is model.graph}
    readers: dict[ir.Value, list[Layer]] = {}
    for layer in layers.values():
        if layer.input.producer() is not None:
            readers.setdefault(layer.input, []).append(layer)
    if not readers:
        return []
    shapes = trace_shapes(model, next(iter(context.samples)), context.options)
    pairs = []
    for value, consumers in readers.items():
        key = ledger.Key(Equalize.name, "", consumers[0].name)
        if ledger.denies(key):
            continue
        try:
            pairs.append(_pair(value, consumers, layers, view, shapes))
        except NotAbsorbed as refusal:
            ledger.miss(key, str(refusal))
    return pairs


def _pair(
    value: ir.Value, consumers: Sequence[Layer], layers: Mapping[ir.Node, Layer], view: View, shapes: Mapping[str, tuple[int, ...]]
) -> _Pair:
    if len(consumers) != len(value.uses()) or value.is_graph_output():
        raise NotAbsorbed(f"{value.name} is used elsewhere too")
    found = absorber(value, 1, view, shapes)
    producer = layers.get(found.folds[0].node)
    if producer is None or any(fold.node is not producer.node for fold in found.folds):
        raise NotAbsorbed(f"{value.name} is not made by a convolution alone")
    if any(layer.groups > 1 and layer.stored_shape[1] > 1 for layer in consumers):
        raise NotAbsorbed("a convolution in groups of several channels reads it")
    if any(view.dtype(layer.value) != ir.DataType.FLOAT for layer in (producer, *consumers)):
        raise NotAbsorbed("its weights are not float32")
    if len(np.unique(found.classes)) < len(found.classes):
        raise NotAbsorbed(f"channels of {value.name} must have the same factor")
    return _Pair(producer, found, tuple(consumers))


def _scales(pairs: Sequence[_Pair]) -> list[Array]:
    """What the channels of each value are divided by, so that with all of them applied each channel has one range on both sides."""
    totals = [np.ones(len(pair.absorber.classes)) for pair in pairs]
    # ``[out, in, taps]`` as they would be; a layer may consume one value and produce another.
    weights = {layer.name: _magnitudes(layer) for pair in pairs for layer in (pair.producer, *pair.consumers)}
    biases = {pair.producer.name: _bias_of(pair.producer) for pair in pairs}
    for _ in range(_ROUNDS):
        furthest = 0.0
        for index, pair in enumerate(pairs):
            produced = np.maximum(weights[pair.producer.name].max(axis=(1, 2)), _OF_BIAS * biases[pair.producer.name])
            consumed = np.max([_by_input(weights[layer.name], layer) for layer in pair.consumers], axis=0)
            scale = equalizing_scales(produced, consumed)
            totals[index] *= scale
            weights[pair.producer.name] /= scale[:, None, None]
            biases[pair.producer.name] /= scale
            for layer in pair.consumers:
                weights[layer.name] *= scale[:, None, None].repeat(_per_channel(layer), axis=0) if layer.groups > 1 else scale[:, None]
            furthest = max(furthest, float(np.abs(np.log(scale)).max()))
        if furthest < _NEAR_ONE:
            break
    return totals


def _bias_of(layer: Layer) -> Array:
    """``[out]``, the magnitudes of the bias."""
    tensor = None if layer.bias is None else ir.convenience.get_const_tensor(layer.bias)
    return np.zeros(layer.stored_shape[0]) if tensor is None else np.abs(tensor.numpy().astype(np.float64))


def _magnitudes(layer: Layer) -> Array:
    stored = layer.stored_shape
    return np.abs(layer.weight().reshape(*stored[:2], -1).astype(np.float64))


def _by_input(weight: Array, layer: Layer) -> Array:
    """The largest magnitude with which each input channel is multiplied."""
    largest: Array = weight.max(axis=(1, 2)).reshape(layer.groups, -1).max(axis=1) if layer.groups > 1 else weight.max(axis=(0, 2))
    return largest


def _per_channel(layer: Layer) -> int:
    """How many outputs a depthwise convolution makes of one channel."""
    return layer.stored_shape[0] // layer.groups


def _multiply_inputs(layer: Layer, scale: Array, names: Names) -> None:
    """Multiplies what a convolution does to each input channel."""
    rank = len(layer.stored_shape)
    if layer.groups > 1:
        multiply(layer.node, layer.index, -rank, scale.repeat(_per_channel(layer)), names)
    else:
        multiply(layer.node, layer.index, 1 - rank, scale, names)

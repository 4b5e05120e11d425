"""Saturation: where 8-bit products do not fit into the 16 bits that some processors add pairs of them in.

Without VNNI, x86 multiplies unsigned codes of data with signed codes of weights and adds neighbouring products, two by two along what
is summed over, in 16 bits that saturate (``vpmaddubsw``). The codes of the data that samples show tell how large such sums become.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.graph.layers import Layer, Layout
from graphopt.graph.unfold import unfold
from graphopt.passes.base import Context
from graphopt.runtime.trace import trace_values

Array = np.ndarray[Any, Any]

PAIR_LIMIT = 32767
"""What 16 bits hold."""

_LEVELS = 255
_LARGEST_CODE = 127
_FEEDS = 8
_MOST_POSITIONS = 4096
_MOST_PAIRS = 8192


def at_risk(model: ir.Model, layers: Sequence[Layer], context: Context) -> dict[str, int]:
    """The layers of which some pair of products saturates on the samples, once data and weights have 8 bits: the largest sum by name.

    Seven bits for the weight cure all of them: no pair of such products exceeds 16 bits.

    Args:
        model: in float; stays as it is.
        layers: of its main graph.
        context: holds the samples.
    """
    return {name: largest for name, largest in largest_pair_sums(model, layers, context).items() if largest > PAIR_LIMIT}


def largest_pair_sums(model: ir.Model, layers: Sequence[Layer], context: Context) -> dict[str, int]:
    """The largest sum of two neighbouring products of 8-bit codes that the first samples bring about, by name of the layer.

    Args:
        model: in float; stays as it is.
        layers: of its main graph; depthwise convolutions are left out, whose products nobody adds in pairs.
        context: holds the samples.
    """
    paired = [layer for layer in layers if layer.shape[2] > 1 and not _is_depthwise(layer)]
    names = list(dict.fromkeys(layer.input.name or "" for layer in paired))
    if not names:
        return {}
    traced = [trace_values(model, feed, names, context.options) for feed in islice(context.samples, _FEEDS)]
    found: dict[str, int] = {}
    for layer in paired:
        data = [values[layer.input.name or ""] for values in traced]
        low = min(0.0, *(float(array.min(initial=0)) for array in data))
        high = max(0.0, *(float(array.max(initial=0)) for array in data))
        scale = (high - low) / _LEVELS or 1.0
        codes = _weight_codes(layer)
        found[layer.name] = max(_largest(codes, _codes(layer, array, low, scale)) for array in data)
    return found


def _largest(weight: Array, data: Array) -> int:
    """The largest magnitude of the sum of two neighbouring products.

    Args:
        weight: ``int32 [groups, out, K]``, K in the order in which the kernel sums.
        data: ``int32 [groups, K, positions]``, not negative.
    """
    largest = 0
    for rows, columns in zip(weight, data, strict=True):
        width = rows.shape[1] // 2 * 2
        first, second = rows[:, 0:width:2], rows[:, 1:width:2]
        a, b = columns[0:width:2], columns[1:width:2]
        together = (first > 0) == (second > 0)  # of opposite signs they take from each other, and one alone always fits
        first, second = np.abs(first), np.abs(second)
        bound = np.minimum(first * a.max(axis=1) + second * b.max(axis=1), np.maximum(first, second) * (a + b).max(axis=1)) * together
        places = np.argsort(bound, axis=None)[::-1][:_MOST_PAIRS]
        for out, pair in zip(*np.unravel_index(places, bound.shape), strict=True):
            if bound[out, pair] <= largest:
                break
            largest = max(largest, int((first[out, pair] * a[pair] + second[out, pair] * b[pair]).max()))
    return largest


def _weight_codes(layer: Layer) -> Array:
    """Symmetric codes with one scale per output channel, ``int32 [groups, out, K]``."""
    weight = _in_kernel_order(layer, layer.weight(), axis=2)
    scale = np.abs(weight).max(axis=2, keepdims=True) / _LARGEST_CODE
    codes: Array = np.rint(np.divide(weight, scale, out=np.zeros_like(weight), where=scale > 0)).astype(np.int32)
    return codes


def _codes(layer: Layer, array: Array, low: float, scale: float) -> Array:
    """Unsigned codes of a layer's input, ``int32 [groups, K, positions]``, of at most some thousand positions."""
    zero = round(-low / scale)
    unfolded = _in_kernel_order(layer, unfold(layer, array), axis=1)
    step = -(-unfolded.shape[2] // _MOST_POSITIONS)
    codes: Array = np.clip(np.rint(unfolded[:, :, :: max(step, 1)] / scale) + zero, 0, _LEVELS).astype(np.int32)
    return codes


def _in_kernel_order(layer: Layer, array: Array, axis: int) -> Array:
    """Convolutions run over places first and channels last: their neighbours along K are channels of one place."""
    if layer.layout is not Layout.CONV:
        return array
    channels, taps = layer.stored_shape[1], int(np.prod(layer.stored_shape[2:]))
    split = array.reshape(*array.shape[:axis], channels, taps, *array.shape[axis + 1 :])
    return split.swapaxes(axis, axis + 1).reshape(array.shape)


def _is_depthwise(layer: Layer) -> bool:
    return layer.layout is Layout.CONV and layer.groups > 1 and layer.stored_shape[1] == 1

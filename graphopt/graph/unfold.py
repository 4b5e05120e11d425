"""Unfolding: the input of a layer as the matrix ``X [groups, in, positions]`` that its weight multiplies."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from graphopt.graph.layers import Layer, Layout
from graphopt.graph.view import attribute

Array = np.ndarray[Any, Any]


def unfold(layer: Layer, x: Array) -> Array:
    """Unfolds a layer's input, so that ``layer.scale * layer.weight() @ X`` holds the operator's outputs before the bias.

    Positions run over the batch first, then over the places of the output. Memory: ``kernel size`` times the output's places.

    Args:
        layer: what consumes the input.
        x: the input as the operator gets it: ``[batch, channels, *places]`` for convolutions.

    Returns:
        ``X [groups, in, positions]``; the outputs of group g are ``W[g] @ X[g]``.
    """
    if layer.layout is Layout.CONV:
        return _convolution(layer, x)
    if layer.layout is Layout.CONV_TRANSPOSE:
        return _transposed_convolution(layer, x)
    return _product(layer, x)


def _convolution(layer: Layer, x: Array) -> Array:
    kernel = layer.stored_shape[2:]
    strides, dilations = _spatial(layer, "strides", len(kernel)), _spatial(layer, "dilations", len(kernel))
    extents = [d * (k - 1) + 1 for k, d in zip(kernel, dilations, strict=True)]
    padded = np.pad(x, ((0, 0), (0, 0), *_pads(layer, x.shape[2:], extents, strides)))
    return _patches(padded, layer.groups, kernel, strides, dilations)


def _transposed_convolution(layer: Layer, x: Array) -> Array:
    """Unfolds as for a convolution with stride 1 over the input with zeros between its places, the kernel running backwards."""
    kernel = layer.stored_shape[2:]
    rank, places = len(kernel), x.shape[2:]
    strides, dilations = _spatial(layer, "strides", rank), _spatial(layer, "dilations", rank)
    spread = np.zeros((*x.shape[:2], *(s * (n - 1) + 1 for n, s in zip(places, strides, strict=True))), x.dtype)
    spread[(slice(None), slice(None), *(slice(None, None, s) for s in strides))] = x
    extents = [d * (k - 1) for k, d in zip(kernel, dilations, strict=True)]
    extra = attribute(layer.node, "output_padding", (0,) * rank)
    margins = []
    for axis, (begin, end) in enumerate(_transposed_pads(layer, places, strides, extents)):
        margins.append((extents[axis] - begin, extents[axis] - end + extra[axis]))
    padded = np.pad(spread, ((0, 0), (0, 0), *((max(a, 0), max(b, 0)) for a, b in margins)))
    cut = tuple(slice(max(-a, 0), n - max(-b, 0)) for (a, b), n in zip(margins, padded.shape[2:], strict=True))
    backwards = _patches(padded[(slice(None), slice(None), *cut)], layer.groups, kernel, (1,) * rank, dilations)
    groups, width, positions = backwards.shape
    return backwards.reshape(groups, -1, math.prod(kernel), positions)[:, :, ::-1].reshape(groups, width, positions)


def _product(layer: Layer, x: Array) -> Array:
    right = layer.index == 1  # the weight stands on the right: X is the transpose of the input's matrices
    turned = bool(attribute(layer.node, "transA" if right else "transB", 0))
    if x.ndim == 1:
        x = x[:, None]
    elif turned != right:
        x = x.swapaxes(-1, -2)
    stack = layer.stored_shape[:-2]
    lead = np.broadcast_shapes(x.shape[:-2], stack)
    x = np.broadcast_to(x, (*lead, *x.shape[-2:]))
    aligned = (*(1,) * (len(lead) - len(stack)), *stack)
    grouped = [axis for axis, length in enumerate(aligned) if length > 1]
    free = [axis for axis in range(len(lead)) if axis not in grouped]
    return x.transpose(*grouped, len(lead), *free, len(lead) + 1).reshape(layer.groups, x.shape[-2], -1)


def _patches(padded: Array, groups: int, kernel: tuple[int, ...], strides: tuple[int, ...], dilations: tuple[int, ...]) -> Array:
    rank = len(kernel)
    extents = tuple(d * (k - 1) + 1 for k, d in zip(kernel, dilations, strict=True))
    windows = np.lib.stride_tricks.sliding_window_view(padded, extents, axis=tuple(range(2, 2 + rank)))
    steps = (*(slice(None, None, s) for s in strides), *(slice(None, None, d) for d in dilations))
    windows = windows[(slice(None), slice(None), *steps)]
    batch, channels = padded.shape[:2]
    split = windows.reshape(batch, groups, channels // groups, *windows.shape[2:])
    places, taps = range(3, 3 + rank), range(3 + rank, 3 + 2 * rank)
    ordered = split.transpose(1, 2, *taps, 0, *places)
    return ordered.reshape(groups, channels // groups * math.prod(kernel), -1)


def _spatial(layer: Layer, name: str, rank: int) -> tuple[int, ...]:
    return attribute(layer.node, name, (1,) * rank)


def _pads(layer: Layer, places: tuple[int, ...], extents: list[int], strides: tuple[int, ...]) -> list[tuple[int, int]]:
    mode, rank = attribute(layer.node, "auto_pad", "NOTSET"), len(places)
    if mode in ("NOTSET", ""):
        pads = attribute(layer.node, "pads", (0,) * 2 * rank)
        return list(zip(pads[:rank], pads[rank:], strict=True))
    if mode == "VALID":
        return [(0, 0)] * rank
    totals = [max((-(-n // s) - 1) * s + e - n, 0) for n, s, e in zip(places, strides, extents, strict=True)]
    return [_halves(total, mode) for total in totals]


def _transposed_pads(layer: Layer, places: tuple[int, ...], strides: tuple[int, ...], extents: list[int]) -> list[tuple[int, int]]:
    """Pads of a ConvTranspose, which are cut from its output; ``output_shape`` and ``auto_pad`` decide them from the output's size."""
    mode, rank = attribute(layer.node, "auto_pad", "NOTSET"), len(places)
    none: tuple[int, ...] = ()
    wanted = attribute(layer.node, "output_shape", none)[-rank:]
    if not wanted and mode in ("NOTSET", "", "VALID"):
        return _pads(layer, places, extents, strides)
    sizes = wanted or tuple(n * s for n, s in zip(places, strides, strict=True))
    extra = attribute(layer.node, "output_padding", (0,) * rank)
    totals = [s * (n - 1) + o + e + 1 - size for s, n, o, e, size in zip(strides, places, extra, extents, sizes, strict=True)]
    return [_halves(total if wanted else max(total, 0), "SAME_LOWER" if mode != "SAME_UPPER" else mode) for total in totals]


def _halves(total: int, mode: str) -> tuple[int, int]:
    if total < 0:  # the output that was asked for reaches further than any input does
        return 0, total
    small, large = total // 2, total - total // 2
    return (small, large) if mode == "SAME_UPPER" else (large, small)

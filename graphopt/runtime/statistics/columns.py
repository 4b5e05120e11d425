"""Columns: the unfolded input of a layer, at some positions alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.graph.layers import Layer, Layout
from graphopt.graph.unfold import unfold

Array = np.ndarray[Any, Any]


class Columns:
    """Makes columns of ``X [groups, K, positions]``, which :func:`graphopt.graph.unfold.unfold` would make as a whole.

    All channels of a picture are unfolded alike: one channel that holds the numbers of its own places tells, once unfolded, where each
    column takes its elements from.

    Args:
        layer: what consumes the input.
    """

    def __init__(self, layer: Layer) -> None:
        self._layer = layer
        self._is_picture = layer.layout in (Layout.CONV, Layout.CONV_TRANSPOSE)
        self._channel = _of_one_channel(layer) if self._is_picture else layer
        self._known: Mapping[tuple[int, ...], Array] = {}

    def count(self, array: Array) -> int:
        """How many positions an input has."""
        if self._is_picture:
            return int(array.shape[0] * self._sources(array.shape[2:]).shape[1])
        return int(unfold(self._layer, array).shape[2])

    def at(self, array: Array, positions: Array) -> Array:
        """``float32 [groups, K, positions]``.

        Args:
            array: the input as the operator gets it.
            positions: which ones, counted as `unfold` orders them.
        """
        if not self._is_picture:
            return np.ascontiguousarray(unfold(self._layer, array)[:, :, positions], dtype=np.float32)
        sources = self._sources(array.shape[2:])
        image, place = np.divmod(positions, max(sources.shape[1], 1))
        source = sources[:, place]
        flat = array.reshape(*array.shape[:2], math.prod(array.shape[2:]))
        found = flat[image, :, np.maximum(source - 1, 0)].astype(np.float32, copy=False)  # [taps, positions, channels]
        found[source == 0] = 0
        groups, _, width = self._layer.shape
        return np.ascontiguousarray(found.transpose(2, 0, 1)).reshape(groups, width, positions.size)

    def _sources(self, places: tuple[int, ...]) -> Array:
        """``int32 [taps, positions of a picture]``: one more than the place that each element comes from, 0 where there is none."""
        if places not in self._known:  # of one size alone: others may never come again
            numbers = np.arange(1, 1 + math.prod(places), dtype=np.int32)
            self._known = {places: unfold(self._channel, numbers.reshape(1, 1, *places))[0]}
        return self._known[places]


def _of_one_channel(layer: Layer) -> Layer:
    """A convolution of one channel with the same geometry."""
    kernel = layer.stored_shape[2:]
    weight = ir.val("weight", const_value=ir.tensor(np.zeros((1, 1, *kernel), np.float32), name="weight"))
    node = ir.node(layer.node.op_type, [ir.val("picture"), weight], layer.node.attributes, domain=layer.node.domain)
    return Layer(layer.graph, node, 1, layer.layout, 1)

"""Jobs: each takes one statistic from what a segment of the model returns."""

from __future__ import annotations

import abc
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from graphopt.errors import StatisticsError
from graphopt.graph.layers import Layer, Layout
from graphopt.graph.unfold import unfold
from graphopt.runtime.statistics.layers import LayerStatistics
from graphopt.runtime.statistics.probe import Probes
from graphopt.runtime.statistics.product import Product
from graphopt.runtime.statistics.values import Channels, ValueStatistics

Array = np.ndarray[Any, Any]

_UNFOLDED_BYTES = 32 * 2**20
"""Convolutions are unfolded outside the runtime for so many images of a batch at a time that they fit in this, or one by one."""


@dataclass
class Job(abc.ABC):
    """Takes one statistic.

    Attributes:
        source: the value that it reads.
        held: bytes of what it gathers, for as long as the pass over the samples lasts.
        passing: bytes of activations that it needs while its segment of the model runs.
    """

    source: str
    held: int
    passing: int

    def attach(self, probes: Probes) -> list[str]:
        """Adds reductions to the graph and returns the names of their outputs; none where the value itself is wanted."""
        del probes
        return []

    @abc.abstractmethod
    def take(self, arrays: list[Array]) -> None:
        """Takes in one sample: the outputs that :meth:`attach` named, or the value itself."""

    def finish(self) -> None:  # noqa: B027 - most have nothing left to do
        """Called after the last sample."""

    def set_aside(self) -> None:  # noqa: B027 - most have gathered little
        """Called after a pass that others follow: what was gathered should leave memory."""


@dataclass
class FetchedValue(Job):
    """A value that leaves the runtime, since a histogram is wanted."""

    found: ValueStatistics
    axis: int | None

    def take(self, arrays: list[Array]) -> None:
        """Takes in the value."""
        self.found.add(arrays[0], self.axis)


@dataclass
class ReducedValue(Job):
    """A value that is reduced inside the runtime."""

    found: ValueStatistics
    axis: int | None
    rank: int

    def attach(self, probes: Probes) -> list[str]:
        """Adds size, sums and extremes."""
        value = probes.floats(self.source)
        axes = None if self.axis is None else [other for other in range(self.rank) if other != self.axis % self.rank]
        return probes.sums(value) + probes.extremes(value, axes)

    def take(self, arrays: list[Array]) -> None:
        """Takes in the reductions."""
        count, total, absolute, low, high = arrays
        one = ValueStatistics(
            int(count), float(np.min(low, initial=np.inf)), float(np.max(high, initial=-np.inf)), float(total), float(absolute)
        )
        if self.axis is not None and one.count:
            self.found.add_channels(Channels(self.axis, low.astype(np.float64), high.astype(np.float64)))
        self.found.absorb(one)


@dataclass
class ReducedLayer(Job):
    """A layer whose moments are taken inside the runtime."""

    found: LayerStatistics
    layer: Layer

    def attach(self, probes: Probes) -> list[str]:
        """Adds the unfolding and the products."""
        return probes.moments(self.layer, probes.floats(self.source))

    def take(self, arrays: list[Array]) -> None:
        """Takes in the products."""
        total, gram, size = arrays
        self.found.add(int(size) // total.size, total, gram)

    def set_aside(self) -> None:
        """Moves the matrices to the disk."""
        self.found.set_aside()


@dataclass
class Kept:
    """A layer of the original, with its input for the present sample."""

    layer: Layer
    array: Array | None = None


@dataclass
class KeptInput(Job):
    """Keeps the input of a layer of the original until the model beside it has been run."""

    kept: Kept

    def take(self, arrays: list[Array]) -> None:
        """Keeps the value."""
        self.kept.array = arrays[0]


@dataclass
class FetchedLayer(Job):
    """A layer whose input leaves the runtime and is unfolded here.

    Columns wait until there are as many as rows: one product of many columns is cheaper than many products of a few.
    """

    found: LayerStatistics
    layer: Layer
    multiply: Product
    original: Kept | None = None
    _waiting: list[tuple[Array, Array]] = field(default_factory=list, repr=False)

    def take(self, arrays: list[Array]) -> None:
        """Unfolds, a few images at a time, and takes in the columns.

        Raises:
            StatisticsError: the original's input has another number of positions.
        """
        array, before = arrays[0], None if self.original is None else self.original.array
        for piece in _pieces(self.layer, array):
            x = _unfolded(self.layer, array[piece])
            reference = x if self.original is None or before is None else _unfolded(self.original.layer, before[piece])
            if x.shape[::2] != reference.shape[::2]:
                raise StatisticsError(f"{self.layer.name}: its input has other groups or positions than the original's")
            self._waiting.append((x, reference))
            if sum(block.shape[-1] for block, _ in self._waiting) >= x.shape[1]:
                self.finish()
        if self.original is not None:
            self.original.array = None

    def finish(self) -> None:
        """Multiplies what waits."""
        if not self._waiting:
            return
        x, reference = (np.concatenate(blocks, axis=-1) for blocks in zip(*self._waiting, strict=True))
        self._waiting.clear()
        cross = None if self.original is None else self.multiply(reference, x)
        self.found.add(x.shape[-1], x.sum(axis=-1, dtype=np.float64), self.multiply(x, x), cross)

    def set_aside(self) -> None:
        """Moves the matrices to the disk."""
        self.found.set_aside()


def _unfolded(layer: Layer, array: Array) -> Array:
    return np.ascontiguousarray(unfold(layer, array.astype(np.float32, copy=False)))


def _pieces(layer: Layer, array: Array) -> Iterator[slice]:
    """Parts of the first axis; all of it at once where that is no batch of images."""
    if layer.layout not in (Layout.CONV, Layout.CONV_TRANSPOSE):
        yield slice(None)
        return
    each = max(array[0].nbytes * math.prod(layer.stored_shape[2:]), 1) if array.shape[0] else 1
    step = max(_UNFOLDED_BYTES // each, 1)
    for start in range(0, array.shape[0], step):
        yield slice(start, start + step)

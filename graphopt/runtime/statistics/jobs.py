"""Jobs: each takes one statistic from what a segment of the model returns."""

from __future__ import annotations

import abc
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from graphopt.errors import StatisticsError
from graphopt.graph.layers import Layer
from graphopt.runtime.statistics.columns import Columns
from graphopt.runtime.statistics.layers import LayerStatistics
from graphopt.runtime.statistics.positions import Positions
from graphopt.runtime.statistics.probe import Probes
from graphopt.runtime.statistics.product import Product
from graphopt.runtime.statistics.values import Channels, ValueStatistics

Array = np.ndarray[Any, Any]


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
        """Adds size, sum and extremes."""
        value = probes.floats(self.source)
        axes = None if self.axis is None else [other for other in range(self.rank) if other != self.axis % self.rank]
        return probes.sums(value) + probes.extremes(value, axes)

    def take(self, arrays: list[Array]) -> None:
        """Takes in the reductions."""
        count, total, low, high = arrays
        one = ValueStatistics(int(count), float(np.min(low, initial=np.inf)), float(np.max(high, initial=-np.inf)), float(total))
        if self.axis is not None and one.count:
            self.found.add_channels(Channels(self.axis, low.astype(np.float64), high.astype(np.float64)))
        self.found.absorb(one)


@dataclass
class Kept:
    """A layer of the original, with its input for the present sample."""

    columns: Columns
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
    """A layer whose input leaves the runtime, and is unfolded at some positions.

    Columns wait until there are as many as rows: one product of many columns is cheaper than many products of a few.
    """

    found: LayerStatistics
    layer: Layer
    multiply: Product
    positions: Positions
    original: Kept | None = None
    _columns: Columns = field(init=False, repr=False)
    _waiting: list[tuple[Array, Array]] = field(default_factory=list, repr=False)

    def __post_init__(self) -> None:
        """Prepares the unfolding."""
        self._columns = Columns(self.layer)

    def take(self, arrays: list[Array]) -> None:
        """Takes in columns at the positions that are drawn for the sample.

        Raises:
            StatisticsError: the original's input has another number of positions.
        """
        array, rows = arrays[0], self.layer.shape[2]
        count = self._columns.count(array)
        for positions in self.positions.pieces(count, rows):
            x = self._columns.at(array, positions)
            self._waiting.append((x, self._reference(x, count, positions)))
            if sum(block.shape[-1] for block, _ in self._waiting) >= rows:
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

    def _reference(self, x: Array, count: int, positions: Array) -> Array:
        """What the original has at the same positions; the columns themselves where none runs beside."""
        if self.original is None or self.original.array is None:
            return x
        before = self.original.array
        if self.original.columns.count(before) == count:
            reference = self.original.columns.at(before, positions)
            if len(reference) == len(x):
                return reference
        raise StatisticsError(f"{self.layer.name}: its input has other groups or positions than the original's")

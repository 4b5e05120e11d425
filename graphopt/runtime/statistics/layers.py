"""What samples told about the input of one layer: its mean and its Gram matrix, the metric of every approximation."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

Array = np.ndarray[Any, Any]


@dataclass
class LayerStatistics:
    """Moments of ``X [groups, K, positions]``, the unfolded input of a layer, over all samples.

    Products are taken in float32 over one sample (over several where they are small) and added in float64.

    Attributes:
        n: positions seen.
        total: ``float64 [groups, K]``, the sum of the columns.
        gram: ``float64 [groups, K, K]``, ``H = X X^T``.
        cross: ``float64 [groups, K of the original, K]``, ``C = X_original X^T``; None where no original ran beside.
    """

    n: int
    total: Array
    gram: Array
    cross: Array | None = None

    @classmethod
    def empty(cls, groups: int, width: int, original_width: int | None = None) -> LayerStatistics:
        """Nothing seen yet.

        Args:
            groups: of the layer.
            width: K.
            original_width: K of the original; None where none runs beside.
        """
        cross = None if original_width is None else np.zeros((groups, original_width, width))
        return cls(0, np.zeros((groups, width)), np.zeros((groups, width, width)), cross)

    @property
    def mean(self) -> Array:
        """The mean column, ``float64 [groups, K]``; NaN while nothing was seen."""
        return self.total / self.n if self.n else np.full_like(self.total, np.nan)

    def add(self, n: int, total: Array, gram: Array, cross: Array | None = None) -> None:
        """Takes in the moments of some positions.

        Args:
            n: how many.
            total: ``[groups, K]``.
            gram: ``[groups, K, K]``.
            cross: ``[groups, K of the original, K]``.
        """
        self.n += n
        self.total += total
        self.gram += gram
        if self.cross is not None:
            assert cross is not None, "an original runs beside every sample or none"
            self.cross += cross

    def set_aside(self) -> None:
        """Moves the matrices to a scratch file that vanishes with them; they are read from there when they are next used."""
        self.gram = _on_disk(self.gram)
        if self.cross is not None:
            self.cross = _on_disk(self.cross)

    def merge(self, other: Self) -> LayerStatistics:
        """The statistics of both, to float64 rounding."""
        cross = None if self.cross is None or other.cross is None else self.cross + other.cross
        return LayerStatistics(self.n + other.n, self.total + other.total, self.gram + other.gram, cross)


def _on_disk(array: Array) -> Array:
    # Written, not mapped and then filled: pages that nobody reads through the mapping take no memory of the process.
    with tempfile.TemporaryFile(prefix="graphopt-") as file:
        file.write(np.ascontiguousarray(array).data.cast("B"))
        file.flush()
        return np.memmap(file, dtype=array.dtype, mode="c", shape=array.shape)

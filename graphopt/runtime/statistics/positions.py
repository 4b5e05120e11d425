"""Positions: of which columns of its unfolded input a layer's moments are taken."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

TIMES = 16
"""Positions for each row of a Gram matrix, over all samples: with more of them the matrix says nothing new."""
LEAST = 1 << 14
"""Positions over all samples that even a narrow layer gets."""

_TOGETHER = 1 << 10
_SEED = 20221113


class Positions:
    """Draws positions, all or some, the same ones each time that the same number of samples is gone through.

    Some are taken where samples have more of them than a Gram matrix needs: one at random from each of as many stretches of equal
    length, so that every image and every part of it counts. Two layers with as many positions and rows get the same ones.

    Args:
        samples: how many there are; each gives its share.
    """

    def __init__(self, samples: int) -> None:
        self._samples, self._number = max(samples, 1), 0

    def begin(self, number: int) -> None:
        """The next sample is the one with this number."""
        self._number = number

    def most(self, rows: int) -> int:
        """How many are taken of one sample at most, for a Gram matrix of so many rows."""
        return -(-max(TIMES * rows, LEAST) // self._samples)

    def drawn(self, count: int, rows: int) -> Array:
        """The positions to take of one sample, rising: ``int64 [positions]``.

        Args:
            count: how many it has.
            rows: of the Gram matrix.
        """
        most = self.most(rows)
        if count <= most:
            return np.arange(count)
        edges = np.arange(most + 1) * count // most
        return np.random.default_rng((_SEED, self._number)).integers(edges[:-1], edges[1:])

    def pieces(self, count: int, rows: int) -> Iterator[Array]:
        """What :meth:`drawn` gives, about as many at a time as there are rows."""
        drawn, step = self.drawn(count, rows), max(rows, _TOGETHER)
        yield from (drawn[start : start + step] for start in range(0, drawn.size, step))

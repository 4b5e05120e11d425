"""Evidence for a regression: positions themselves as long as they are fewer than the inputs, then their moments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from graphopt.solve import dual
from graphopt.solve.dual import Pairs
from graphopt.solve.metric import Metric
from graphopt.solve.regression import Moments, regression

Array = np.ndarray[Any, Any]


class Evidence:
    """What was seen of a layer's inputs and of its wanted outputs.

    Args:
        groups: of the layer.
        out: outputs of each.
        width: inputs of each.
        product: makes ``left right^T`` of two stacks of matrices.
    """

    def __init__(self, groups: int, out: int, width: int, product: Callable[[Array, Array], Array]) -> None:
        self._shape, self._product = (groups, out, width), product
        self._pieces: list[tuple[Array, Array]] = []
        self._moments: Moments | None = None

    @property
    def n(self) -> int:
        """Positions seen."""
        return sum(int(x.shape[2]) for x, _ in self._pieces) + (0 if self._moments is None else self._moments.n)

    def add(self, x: Array, t: Array) -> None:
        """Takes in some positions.

        Args:
            x: ``[groups, K, positions]``.
            t: ``[groups, out, positions]``.
        """
        self._pieces.append((x, t))
        if self._moments is not None or self.n > self._shape[2]:
            self._moments = self.moments()
            self._pieces = []

    def moments(self) -> Moments:
        """Their moments."""
        found = self._moments or Moments.empty(*self._shape)
        for x, t in self._pieces:
            found.add(x, t, self._product)
        return found

    def pairs(self) -> Pairs | None:
        """The positions; None where there are more than inputs."""
        if self._moments is not None:
            return None
        groups, out, width = self._shape
        inputs = [np.empty((groups, 0, width), np.float32), *(x.swapaxes(1, 2) for x, _ in self._pieces)]
        outputs = [np.empty((groups, out, 0), np.float32), *(t for _, t in self._pieces)]
        return Pairs(np.concatenate(inputs, axis=1, dtype=np.float32), np.concatenate(outputs, axis=2, dtype=np.float32))

    def refitted(
        self, held: Evidence, weight: Array, *, affine: bool, project: Callable[[Array, Metric], Array] | None = None
    ) -> tuple[Array, Array] | None:
        """The weight and shift for it; see :func:`graphopt.solve.regression.regression`.

        Args:
            held: what was kept out.
            weight: ``[groups, out, K]``, the present one.
            affine: a shift may be added to the outputs.
            project: brings a weight to the closest one of some kind in a metric.
        """
        if project is None and self.n + held.n <= self._shape[2]:
            few, kept_out = self.pairs(), held.pairs()
            if few is not None and kept_out is not None:
                return dual.regression(few, kept_out, weight, affine=affine)
        return regression(self.moments(), held.moments(), weight, affine=affine, project=project)

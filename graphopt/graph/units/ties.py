"""Ties: which units of a model's axes can only go together, and which cannot go at all."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import scipy.sparse
from scipy.sparse.csgraph import connected_components

Array = np.ndarray[Any, Any]
Axis = Array | None
"""One unit per index, ``int64 [length]``; None for an axis that stays as it is."""


@dataclass
class Ties:
    """Units, numbered from 0, and what is known of them.

    Attributes:
        count: units made so far.
        pinned: units that must stay, with the reason, in the order in which they were found.
    """

    count: int = 0
    pinned: list[tuple[Array, str]] = field(default_factory=list)
    _pairs: list[tuple[Array, Array]] = field(default_factory=list)

    def fresh(self, length: int) -> Array:
        """Units of an axis that nothing is known of yet."""
        units = np.arange(self.count, self.count + length, dtype=np.int64)
        self.count += length
        return units

    def tie(self, a: Axis, b: Axis, reason: str) -> Axis:
        """Two axes (of one length, or broadcasting) whose indices go together; what is tied to an axis that stays is pinned."""
        if a is None or b is None:
            self.pin(a, reason)
            self.pin(b, reason)
            return None
        left, right = np.broadcast_arrays(a, b)
        self._pairs.append((left.reshape(-1), right.reshape(-1)))
        return a

    def tie_rows(self, rows: Array) -> Array:
        """Units ``[rows, n]`` of which each row goes together; returns one of each row."""
        first = rows[:, :1]
        if rows.shape[1] > 1:
            self.tie(np.broadcast_to(first, rows.shape)[:, 1:], rows[:, 1:], "")
        return rows[:, 0]

    def pin(self, units: Axis, reason: str) -> None:
        """Units that must stay."""
        if units is not None and units.size:
            self.pinned.append((units.reshape(-1), reason))

    def components(self) -> Components:
        """The sets of units that can only go together."""
        pairs = [np.stack([a, b]) for a, b in self._pairs]
        left, right = np.concatenate(pairs, axis=1) if pairs else np.zeros((2, 0), np.int64)
        matrix = scipy.sparse.coo_matrix((np.ones(left.size, np.int8), (left, right)), shape=(self.count, self.count))
        number, labels = connected_components(matrix, directed=False)
        reasons: dict[int, str] = {}
        stays = np.zeros(number, bool)
        for units, reason in self.pinned:
            found = np.unique(labels[units])
            for label in found[~stays[found]].tolist():
                reasons[label] = reason
            stays[found] = True
        return Components(labels.astype(np.int64), stays, reasons)


@dataclass(frozen=True, eq=False)
class Components:
    """Units by the component that they belong to.

    Attributes:
        labels: ``int64 [units]``, the component of each unit.
        stays: ``bool [components]``, whether one of its units is pinned.
        reasons: why, by component.
    """

    labels: Array
    stays: Array
    reasons: dict[int, str]

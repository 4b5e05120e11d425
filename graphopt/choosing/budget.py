"""Budgets: which approximations are left out, so that the others keep within what the model may lose."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from graphopt.choosing.sensitivity import Effects

Array = np.ndarray[Any, Any]

_MOST_TRIES = 10
_GUESSES = 4
"""So many tries follow the prediction; then the interval is halved."""
_LEAST_SCALE, _LARGEST_SCALE = 1e-2, 1e3


@dataclass(frozen=True)
class Trial:
    """What was seen with some approximations left out.

    Attributes:
        kept_within: the rest keeps within the limit.
        total: ``float64 [pairs]``, its noise.
    """

    kept_within: bool
    total: Array


class Budget:
    """Predicts the noise of any set of approximations: the powers of independent noise add up.

    Approximations that come together are not quite independent, so each sum is scaled to what was measured last.
    """

    def __init__(self, effects: Effects, allowed: float) -> None:
        """Takes what was measured.

        Args:
            effects: of the approximations one by one.
            allowed: the power of the noise that every output may have, relative to its own.
        """
        self._base = effects.base
        self._noise = np.stack([effect.noise for effect in effects.each])
        self._worth = np.array([effect.worth for effect in effects.each])
        self._allowed = allowed
        self._scale = np.ones_like(effects.base)
        self.calibrate([], effects.total)

    def calibrate(self, left_out: Sequence[int], total: Array) -> None:
        """Scales predictions so that they say of some approximations what was measured."""
        summed = np.delete(self._noise, list(left_out), axis=0).sum(axis=0)
        with np.errstate(divide="ignore", invalid="ignore"):
            scale = np.maximum(total - self._base, 0.0) / summed
        known = np.isfinite(scale) & (summed > 0)
        self._scale = np.where(known, np.clip(scale, _LEAST_SCALE, _LARGEST_SCALE), self._scale)

    def order(self) -> list[int]:
        """All approximations, by what leaving one out helps where too much is lost, for what it gives up; at last by noise alone."""
        left = list(range(len(self._worth)))
        order: list[int] = []
        total = self._predicted(order)
        while left:
            excess = np.maximum(total - self._allowed, 0.0)
            added = self._noise[left] * self._scale
            helped = np.minimum(added, excess).sum(axis=1) if excess.any() else added.sum(axis=1)
            if not helped.any():
                helped = added.sum(axis=1)
            best = left[int(np.argmax(helped / self._worth[left]))]
            left.remove(best)
            order.append(best)
            total = self._predicted(order)
        return order

    def enough(self, order: Sequence[int]) -> int:
        """How many of the first of an order have to be left out, as predicted."""
        return next((n for n in range(len(order)) if (self._predicted(order[:n]) <= self._allowed).all()), len(order))

    def _predicted(self, left_out: Sequence[int]) -> Array:
        total: Array = self._base + self._scale * np.delete(self._noise, list(left_out), axis=0).sum(axis=0)
        return total


def fewest_left_out(effects: Effects, allowed: float, attempt: Callable[[Sequence[int]], Trial]) -> list[int]:
    """The approximations to leave out: the first of an order, less the harmless ones among them, as a handful of attempts can tell.

    Args:
        effects: of the approximations one by one; all of them together are known to be too much, none of them to be right.
        allowed: the power of the noise that every output may have, relative to its own; other limits may be at work besides.
        attempt: leaves some out and says what comes of it.
    """
    budget = Budget(effects, allowed)
    order = budget.order()
    low, high, tries = 0, len(order), 0
    while high - low > 1 and (tries < _MOST_TRIES or high == len(order)):
        guess = budget.enough(order)
        number = guess if tries < _GUESSES and low < guess < high else (low + high) // 2
        trial = attempt(order[:number])
        budget.calibrate(order[:number], trial.total)
        low, high = (low, number) if trial.kept_within else (number, high)
        tries += 1
    return _less_the_harmless(order[:high], effects, attempt)


def _less_the_harmless(left_out: list[int], effects: Effects, attempt: Callable[[Sequence[int]], Trial]) -> list[int]:
    """Takes those back in that bring the least noise: what was expected to be enough may have been none of the trouble."""
    harmless = sorted(left_out, key=lambda index: float(effects.each[index].noise.sum()))
    low, high = 0, len(harmless)
    while high - low > 1:
        middle = (low + high) // 2
        taken_back = set(harmless[:middle])
        kept_within = attempt([index for index in left_out if index not in taken_back]).kept_within
        low, high = (middle, high) if kept_within else (low, middle)
    taken_back = set(harmless[:low])
    return [index for index in left_out if index not in taken_back]

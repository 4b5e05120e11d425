"""Where a generator's decisions come from: a seed, or hypothesis, which can shrink them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Protocol, TypeVar

from hypothesis import strategies
from hypothesis.strategies import DrawFn

T = TypeVar("T")


class Source(Protocol):
    """Decides."""

    def integer(self, low: int, high: int) -> int:
        """An integer between two bounds, both included; ``low`` is the simplest one."""


class Seeded:
    """Decisions that follow from a seed; quick."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def integer(self, low: int, high: int) -> int:
        """An integer between two bounds, both included."""
        return self._random.randint(low, high)


class Drawn:
    """Decisions that hypothesis makes."""

    def __init__(self, draw: DrawFn) -> None:
        self._draw = draw

    def integer(self, low: int, high: int) -> int:
        """An integer between two bounds, both included."""
        return self._draw(strategies.integers(low, high))


class Choices:
    """Decisions of several kinds, all made of integers.

    Attributes:
        source: makes them.
    """

    def __init__(self, source: Source) -> None:
        self.source = source

    def integer(self, low: int, high: int) -> int:
        """An integer between two bounds, both included."""
        return self.source.integer(low, high)

    def one_of(self, options: Sequence[T]) -> T:
        """One of some options, the first being the simplest."""
        return options[self.source.integer(0, len(options) - 1)]

    def chance(self, percent: int) -> bool:
        """True in that share of cases; False is simpler."""
        return self.source.integer(0, 99) >= 100 - percent

    def shuffled(self, items: Sequence[T]) -> list[T]:
        """The items in another order."""
        rest = list(items)
        return [rest.pop(self.source.integer(0, len(rest) - 1)) for _ in items]

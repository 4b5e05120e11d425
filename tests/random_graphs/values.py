"""What the generator knows of a value: its type, its shape at two sizes of the dynamic lengths, and how tame its numbers are."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

Size = tuple[int, int]
"""A length at either size of the dynamic lengths; both numbers are the same where it is static."""
Shape = tuple[Size, ...]

SYMBOLS: dict[str, Size] = {"b": (2, 3), "s": (5, 4), "t": (1, 7)}
"""Names of dynamic lengths. They differ enough for no two expressions in them to be confused."""
OTHER_SIZES: tuple[dict[str, int], ...] = ({"b": 1, "s": 1, "t": 1}, {"b": 0, "s": 2, "t": 3})
"""Further sizes, which a graph need not accept."""


@dataclass(frozen=True)
class Value:
    """A tensor of a graph under construction.

    Attributes:
        name: in the graph.
        dtype: numpy's name of the element type.
        shape: lengths at both sizes.
        bound: about the largest magnitude.
        exact: no rewrite may change a single bit, so that it may pass through a step function.
    """

    name: str
    dtype: str
    shape: Shape
    bound: float = 4.0
    exact: bool = False

    @property
    def rank(self) -> int:
        """The number of axes."""
        return len(self.shape)

    @property
    def is_float(self) -> bool:
        """Whether it holds floats."""
        return self.dtype in ("float16", "float32", "float64")

    @property
    def is_plain(self) -> bool:
        """Whether all its lengths are static or have a name, so that an input may have its shape."""
        return all(is_static(size) or size in SYMBOLS.values() for size in self.shape)

    @property
    def static(self) -> tuple[int, ...] | None:
        """The shape, where all lengths are static."""
        return tuple(size[0] for size in self.shape) if all(map(is_static, self.shape)) else None


def fixed(*lengths: int) -> Shape:
    """A static shape."""
    return tuple((length, length) for length in lengths)


def is_static(size: Size) -> bool:
    """Whether a length is the same at both sizes."""
    return size[0] == size[1]


def each(function: Callable[..., int], *sizes: Size) -> Size:
    """A function of lengths at both sizes."""
    return function(*(size[0] for size in sizes)), function(*(size[1] for size in sizes))


def product(sizes: Iterable[Size]) -> Size:
    """The number of elements at both sizes."""
    listed = list(sizes)
    return math.prod(size[0] for size in listed), math.prod(size[1] for size in listed)


def total(sizes: Iterable[Size]) -> Size:
    """The sum of lengths at both sizes."""
    listed = list(sizes)
    return sum(size[0] for size in listed), sum(size[1] for size in listed)


def broadcast(*shapes: Shape) -> Shape | None:
    """What shapes broadcast to at any size; None where they do not."""
    rank = max(map(len, shapes))
    result: list[Size] = []
    for axis in range(-rank, 0):
        lengths = {shape[axis] for shape in shapes if -axis <= len(shape)} - {(1, 1)}
        if len(lengths) > 1:
            return None
        result.append(lengths.pop() if lengths else (1, 1))
    return tuple(result)


def replaced(shape: Sequence[Size], axis: int, size: Size) -> Shape:
    """A shape with another length on one axis."""
    return (*shape[:axis], size, *shape[axis + 1 :])

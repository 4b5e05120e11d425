"""What shape inference knows about a value, and the operands of a node as its rules see them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from graphopt.graph.shapes import dims
from graphopt.graph.shapes.dims import Dim

Shape = tuple[Dim, ...]
Content = NDArray[np.object_]
"""Elements of a small tensor: ``Dim`` for integers, ``bool``, numpy scalars for floats; None for an unknown element."""

CONTENT_LIMIT = 64
"""Tensors with more elements are never followed by content."""

INTEGERS = {ir.DataType.INT64: (-(1 << 63), (1 << 63) - 1), ir.DataType.INT32: (-(1 << 31), (1 << 31) - 1)}
"""Integer types whose contents are followed, with their ranges."""
FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE})


@dataclass(frozen=True)
class Fact:
    """What is known about one value.

    Attributes:
        dtype: the element type, or None.
        shape: one length per axis, or None where even the rank is unknown.
        content: the elements in that shape (then wholly integers), where they are followed.
    """

    dtype: ir.DataType | None = None
    shape: Shape | None = None
    content: Content | None = None


NOTHING = Fact()


@dataclass(frozen=True)
class Operands:
    """A node with the facts of its inputs (an absent optional input has none).

    Attributes:
        opset: the version of the node's domain that the model imports.
        fresh: makes a length that is known to be nothing else.
    """

    node: ir.Node
    opset: int
    facts: tuple[Fact | None, ...]
    fresh: Callable[[], Dim]

    def fact(self, index: int) -> Fact:
        """The fact of an input; one that knows nothing where the input is absent."""
        return (self.facts[index] or NOTHING) if index < len(self.facts) else NOTHING

    def has(self, index: int) -> bool:
        """Whether the optional input is there."""
        return index < len(self.facts) and self.facts[index] is not None

    def shape(self, index: int = 0) -> Shape | None:
        """The shape of an input."""
        return self.fact(index).shape

    def dtype(self, index: int = 0) -> ir.DataType | None:
        """The element type of an input."""
        return self.fact(index).dtype

    def content(self, index: int) -> Content | None:
        """The elements of an input; some may be None."""
        return self.fact(index).content

    def dims(self, index: int) -> list[Dim | None] | None:
        """The elements of an integer input of rank 0 or 1, flat."""
        content = self.content(index)
        return None if content is None or self.dtype(index) not in INTEGERS else list(content.reshape(-1))

    def integers(self, index: int) -> list[int] | None:
        """The elements of an integer input, flat, where each of them is a number."""
        elements = self.dims(index)
        return None if elements is None else whole_numbers(elements)

    def attribute(self, name: str, default: Any = None) -> Any:
        """The value of an attribute; the default where it is absent or refers to a function's parameter."""
        found = self.node.attributes.get(name)
        return default if found is None or found.is_ref() else found.value

    def fresh_shape(self, rank: int) -> Shape:
        """A shape of which only the rank is known."""
        return tuple(self.fresh() for _ in range(rank))


def whole_numbers(elements: Iterable[object]) -> list[int] | None:
    """The elements as numbers, or None if one of them is symbolic or unknown."""
    found = list(elements)
    return [int(e) for e in found if isinstance(e, int)] if all(isinstance(e, int) for e in found) else None


def with_content(dtype: ir.DataType | None, content: Content | None) -> Fact | None:
    """The fact of a tensor with these elements, or None where there are none or too many."""
    if content is None or content.size > CONTENT_LIMIT:
        return None
    return Fact(dtype, content.shape, content)


def content_of(elements: object) -> Content:
    """An object array of nested elements; sympy expressions stay whole."""
    return np.asarray(elements, dtype=object)


def fact_of_tensor(tensor: ir.TensorProtocol) -> Fact:
    """The fact of a constant; its elements are read only where it is small."""
    lengths = tuple(int(d) for d in tensor.shape)  # type: ignore[arg-type]
    small = int(np.prod(lengths)) <= CONTENT_LIMIT and _is_followed(tensor.dtype)
    return Fact(tensor.dtype, lengths, content_of_array(tensor.numpy(), tensor.dtype) if small else None)


def content_of_array(array: np.ndarray[tuple[int, ...], np.dtype[np.generic]], dtype: ir.DataType) -> Content | None:
    """The elements of a numpy array, or None where their type is not followed."""
    if not _is_followed(dtype):
        return None
    result = np.empty(array.shape, dtype=object)
    # astype(object) would turn numpy's floats into Python's, which have another precision
    result.reshape(-1)[:] = list(array.reshape(-1)) if dtype in FLOATS else array.reshape(-1).tolist()
    return result


def _is_followed(dtype: ir.DataType | None) -> bool:
    return dtype in INTEGERS or dtype in FLOATS or dtype == ir.DataType.BOOL


def filled(dtype: ir.DataType | None, result: Shape | None, content: Content | None) -> Fact | None:
    """The fact of elements that are broadcast to a shape, where it is small and known."""
    if result is None or content is None or not all(isinstance(d, int) for d in result):
        return None
    lengths = [int(d) for d in result]
    return Fact(dtype, result, np.broadcast_to(content, lengths)) if np.prod(lengths) <= CONTENT_LIMIT else None


def lengths_of(operands: Operands, elements: Sequence[Dim | None]) -> Shape:
    """Elements as lengths; what is unknown or may be negative becomes a fresh one."""
    return tuple(operands.fresh() if e is None or not dims.at_least(e, 0) else e for e in elements)


def count_of(of: Shape | None) -> int | None:
    """The number of elements of a vector's shape, where known."""
    return int(of[0]) if of is not None and len(of) == 1 and isinstance(of[0], int) else None


def vector(elements: Sequence[Dim]) -> Content:
    """The content of a vector."""
    return content_of(list(elements))

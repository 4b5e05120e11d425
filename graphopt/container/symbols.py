"""From elements to symbols: ways to split a stream of elements into streams of bytes, and back; a table, and the choice.

Each way makes order-0 coding of its parts at least as good as that of the bytes as they lie: a symbol never mixes what is
predictable (an exponent, the position of a zero, which of few values) with what is not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from graphopt.container.entropy import Bytes
from graphopt.container.kinds import Kind
from graphopt.errors import ContainerError

Elements = np.ndarray[Any, Any]


class Part(NamedTuple):
    """A stream of bytes.

    Attributes:
        data: the bytes.
        bits: of a symbol: 1, 2, 4 or 8; smaller ones share a byte.
    """

    data: Bytes
    bits: int = 8


class Split(NamedTuple):
    """A stream of elements in parts, and the number of the way that it was split."""

    way: int
    parts: list[Part]


Take = Callable[[int], Bytes]
"""Gives the next part, of so many bytes."""

_WHOLE, _PLANES, _SPARSE, _CODEBOOK = range(4)

_MOST_VALUES = 256
"""Values in a codebook: an index is a byte."""

_PROBED = 1 << 13
"""Elements that are looked at for values of a codebook before all are searched for others."""

_SEARCHES = 8
"""How often all elements are searched: values so rare that more were needed are no codebook's."""

_FEW_ZEROS = 64
"""Positions of zeros are stored apart where at least one element in so many is zero."""


def split(data: Bytes, kind: Kind) -> Split:
    """Splits a stream of elements in the way that suits them.

    Args:
        data: the elements' bytes.
        kind: what the elements are.
    """
    if kind.width == 1 or data.size % kind.width or not data.size:
        return Split(_WHOLE, [Part(data, min(kind.bits, 8))])
    elements = data.view(f"<u{kind.width}")
    values = _values(elements)
    if values is not None:
        return Split(_CODEBOOK, _indexed(elements, values))
    nonzero = elements != 0
    kept = int(np.count_nonzero(nonzero))
    if elements.size - kept >= elements.size / _FEW_ZEROS:
        flags = Part(np.packbits(nonzero, bitorder="little"), 1)
        return Split(_SPARSE, [flags, *_planes(elements[nonzero], kind)])
    return Split(_PLANES, _planes(elements, kind))


def join(way: int, length: int, kind: Kind, take: Take) -> Bytes:
    """Puts a stream of elements together again.

    Args:
        way: how it was split.
        length: of the stream, in bytes.
        kind: what the elements are.
        take: gives the parts, one after another.

    Raises:
        ContainerError: there is no such way, it is none for the kind, or an index has no value.
    """
    if way == _WHOLE:
        return take(length)
    if way >= len(_JOINS) or kind.width == 1 or length % kind.width:
        raise ContainerError(f"elements of {kind.bits} bits are not split in the way {way}")
    return _JOINS[way](length // kind.width, kind, take).view(np.uint8)


def _planes(elements: Elements, kind: Kind) -> list[Part]:
    """The elements' bytes, all first ones, all second ones and so on."""
    if kind.is_float:  # the sign goes below the mantissa, so that the exponent begins a byte
        elements = (elements << 1) | (elements >> (kind.bits - 1))
    rows = elements.view(np.uint8).reshape(-1, kind.width)
    return [Part(np.ascontiguousarray(rows[:, place])) for place in range(kind.width)]


def _take_planes(count: int, kind: Kind, take: Take) -> Elements:
    rows = np.empty((count, kind.width), np.uint8)
    for place in range(kind.width):
        rows[:, place] = take(count)
    elements = rows.view(f"<u{kind.width}").reshape(-1)
    return (elements >> 1) | (elements << (kind.bits - 1)) if kind.is_float else elements


def _take_sparse(count: int, kind: Kind, take: Take) -> Elements:
    flags = take(-(-count // 8))
    nonzero = np.unpackbits(flags, count=count, bitorder="little").view(np.bool_)
    elements = np.zeros(count, f"<u{kind.width}")
    elements[nonzero] = _take_planes(int(np.count_nonzero(nonzero)), kind, take)
    return elements


def _values(elements: Elements) -> Elements | None:
    """All values that occur, ascending; None where they are too many for a codebook, or hardly ever occur twice."""
    most = min(_MOST_VALUES, elements.size // 4)
    values = np.unique(_probe(elements))
    for _ in range(_SEARCHES):
        if values.size > most:
            return None
        places = np.minimum(np.searchsorted(values, elements), values.size - 1)
        unknown = elements[values[places] != elements]
        if not unknown.size:
            return values
        values = np.union1d(values, _probe(unknown))
    return None


def _probe(elements: Elements) -> Elements:
    """Some of the elements, from all over the tensor: its rows may have values of their own."""
    return elements[:: -(-elements.size // _PROBED)]


def _indexed(elements: Elements, values: Elements) -> list[Part]:
    count = np.array([values.size - 1], np.uint8)
    return [Part(count), Part(values.view(np.uint8)), Part(np.searchsorted(values, elements).astype(np.uint8))]


def _take_indexed(count: int, kind: Kind, take: Take) -> Elements:
    size = int(take(1)[0]) + 1
    values = take(size * kind.width).view(f"<u{kind.width}")
    indices = take(count)
    if count and int(indices.max()) >= size:
        raise ContainerError("an index has no value")
    return np.take(values, indices, mode="clip")


_JOINS: tuple[Callable[[int, Kind, Take], Elements], ...] = (
    lambda count, kind, take: take(count * kind.width),
    _take_planes,
    _take_sparse,
    _take_indexed,
)
"""What joins the parts of each way, by its number."""

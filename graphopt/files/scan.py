"""A look at a model file that reads neither its weights nor most of its pages."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

_GRAPH, _INITIALIZER, _RAW_DATA = 7, 5, 9
"""Numbers of the fields ``ModelProto.graph``, ``GraphProto.initializer`` and ``TensorProto.raw_data``."""

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
"""Ways in which protobuf stores a field."""

_LONGEST_VARINT = 70
"""Bits that a number may take in a file: 64, seven to a byte."""

_KEY = b"location"
"""The key under which every reference to a data file stands."""


def may_refer_to_data(file: Path) -> bool:
    """Whether a model file may refer to data files: parsing a large model is saved where it does not.

    Args:
        file: a model file; where it is missing the answer is no, and where it is damaged, yes, so that its reader reports it.
    """
    try:
        with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return any(content.find(_KEY, start, end) >= 0 for start, end in _beside_weights(content))
    except (IndexError, ValueError):  # not protobuf, or empty
        return True
    except OSError:
        return False


def _beside_weights(content: mmap.mmap) -> Iterator[tuple[int, int]]:
    """Where everything stands but the data of initializers."""
    for number, start, end in fields(content, 0, len(content)):
        if number != _GRAPH:
            yield start, end
            continue
        for inner, begin, stop in fields(content, start, end):
            if inner != _INITIALIZER:
                yield begin, stop
                continue
            yield from ((first, last) for which, first, last in fields(content, begin, stop) if which != _RAW_DATA)


def fields(content: mmap.mmap, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """The fields of a message.

    Args:
        content: the model file.
        start: where the message begins.
        end: where it ends.

    Yields:
        The field's number, and the first byte and the end of its value.

    Raises:
        ValueError, IndexError: the bytes are no message; fields before the fault were given.
    """
    while start < end:
        key, start = varint(content, start)
        kind, stop = key & 7, 0
        if kind == _VARINT:
            _, stop = varint(content, start)
        elif kind == _BYTES:
            length, start = varint(content, start)
            stop = start + length
        elif kind in (_FIXED32, _FIXED64):
            stop = start + (4 if kind == _FIXED32 else 8)
        if not start <= stop <= end:
            raise ValueError("not a message")
        yield key >> 3, start, stop
        start = stop


def varint(content: mmap.mmap, start: int) -> tuple[int, int]:
    """A number and the place behind it.

    Raises:
        ValueError, IndexError: there is none.
    """
    value = 0
    for shift in range(0, _LONGEST_VARINT, 7):
        byte = content[start]
        start += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, start
    raise ValueError("not a number")

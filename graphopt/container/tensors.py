"""Where the data of a model's tensors lies, in its own file and in data files: found without reading the data.

What is not understood is no error: those bytes are stored as bytes.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from graphopt.container.blocks import Run
from graphopt.container.kinds import COMPONENTS, KINDS, OTHER
from graphopt.errors import ModelFileError
from graphopt.files.external import DataFile, find
from graphopt.files.scan import fields, varint

_SHORTEST = 64
"""Bytes of tensor data that are worth a run of their own."""

_SMALLEST_MESSAGE = 12
"""Bytes of a message that could hold a tensor whose data lies elsewhere."""

_LARGE = 1 << 18
"""Bytes of a tensor above which the pages mapped for it are given back."""

_DEEPEST = 128
"""Messages within messages: a bound for hostile input."""

_TENSOR = "tensor"
_MESSAGES = {
    "model": {7: "graph", 25: "function"},
    "graph": {1: "node", 5: _TENSOR, 15: "sparse tensor"},
    "function": {7: "node"},
    "node": {5: "attribute"},
    "attribute": {5: _TENSOR, 6: "graph", 10: _TENSOR, 11: "graph"},
    "sparse tensor": {1: _TENSOR, 2: _TENSOR},
}
"""The messages that lead to tensors: for each, the numbers of the fields that hold a further one."""

_DIMS, _DATA_TYPE, _FLOATS, _NAME, _RAW, _DOUBLES, _EXTERNAL, _LOCATION = 1, 2, 4, 8, 9, 10, 13, 14
"""Numbers of the fields of a tensor."""

_KEY, _VALUE = 1, 2
"""Numbers of the fields of an entry about external data."""

_TYPED = {_FLOATS: 1, _DOUBLES: 11}
"""Fields that hold elements of one type, as they lie in memory: its number."""


class Region(NamedTuple):
    """Where the elements of a tensor lie in a file.

    Attributes:
        start: first byte.
        end: the byte behind the last.
        kind: number of the kind of the elements.
    """

    start: int
    end: int
    kind: int


class Reference(NamedTuple):
    """Where the elements of a tensor lie in a data file.

    Attributes:
        tensor: its name.
        location: the data file, as the model names it.
        region: in the data file.
    """

    tensor: str
    location: str
    region: Region


class Layout(NamedTuple):
    """Where a model's bytes lie.

    Attributes:
        regions: of tensors in the model file.
        data: the data files by the location that the model names, each with its regions.
    """

    regions: list[Region]
    data: dict[str, tuple[DataFile, list[Region]]]


def layout_of(file: Path) -> Layout:
    """Finds the tensors of a model.

    Args:
        file: a model file.

    Raises:
        ModelFileError: the file is no ONNX model, or a data file that it refers to is missing or out of bounds.
    """
    inline: list[Region] = []
    found: dict[str, tuple[DataFile, list[Region]]] = {}
    try:
        with file.open("rb") as stream, _mapped(stream, file) as content:
            if not _has_graph(content):
                raise ModelFileError(f"{file}: not an ONNX model: it has no graph")
            for start, end in _tensors(content, "model", 0, len(content), _DEEPEST):
                places, reference = _placed(content, start, end)
                if end - start >= _LARGE and hasattr(content, "madvise"):
                    content.madvise(mmap.MADV_DONTNEED)  # the system maps more around what was read than was asked for
                inline += places
                if reference is not None:
                    if reference.location not in found:
                        found[reference.location] = (find(reference.location, file, reference.tensor), [])
                    found[reference.location][1].append(reference.region)
    except OSError as error:
        raise ModelFileError(f"{file}: cannot be read: {error.strerror or error}") from error
    return Layout(inline, found)


def _mapped(stream: BinaryIO, file: Path) -> mmap.mmap:
    try:
        return mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    except ValueError as error:
        raise ModelFileError(f"{file}: the file is empty") from error


def runs_of(size: int, regions: Iterable[Region]) -> Iterator[Run]:
    """A file's bytes in order: those of tensors, and what lies between.

    Args:
        size: of the file in bytes.
        regions: of tensors, in any order; where they overlap, the first goes first, and none passes the file's end.
    """
    at = 0
    for region in sorted(regions):
        end = min(region.end, size)
        if region.start < at or end - region.start < _SHORTEST:
            continue
        if region.start > at:
            yield Run(OTHER, region.start - at)
        yield Run(region.kind, end - region.start)
        at = end
    if at < size:
        yield Run(OTHER, size - at)


def _has_graph(content: mmap.mmap) -> bool:
    try:
        return any(_MESSAGES["model"].get(number) == "graph" for number, _, _ in fields(content, 0, len(content)))
    except (ValueError, IndexError):
        return False


def _tensors(content: mmap.mmap, message: str, start: int, end: int, depth: int) -> Iterator[tuple[int, int]]:
    """First byte and end of the tensors below a message, as far as it can be read."""
    inner = _MESSAGES[message]
    try:
        for number, first, last in fields(content, start, end):
            if number not in inner or last - first < _SMALLEST_MESSAGE:
                continue
            if inner[number] == _TENSOR:
                yield first, last
            elif depth:
                yield from _tensors(content, inner[number], first, last, depth - 1)
    except (ValueError, IndexError):
        return


def _placed(content: mmap.mmap, start: int, end: int) -> tuple[list[Region], Reference | None]:
    """Where the elements of a tensor lie: within it, or elsewhere."""
    try:
        members = list(fields(content, start, end))
        kind = _kind(content, members)
        inline = [Region(*_bounds(member), kind) for member in members if member[0] == _RAW]
        inline += [Region(*_bounds(member), _TYPED[member[0]]) for member in members if member[0] in _TYPED]
        return inline, _reference(content, members, kind)
    except (ValueError, IndexError):
        return [], None


_Field = tuple[int, int, int]
"""A field's number, its first byte and its end."""


def _bounds(member: _Field) -> tuple[int, int]:
    return member[1], member[2]


def _number(content: mmap.mmap, members: list[_Field], wanted: int) -> int:
    """The last value of a field that holds a number, or 0."""
    return next((varint(content, start)[0] for number, start, _ in reversed(members) if number == wanted), 0)


def _text(content: mmap.mmap, members: list[_Field], wanted: int) -> str:
    """The last value of a field that holds text, or nothing."""
    return next((content[start:end].decode(errors="replace") for number, start, end in reversed(members) if number == wanted), "")


def _kind(content: mmap.mmap, members: list[_Field]) -> int:
    data_type = _number(content, members, _DATA_TYPE)
    data_type = COMPONENTS.get(data_type, data_type)
    return data_type if data_type in KINDS else OTHER


def _reference(content: mmap.mmap, members: list[_Field], kind: int) -> Reference | None:
    if not _number(content, members, _LOCATION):
        return None
    pairs = [list(fields(content, start, end)) for number, start, end in members if number == _EXTERNAL]
    entries = {_text(content, pair, _KEY): _text(content, pair, _VALUE) for pair in pairs}
    if "location" not in entries:
        return None
    offset, length = (int(text) if (text := entries.get(key, "")).isdecimal() else 0 for key in ("offset", "length"))
    region = Region(offset, offset + (length or _bytes(content, members, kind)), kind)
    return Reference(_text(content, members, _NAME), entries["location"], region)


def _bytes(content: mmap.mmap, members: list[_Field], kind: int) -> int:
    """The bytes that a tensor's shape asks for."""
    count = 1
    for number, start, end in members:
        at = start
        while number == _DIMS and at < end:  # one number, or several packed
            dim, at = varint(content, at)
            count *= dim
    return (count * KINDS[kind].bits + 7) // 8

"""Blocks: runs of a file that are coded and decoded by themselves, in bounded memory.

A block's content begins with its layout: the runs of bytes in the order of the file, each with the kind of its elements.
Then come the streams. A run of at least `ALONE` bytes is a stream; shorter runs of a kind are one stream together, which
stands where the first of them does.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from graphopt.container import coders, symbols
from graphopt.container.cursor import Cursor, varint
from graphopt.container.entropy import Bytes, histogram, symbol_bits
from graphopt.container.kinds import KINDS, OTHER
from graphopt.errors import ContainerError

LARGEST = 1 << 23
"""Bytes of a block at most."""

ALONE = 1 << 15
"""Runs of at least so many bytes have statistics of their own."""

_MOST_RUNS = 1 << 14
"""Runs in a block at most: a bound for hostile input."""

_RUN_BYTES = 5
"""Bytes that describe a run at most."""

_ALIGNMENT = 8
"""Runs are cut at multiples of the largest element."""


class Run(NamedTuple):
    """Consecutive bytes of a file.

    Attributes:
        kind: number of the kind of the elements.
        length: in bytes.
    """

    kind: int
    length: int


class Stream(NamedTuple):
    """What became of one stream.

    Attributes:
        kind: number of the kind of its elements.
        length: in bytes, before.
        coded: in bytes, after.
        ideal_bits: the sum of the order-0 entropies of its symbols.
    """

    kind: int
    length: int
    coded: int
    ideal_bits: float


def cut(runs: Iterable[Run]) -> Iterator[list[Run]]:
    """Cuts a file's runs into those of blocks."""
    block: list[Run] = []
    room = LARGEST
    for kind, length in runs:
        left = length
        while left:
            taken = left if left <= room else room // _ALIGNMENT * _ALIGNMENT
            if taken:
                block.append(Run(kind, taken))
                left -= taken
                room -= taken
            if left or len(block) == _MOST_RUNS:
                yield block
                block, room = [], LARGEST
    if block:
        yield block


def encode(data: bytes, runs: list[Run]) -> tuple[bytes, list[Stream]]:
    """Codes a block.

    Args:
        data: its bytes.
        runs: what they are.

    Returns:
        The coded block, and what became of each stream.
    """
    layout = b"".join(bytes([run.kind]) + varint(run.length) for run in runs)
    pieces = [varint(len(layout)), coders.encode(np.frombuffer(layout, np.uint8))]
    content = np.frombuffer(data, np.uint8)
    starts = np.cumsum([0, *(run.length for run in runs)])
    found = []
    for members in _streams(runs):
        kind = runs[members[0]].kind
        own = [content[starts[member] : starts[member + 1]] for member in members]
        coded, ideal = _encode_stream(own[0] if len(own) == 1 else np.concatenate(own), kind)
        pieces.append(coded)
        found.append(Stream(kind, sum(part.size for part in own), len(coded), ideal))
    return b"".join(pieces), found


def decode(coded: bytes, length: int) -> bytearray:
    """Decodes a block.

    Args:
        coded: from :func:`encode`; zeros may follow.
        length: bytes of the block.

    Raises:
        ContainerError: it does not decode to so many bytes.
    """
    cursor = Cursor(coded)
    runs = _take_layout(cursor, length)
    starts = np.cumsum([0, *(run.length for run in runs)])
    data = bytearray(length)
    content = np.frombuffer(data, np.uint8)
    for members in _streams(runs):
        total = sum(runs[member].length for member in members)
        stream = _decode_stream(cursor, total, runs[members[0]].kind)
        at = 0
        for member in members:
            size = runs[member].length
            content[starts[member] : starts[member] + size] = stream[at : at + size]
            at += size
    if any(cursor.rest()):
        raise ContainerError("a block holds more than its streams")
    return data


def _streams(runs: list[Run]) -> list[list[int]]:
    """The numbers of the runs that each stream holds."""
    streams: list[list[int]] = []
    shared: dict[int, list[int]] = {}
    for number, run in enumerate(runs):
        if run.length >= ALONE:
            streams.append([number])
        elif run.kind in shared:
            shared[run.kind].append(number)
        else:
            shared[run.kind] = [number]
            streams.append(shared[run.kind])
    return streams


def _take_layout(cursor: Cursor, length: int) -> list[Run]:
    size = cursor.varint(_MOST_RUNS * _RUN_BYTES)
    layout = Cursor(coders.decode(cursor, size).tobytes())
    runs: list[Run] = []
    while length:
        run = Run(layout.byte(), layout.varint(length))
        if run.kind not in KINDS or not run.length:
            raise ContainerError("a run has no kind or no length")
        runs.append(run)
        length -= run.length
    if len(layout.rest()):
        raise ContainerError("a layout is longer than its block")
    return runs


def _encode_stream(data: Bytes, number: int) -> tuple[bytes, float]:
    """The coded stream, and the order-0 size of its symbols in bits."""
    way, parts = symbols.split(data, KINDS[number])
    pieces, ideal = [bytes([way])], 0.0
    for part in parts:
        counts = histogram(part.data)
        pieces.append(coders.encode(part.data, counts))
        ideal += symbol_bits(counts, part.bits)
    return b"".join(pieces), 0.0 if number == OTHER else ideal


def _decode_stream(cursor: Cursor, length: int, number: int) -> Bytes:
    return symbols.join(cursor.byte(), length, KINDS[number], lambda size: coders.decode(cursor, size))

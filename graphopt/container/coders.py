"""Coders of byte streams: raw, zstd, Huffman, and several symbols to a byte; a table, and the choice by measurement.

A coded stream is the number of its coder and what the coder wrote. The length of the decoded stream is not written: whoever
decodes knows it, and no coder can give more.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import zstandard

from graphopt.container import grouping
from graphopt.container.cursor import Cursor, varint
from graphopt.container.entropy import Bytes, Counts, histogram, huffman_cost
from graphopt.errors import ContainerError

DEEPEST = 3
"""How often grouping may be applied to its own result; a bound for hostile input."""

_RAW, _ZSTD, _HUFFMAN, _GROUPED = range(4)

_SHORTEST = 24
"""Streams below this many bytes stay as they are: any coder's own header would eat what it saves."""

_SAMPLE = 1 << 15
"""Bytes of each of the pieces on which zstd is tried."""

_CLOSE = 1.01
"""zstd goes first where it comes this close to the size of the other coders: it is several times as fast."""

_WORTHWHILE = 0.998
"""Where less is saved, a stream stays raw: it is read faster."""

_LONGEST_WINDOW = 1 << 23


def encode(data: Bytes, counts: Counts | None = None, depth: int = 0) -> bytes:
    """Codes a stream with the coder that is expected to make it smallest, never larger than raw by more than a byte.

    Args:
        data: the stream.
        counts: how often each byte occurs, ``[256]``; None to have it counted.
        depth: how often the stream was grouped before.
    """
    if data.size < _SHORTEST:
        return _raw(data)
    counts = histogram(data) if counts is None else counts
    ranks, expected = grouping.best_choice(counts) if depth < DEEPEST else grouping.Choice(0, huffman_cost(counts))
    level, bits = _try_zstd(data)
    if min(bits, expected) >= 8 * data.size * _WORTHWHILE:
        return _raw(data)
    coded = _sized(_ZSTD, _compressor(level).compress(data.data)) if bits <= expected * _CLOSE else b""
    if not coded or 8 * len(coded) > expected * grouping.ENOUGH:  # a whole stream has more false matches than its pieces
        coded = _group(data, counts, ranks, depth) if ranks else _sized(_HUFFMAN, _deflate(data))
    return coded if len(coded) <= data.size else _raw(data)


def decode(cursor: Cursor, length: int, depth: int = 0) -> Bytes:
    """Decodes the next stream.

    Args:
        cursor: where it begins.
        length: bytes of the decoded stream.
        depth: how often it was grouped before.

    Raises:
        ContainerError: it does not decode to so many bytes.
    """
    number = cursor.byte()
    if number >= len(_DECODERS):
        raise ContainerError(f"there is no coder {number}")
    if length == 0 and number != _RAW:
        raise ContainerError("an empty stream is coded")
    return _DECODERS[number](cursor, length, depth)


def _raw(data: Bytes) -> bytes:
    return bytes([_RAW]) + data.tobytes()


def _take_raw(cursor: Cursor, length: int, depth: int) -> Bytes:
    del depth
    return np.frombuffer(cursor.take(length), np.uint8)


def _sized(number: int, payload: bytes) -> bytes:
    return bytes([number]) + varint(len(payload)) + payload


class _Level(NamedTuple):
    """What zstd is asked for.

    Among few symbols, matches are found everywhere and cost more than they save: the first level looks for hardly any, so
    that it is a fast Huffman coder. The second is for text and repetitions.
    """

    level: int
    shortest_match: int
    window_log: int
    hash_log: int


_LEVELS = (_Level(1, 7, 17, 6), _Level(9, 4, 23, 18))


def _compressor(level: _Level) -> zstandard.ZstdCompressor:
    parameters = zstandard.ZstdCompressionParameters.from_level(
        level.level, min_match=level.shortest_match, window_log=level.window_log, hash_log=level.hash_log, write_content_size=False
    )
    return zstandard.ZstdCompressor(compression_params=parameters)


def _try_zstd(data: Bytes) -> tuple[_Level, float]:
    """The better level, and the size in bits to expect, from pieces of the stream."""
    pieces = [data]
    if data.size > 3 * _SAMPLE:
        pieces = [data[start : start + _SAMPLE] for start in (0, data.size // 2, data.size - _SAMPLE)]
    size = sum(piece.size for piece in pieces)
    found = {}
    for level in _LEVELS:
        compressor = _compressor(level)
        found[level] = sum(len(compressor.compress(piece.tobytes())) for piece in pieces) * 8.0 * data.size / size
    best = min(found, key=lambda level: found[level])
    return best, found[best]


def _decompress(cursor: Cursor, length: int, depth: int) -> Bytes:
    del depth
    frame = bytes(cursor.take(cursor.varint(length)))
    try:
        # A frame may promise any size, and the library would reserve it at once.
        if zstandard.get_frame_parameters(frame).content_size not in {zstandard.CONTENTSIZE_UNKNOWN, length}:
            raise ContainerError("a zstd frame promises another length")
        decompressor = zstandard.ZstdDecompressor(max_window_size=_LONGEST_WINDOW)
        content = decompressor.decompress(frame, max_output_size=length, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise ContainerError("a zstd frame is damaged") from error
    return _whole(content, length)


def _deflate(data: Bytes) -> bytes:
    coder = zlib.compressobj(6, zlib.DEFLATED, -15, 9, zlib.Z_HUFFMAN_ONLY)
    return coder.compress(data.data) + coder.flush()


def _inflate(cursor: Cursor, length: int, depth: int) -> Bytes:
    del depth
    decoder = zlib.decompressobj(-15)
    try:
        content = decoder.decompress(cursor.take(cursor.varint(length)), length)
        beyond = decoder.decompress(decoder.unconsumed_tail, 1)
    except zlib.error as error:
        raise ContainerError("a Huffman stream is damaged") from error
    if beyond or not decoder.eof or decoder.unused_data:
        raise ContainerError("a Huffman stream has another length")
    return _whole(content, length)


def _whole(content: bytes, length: int) -> Bytes:
    if len(content) != length:
        raise ContainerError("a stream has another length")
    return np.frombuffer(content, np.uint8)


def _group(data: Bytes, counts: Counts, ranks: int, depth: int) -> bytes:
    table = grouping.table_of(counts, ranks)
    groups, rest = grouping.group(data, table, ranks)
    head = bytes([_GROUPED, ranks, table.size]) + table.tobytes()
    return head + encode(groups, depth=depth + 1) + encode(rest, depth=depth + 1)


def _ungroup(cursor: Cursor, length: int, depth: int) -> Bytes:
    if depth >= DEEPEST:
        raise ContainerError("a stream is grouped too often")
    ranks, known = cursor.byte(), cursor.byte()
    if ranks not in grouping.RANKS or not 0 < known <= ranks:
        raise ContainerError("a table of ranks has no valid size")
    table = np.frombuffer(cursor.take(known), np.uint8)
    groups = decode(cursor, -(-length // grouping.group_size(ranks)), depth + 1)
    found, has_none = grouping.ungroup(groups, table, ranks, length)
    np.place(found, has_none, decode(cursor, int(np.count_nonzero(has_none)), depth + 1))
    return found


_DECODERS: tuple[Callable[[Cursor, int, int], Bytes], ...] = (_take_raw, _decompress, _inflate, _ungroup)
"""What decodes the streams of each coder, by its number."""

"""The frame of a container: what stands before, around and behind the coded blocks, and what is refused.

A container is a header, then the files in its order: for each, blocks until its size is reached, and the digest of its
content. Nothing follows.
"""

from __future__ import annotations

import struct
import zlib
from typing import NamedTuple

from graphopt.container.blocks import LARGEST
from graphopt.container.cursor import Cursor, varint
from graphopt.errors import ContainerError
from graphopt.files.external import is_inside

MAGIC = b"\x89GOPT\r\n\x1a"
"""The first bytes; they show at once where a transfer took the file for text."""

VERSION = 1

MOST_EXPANDED = 1024
"""No container's content is larger than so many times its own size: a small file cannot fill a disk."""

DIGEST_BYTES = 32
"""Bytes of a SHA-256, which stands behind the blocks of each file."""

PREFIX = struct.Struct("<8sHII")
"""Magic, version, bytes of the header that follow, their CRC-32."""

FRAME = struct.Struct("<III")
"""Before each block: bytes decoded, bytes coded, CRC-32 of the decoded ones."""

LONGEST_HEADER = 1 << 22
_MOST_FILES = 1 << 16
_LARGEST_FILE = 1 << 48


class Entry(NamedTuple):
    """A file in a container.

    Attributes:
        location: where the file lies, relative to the model's folder; empty for the model itself, which comes first.
        size: in bytes.
    """

    location: str
    size: int


def encode_header(entries: list[Entry]) -> bytes:
    """The start of a container."""
    body = varint(len(entries))
    for entry in entries:
        name = entry.location.encode()
        body += varint(len(name)) + name + varint(entry.size)
    return PREFIX.pack(MAGIC, VERSION, len(body), zlib.crc32(body)) + body


def decode_prefix(prefix: bytes) -> tuple[int, int]:
    """Reads what stands before the header.

    Returns:
        Bytes of the header, and their CRC-32.

    Raises:
        ContainerError: this is no container, one of a later version, or a damaged one.
    """
    if not prefix.startswith(MAGIC):
        raise ContainerError("no packed model; `graphopt pack` makes one")
    if len(prefix) < PREFIX.size:
        raise ContainerError("truncated")
    _, version, length, check = PREFIX.unpack(prefix)
    if version != VERSION:
        raise ContainerError(f"packed in the form {version}, which this version does not know ({VERSION}); install a newer graphopt")
    if length > LONGEST_HEADER:
        raise ContainerError("the header is too long")
    return length, check


def decode_header(header: bytes, size: int) -> list[Entry]:
    """Reads which files there are.

    Args:
        header: the bytes behind the prefix.
        size: of the container.

    Raises:
        ContainerError: names leave the model's folder, or sizes are more than the container can hold.
    """
    cursor = Cursor(header)
    entries = [_entry(cursor) for _ in range(cursor.varint(_MOST_FILES))]
    if len(cursor.rest()) or not entries or entries[0].location:
        raise ContainerError("the header is damaged")
    for entry in entries[1:]:
        if not is_inside(entry.location):
            raise ContainerError(f"a file has the name {entry.location!r}, which is not a path inside the model's folder")
    total = sum(entry.size for entry in entries)
    if total > size * MOST_EXPANDED:
        raise ContainerError(f"{size} bytes cannot hold the {total} that the header promises")
    return entries


def _entry(cursor: Cursor) -> Entry:
    name = cursor.take(cursor.varint(LONGEST_HEADER)).tobytes()
    try:
        return Entry(name.decode(), cursor.varint(_LARGEST_FILE))
    except UnicodeDecodeError as error:
        raise ContainerError("a file's name is no text") from error


def frame(data: bytes, coded: bytes) -> bytes:
    """A coded block with what stands before it, padded so that no container expands too much."""
    padding = bytes(max(-(-len(data) // MOST_EXPANDED) - len(coded), 0))
    return b"".join((FRAME.pack(len(data), len(coded) + len(padding), zlib.crc32(data)), coded, padding))


def decode_frame(prefix: bytes, left: int) -> tuple[int, int, int]:
    """Reads what stands before a block.

    Args:
        prefix: the bytes.
        left: bytes of the file that are still to come.

    Returns:
        Bytes decoded, bytes coded, CRC-32.

    Raises:
        ContainerError: no block of these sizes can stand here.
    """
    length, coded, check = FRAME.unpack(prefix)
    if not 0 < length <= min(left, LARGEST) or coded > 2 * LARGEST:
        raise ContainerError("a block has no valid length")
    return length, coded, check

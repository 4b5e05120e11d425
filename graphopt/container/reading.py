"""Reads a container from its beginning to its end, a block at a time, and believes nothing that it says."""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from graphopt.container import blocks, form
from graphopt.errors import ContainerError


class Container:
    """An open container.

    Attributes:
        path: the file.
        entries: the model's files: the model itself, then its data files.
    """

    def __init__(self, path: Path, stream: BinaryIO) -> None:
        """Reads the header; see :func:`open_container`."""
        self.path = path
        self._stream = stream
        with self._named():
            length, check = form.decode_prefix(stream.read(form.PREFIX.size))
            header = self._read(length)
            if zlib.crc32(header) != check:
                raise ContainerError("the header is damaged")
            self.entries = form.decode_header(header, os.fstat(stream.fileno()).st_size)

    @property
    def total_bytes(self) -> int:
        """Bytes of all files together."""
        return sum(entry.size for entry in self.entries)

    def contents(self) -> Iterator[tuple[form.Entry, Iterator[bytearray]]]:
        """Yields each file with the pieces of its content, which have to be taken before the next file.

        Raises:
            ContainerError: while the pieces are taken: something is damaged; pieces that were given are right by their
                check sums, and a file is whole only once all of its pieces came.
        """
        for entry in self.entries:
            yield entry, self._content(entry)
        with self._named():
            if self._stream.read(1):
                raise ContainerError("something follows its end")

    def _content(self, entry: form.Entry) -> Iterator[bytearray]:
        digest = hashlib.sha256()
        left = entry.size
        while left:
            with self._named():
                data = self._block(left)
            left -= len(data)
            digest.update(data)
            yield data
        with self._named():
            if self._read(form.DIGEST_BYTES) != digest.digest():
                raise ContainerError("the digest of a file is not that of its content")

    def _block(self, left: int) -> bytearray:
        start = self._stream.tell()
        length, coded, check = form.decode_frame(self._read(form.FRAME.size), left)
        content = self._read(coded)
        try:
            data = blocks.decode(content, length)
        except ContainerError as error:
            raise ContainerError(f"damaged behind byte {start}: {error}") from error
        if zlib.crc32(data) != check:
            raise ContainerError(f"damaged behind byte {start}: the check sum is wrong")
        return data

    def _read(self, length: int) -> bytes:
        data = self._stream.read(length)
        if len(data) != length:
            raise ContainerError("truncated")
        return data

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Has errors name the file."""
        try:
            yield
        except ContainerError as error:
            raise ContainerError(f"{self.path}: {error}") from error


@contextmanager
def open_container(path: str | Path) -> Iterator[Container]:
    """Opens a container for one pass over its content.

    Raises:
        ContainerError: the file cannot be read, is no container, or its header is damaged.
    """
    path = Path(path)
    try:
        stream = path.open("rb")
    except OSError as error:
        raise ContainerError(f"{path}: cannot be read: {error.strerror or error}") from error
    with stream:
        yield Container(path, stream)

"""A file that appears whole or not at all."""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

TEMPORARY_SUFFIX = ".tmp"
"""What a file is called until it is complete: ``.NAME.RANDOM.tmp``, in the folder where it will stand."""

_BUFFER = 1 << 20


class PendingFile:
    """A file being written under a temporary name, in the folder where it will stand.

    Use it as a context: ``commit`` gives the file its name, and a file that was not committed vanishes with the context.
    A process killed before that leaves the temporary and nothing else.
    """

    def __init__(self, folder: Path, name: str) -> None:
        """Creates the temporary.

        Args:
            folder: an existing folder.
            name: what the temporary's name is made from.

        Raises:
            OSError: the folder cannot be written.
        """
        self.name = name
        self.path = folder / f".{name}.{secrets.token_hex(4)}{TEMPORARY_SUFFIX}"
        self._committed = False
        # "x" and not tempfile: the file is to get the permissions that the user's umask asks for.
        self._file: BinaryIO = self.path.open("xb", buffering=_BUFFER)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._committed:
            return
        try:
            self._file.close()  # flushes, and so may fail once more on a full disk
        except OSError:
            if kind is None:
                raise
        finally:
            self.path.unlink(missing_ok=True)

    def write(self, data: bytes | bytearray | memoryview) -> int:
        """Appends bytes."""
        return self._file.write(data)

    def tell(self) -> int:
        """Bytes written so far."""
        return self._file.tell()

    def copy_from(self, source: Path) -> None:
        """Appends the content of another file, a piece at a time."""
        with source.open("rb") as stream:
            while piece := stream.read(_BUFFER):
                self.write(piece)

    def commit(self, target: Path) -> None:
        """Gives the file its name, in place of whatever had it, once its content is on the disk.

        Raises:
            OSError: the disk is full, or the name cannot be taken; the file vanishes with the context.
        """
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        if target.exists():
            shutil.copymode(target, self.path)
        self.path.replace(target)
        self._committed = True
        _sync_folder(target.parent)


class DigestedFile(PendingFile):
    """A file whose content gives it its name."""

    def __init__(self, folder: Path, name: str) -> None:
        """Creates the temporary, as :class:`PendingFile` does."""
        super().__init__(folder, name)
        self._digest = hashlib.sha256()

    def write(self, data: bytes | bytearray | memoryview) -> int:
        """Appends bytes."""
        self._digest.update(data)
        return super().write(data)

    def digest(self) -> str:
        """SHA-256 of what was written so far, in hexadecimal."""
        return self._digest.hexdigest()


def _sync_folder(folder: Path) -> None:
    """Puts a rename on the disk, where the system can."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:  # Windows opens no folders
        return
    try:
        os.fsync(handle)
    except OSError:  # some network file systems
        pass
    finally:
        os.close(handle)

"""Packs a model: its files into one container, a block at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from graphopt.container import blocks, form
from graphopt.container.kinds import KINDS, OTHER
from graphopt.container.tensors import Region, layout_of, runs_of
from graphopt.errors import ContainerError
from graphopt.files import check_target, model_file
from graphopt.files.atomic import PendingFile

SUFFIX = ".gopt"
"""How packed models are called."""


@dataclass
class Tally:
    """Sizes of the streams of one kind, in bytes.

    Attributes:
        original: before.
        packed: after.
        ideal: the order-0 entropy of the symbols.
    """

    original: int = 0
    packed: int = 0
    ideal: float = 0.0

    def add(self, stream: blocks.Stream) -> None:
        """Counts one more stream."""
        self.original += stream.length
        self.packed += stream.coded
        self.ideal += stream.ideal_bits / 8

    @property
    def above_ideal(self) -> float:
        """By which share the packed size exceeds the ideal one; negative where symbols depend on one another."""
        return self.packed / self.ideal - 1 if self.ideal else 0.0

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {"original_bytes": self.original, "packed_bytes": self.packed, "ideal_bytes": round(self.ideal)}


@dataclass(frozen=True)
class Packed:
    """What became of a model.

    Attributes:
        path: the container.
        original_bytes: of the model's files.
        packed_bytes: of the container.
        kinds: sizes by the type of tensors' elements.
        rest: sizes of everything else: graph, names, metadata, tensors of a few bytes; it has no ideal size.
    """

    path: Path
    original_bytes: int
    packed_bytes: int
    kinds: dict[str, Tally] = field(default_factory=dict)
    rest: Tally = field(default_factory=Tally)

    @property
    def tensors(self) -> Tally:
        """Sizes of all tensors together."""
        tallies = self.kinds.values()
        return Tally(sum(t.original for t in tallies), sum(t.packed for t in tallies), sum(t.ideal for t in tallies))

    def to_json(self) -> dict[str, Any]:
        """Plain data; ``version`` counts changes of this form."""
        return {
            "version": 1,
            "path": str(self.path),
            "original_bytes": self.original_bytes,
            "packed_bytes": self.packed_bytes,
            "tensors": self.tensors.to_json(),
            "kinds": {name: tally.to_json() for name, tally in self.kinds.items()},
            "rest": {"original_bytes": self.rest.original, "packed_bytes": self.rest.packed},
        }


def pack(source: str | Path, target: str | Path | None = None) -> Packed:
    """Packs a model and its data files into one container, from which :func:`unpack` gives the same bytes.

    Memory stays bounded by a few blocks of 8 MiB, whatever the model's size.

    Args:
        source: a ``.onnx`` file, or a folder with one model.
        target: the container to write; None for the model's path with the suffix ``.gopt``.

    Returns:
        Sizes before and after.

    Raises:
        ModelFileError: the model or its data cannot be found or read, or the container cannot be written.
    """
    file = model_file(Path(source))
    target = file.with_suffix(SUFFIX) if target is None else Path(target)
    check_target(target)
    layout = layout_of(file)
    files = {"": (file, layout.regions)} | {name: (data.path, regions) for name, (data, regions) in layout.data.items()}
    if any(target.exists() and target.samefile(path) for path, _ in files.values()):
        raise ContainerError(f"{target}: the model itself; choose another name for the container")
    entries = [form.Entry(name, path.stat().st_size) for name, (path, _) in files.items()]
    tallies: dict[int, Tally] = {}
    with PendingFile(target.parent, target.name) as pending:
        pending.write(form.encode_header(entries))
        for entry in entries:
            path, regions = files[entry.location]
            with path.open("rb") as stream:
                for coded in _write(stream, entry.size, regions, pending, path):
                    tallies.setdefault(coded.kind, Tally()).add(coded)
        size = pending.tell()
        pending.commit(target)
    kinds = {KINDS[number].name: tally for number, tally in sorted(tallies.items()) if number != OTHER}
    return Packed(target, sum(entry.size for entry in entries), size, kinds, tallies.get(OTHER, Tally()))


def _write(stream: BinaryIO, size: int, regions: list[Region], pending: PendingFile, path: Path) -> Iterable[blocks.Stream]:
    """Writes the blocks of a file and its digest; gives what became of each stream."""
    digest = hashlib.sha256()
    for runs in blocks.cut(runs_of(size, regions)):
        length = sum(run.length for run in runs)
        data = stream.read(length)
        if len(data) != length:
            raise ContainerError(f"{path}: became shorter while it was read; pack it again")
        digest.update(data)
        coded, streams = blocks.encode(data, runs)
        pending.write(form.frame(data, coded))
        yield from streams
    pending.write(digest.digest())

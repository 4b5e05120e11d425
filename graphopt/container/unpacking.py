"""Unpacks a model: its files appear together, or none does."""

from __future__ import annotations

import filecmp
import os
import shutil
import tempfile
from contextlib import ExitStack
from pathlib import Path

from graphopt.container.reading import Container, open_container
from graphopt.errors import ContainerError, ModelFileError
from graphopt.files import check_target
from graphopt.files.atomic import TEMPORARY_SUFFIX
from graphopt.files.writing import data_of, remove_unused


def unpack(source: str | Path, target: str | Path | None = None) -> list[Path]:
    """Writes a packed model's files, byte for byte as they were; memory stays bounded by a few blocks of 8 MiB.

    Data files get their names beside the model, which takes its name last; data that only a replaced model used is removed.

    Args:
        source: the container.
        target: the ``.onnx`` file to write; None for the container's path with the suffix ``.onnx``.

    Returns:
        The files: the model, then its data.

    Raises:
        ContainerError: this is no container, or a damaged one; nothing was written.
        ModelFileError: the files cannot be written, or one of other content has the name that the data needs.
    """
    source = Path(source)
    target = source.with_suffix(".onnx") if target is None else Path(target)
    check_target(target)
    with open_container(source) as container:
        if target.exists() and target.samefile(source):
            raise ModelFileError(f"{target}: the container itself; choose another name for the model")
        try:
            _check_room(container, target)
            folder = tempfile.mkdtemp(prefix=f".{target.name}.", suffix=TEMPORARY_SUFFIX, dir=target.parent)
            try:
                return _place(_write(container, Path(folder)), target)
            finally:
                shutil.rmtree(folder, ignore_errors=True)
        except OSError as error:
            raise ModelFileError(f"{target}: cannot be written: {error.strerror or error}") from error


def _check_room(container: Container, target: Path) -> None:
    free = shutil.disk_usage(target.parent).free
    if container.total_bytes > free:
        raise ModelFileError(f"{target}: {container.total_bytes} bytes do not fit the {free} that are free on the disk")


def _write(container: Container, folder: Path) -> dict[str, Path]:
    """Writes all files into a folder: the model as ``model``, the data below ``data``; gives them by location."""
    written = {}
    for entry, pieces in container.contents():
        file = folder / "data" / entry.location if entry.location else folder / "model"
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("wb") as stream:
            for piece in pieces:
                stream.write(piece)
            stream.flush()
            os.fsync(stream.fileno())
        written[entry.location] = file
    return written


def _place(written: dict[str, Path], target: Path) -> list[Path]:
    """Moves files to their places: the data first, the model last, and none where one cannot go."""
    model = written.pop("")
    places = {file: target.parent / location for location, file in written.items()}
    replaced = data_of(target)
    for file, place in places.items():
        if not place.resolve().is_relative_to(target.parent.resolve()):
            raise ContainerError(f"{place}: a link leads out of the model's folder; choose another folder")
        if place.resolve() == target.resolve() or (place.exists() and not filecmp.cmp(file, place, shallow=False)):
            raise ModelFileError(f"{place}: another file has the name of this model's data; remove it or choose another folder")
    with ExitStack() as undo:
        for file, place in places.items():
            if not place.exists():
                place.parent.mkdir(parents=True, exist_ok=True)
                file.replace(place)
                undo.callback(place.unlink, missing_ok=True)
        if target.exists():
            shutil.copymode(target, model)
        model.replace(target)
        undo.pop_all()
    remove_unused(replaced, target, keep=list(places.values()))
    return [target, *places.values()]

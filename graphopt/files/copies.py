"""Copies of models and of what lies beside them, and their size."""

from __future__ import annotations

import filecmp
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import onnx_ir as ir

from graphopt.errors import ModelFileError
from graphopt.files.atomic import PendingFile
from graphopt.files.external import DataFile, locate
from graphopt.files.reading import model_file, parse
from graphopt.files.scan import may_refer_to_data
from graphopt.files.writing import check_target, data_of, remove_unused


def total_bytes(path: str | Path) -> int:
    """Bytes of a model on the disk: the model file and the data files that it refers to.

    Args:
        path: a ``.onnx`` file, or a folder with one model.

    Raises:
        ModelFileError: the model or its data cannot be found.
    """
    file = model_file(Path(path))
    data = {found.path: found.size for found in _data(file).values()}
    return file.stat().st_size + sum(data.values())


def _data(file: Path) -> dict[str, DataFile]:
    return locate(ir.from_proto(parse(file)), file) if may_refer_to_data(file) else {}


def copy_model(source: str | Path, target: str | Path) -> list[Path]:
    """Copies a model byte for byte, with its external data, which keeps its name.

    Args:
        source: a ``.onnx`` file, or a folder with one model.
        target: the ``.onnx`` file to write.

    Returns:
        The files of the copy.

    Raises:
        ModelFileError: the model cannot be read or written, or a file of other content has the name that its data needs.
    """
    file, target = model_file(Path(source)), Path(target)
    check_target(target)
    data = _data(file)
    places = {location: target.parent / location for location in data}
    if target.exists() and file.samefile(target):
        return [target, *places.values()]
    for location, found in data.items():
        if places[location].exists() and not _same(found.path, places[location]):
            raise ModelFileError(f"{places[location]}: another model's data has this name; remove it or choose another folder")
    replaced = data_of(target)
    try:
        with ExitStack() as undo:
            for location, found in data.items():
                if not places[location].exists():
                    places[location].parent.mkdir(parents=True, exist_ok=True)
                    undo.callback(places[location].unlink, missing_ok=True)
                    _copy(found.path, places[location])
            _copy(file, target)
            undo.pop_all()
    except OSError as error:
        raise ModelFileError(f"{target}: cannot be written: {error.strerror or error}") from error
    remove_unused(replaced, target, keep=list(places.values()))
    return [target, *places.values()]


def move_model(source: Path, target: Path) -> None:
    """Moves a model that :func:`graphopt.files.save` or :func:`copy_model` wrote to its place on the same file system.

    The data goes first and the ``.onnx`` last, by renames; data that only the replaced ``.onnx`` used is removed after.

    Args:
        source: the ``.onnx`` file, complete and on the disk.
        target: its new name.

    Raises:
        ModelFileError: the target cannot be written, or a file of other content has the name that the data needs.
    """
    check_target(target)
    replaced = data_of(target)
    places = {found.path: target.parent / location for location, found in _data(source).items()}
    try:
        for file, place in places.items():
            if place.exists() and not _same(file, place):
                raise ModelFileError(f"{place}: another model's data has this name; remove it or choose another folder")
            if not place.exists():
                place.parent.mkdir(parents=True, exist_ok=True)
                file.replace(place)
        if target.exists():
            shutil.copymode(target, source)
        source.replace(target)
    except OSError as error:
        raise ModelFileError(f"{target}: cannot be written: {error.strerror or error}") from error
    remove_unused(replaced, target, keep=list(places.values()))


def _same(one: Path, other: Path) -> bool:
    return one.samefile(other) or filecmp.cmp(one, other, shallow=False)


def _copy(source: Path, target: Path) -> None:
    with PendingFile(target.parent, target.name) as file:
        file.copy_from(source)
        file.commit(target)


def copy_companions(source_folder: str | Path, target_folder: str | Path, model_path: str | Path) -> list[Path]:
    """Copies what lies beside a model: tokenizers, configurations; each file appears whole or not at all.

    A ``genai_config.json`` names the model file: it stays valid where the result is called as the model was.

    Args:
        source_folder: the model's folder.
        target_folder: the result's folder, which is made where it does not exist.
        model_path: the model file in the source folder; it and its data files are left out, hidden files too.

    Returns:
        The copies.

    Raises:
        ModelFileError: a file cannot be read or written.
    """
    source, target, model = Path(source_folder), Path(target_folder), Path(model_path)
    left_out = {model.resolve(), *(found.path.resolve() for found in _data(model).values())}
    copies = []
    try:
        target.mkdir(parents=True, exist_ok=True)
        if source.samefile(target):
            return []
        for file in _files(source, target.resolve()):
            if file.resolve() not in left_out:
                place = target / file.relative_to(source)
                place.parent.mkdir(parents=True, exist_ok=True)
                _copy(file, place)
                copies.append(place)
    except OSError as error:
        raise ModelFileError(f"{error.filename or target}: cannot be copied: {error.strerror or error}") from error
    return copies


def _files(folder: Path, target: Path) -> Iterator[Path]:
    """The plain files below a folder that are not hidden, in order; the target may lie in it and is passed by."""
    for child in sorted(folder.iterdir()):
        if child.name.startswith(".") or child.resolve() == target:
            continue
        if child.is_file():
            yield child
        elif child.is_dir() and not child.is_symlink():
            yield from _files(child, target)

"""Writes model files: whole or not at all, whatever happens meanwhile."""

from __future__ import annotations

import hashlib
import mmap
from contextlib import suppress
from pathlib import Path

import onnx_ir as ir

from graphopt import __version__
from graphopt.errors import GraphoptError, ModelFileError
from graphopt.files.atomic import DigestedFile, PendingFile
from graphopt.files.external import data_files, external_slots, locations, references, write_data
from graphopt.files.reading import parse
from graphopt.files.scan import may_refer_to_data
from graphopt.files.weights import in_memory, slots_of, standing_in, stored_slots
from graphopt.files.wire import LIMIT, to_message, write_inline

_MARGIN = 64 << 20
"""Bytes below protobuf's limit that are left for everything but the weights."""


def save(model: ir.Model, path: str | Path, *, external_data: bool | None = None) -> list[Path]:
    """Writes a model; the files appear whole or not at all, in place of older ones.

    External data goes first, under a name made from its content, so that no existing file changes and equal models give
    equal bytes; the ``.onnx`` takes its name last. A data file that only the replaced ``.onnx`` used is removed, unless the
    model at hand still reads from it. Memory stays bounded by the largest tensor.

    Args:
        model: stays as it is.
        path: the ``.onnx`` file to write.
        external_data: whether weights go to a data file. None: where the model has any in external data, or where a model
            file of its size could not be read.

    Returns:
        The files of the model: the ``.onnx`` and, where there is one, the data file.

    Raises:
        ModelFileError: the model could not be written; nothing was.
    """
    path = Path(path)
    check_target(path)
    replaced = data_of(path)
    if external_data is None:
        external_data = bool(data_files(model)) or sum(slot.tensor.nbytes for slot in slots_of(model)) + _MARGIN > LIMIT
    try:
        written = _save_external(model, path) if external_data and external_slots(model) else _save_inline(model, path)
    except GraphoptError:
        raise
    except OSError as error:
        raise ModelFileError(f"{path}: cannot be written: {error.strerror or error}") from error
    except (ir.serde.SerdeError, ValueError, TypeError) as error:
        raise ModelFileError(f"{path}: cannot be written: {(str(error).splitlines() or [''])[0][:200]}") from error
    remove_unused(replaced, path, keep=[*written, *data_files(model)])
    return written


def check_target(path: Path) -> None:
    """Checks that a path can take a model file.

    Raises:
        ModelFileError: it is a folder or a device, or its folder does not exist.
    """
    if path.is_dir():
        raise ModelFileError(f"{path}: a folder; name the model file in it")
    if path.exists() and not path.is_file():
        raise ModelFileError(f"{path}: not a plain file; choose another name")
    if not path.parent.is_dir():
        raise ModelFileError(f"{path}: its folder does not exist; make it first")


def _save_inline(model: ir.Model, path: Path) -> list[Path]:
    with PendingFile(path.parent, path.name) as file:
        write_inline(model, file)
        file.commit(path)
    return [path]


def _save_external(model: ir.Model, path: Path) -> list[Path]:
    slots = external_slots(model)
    with DigestedFile(path.parent, path.name) as data:
        regions = write_data(slots, data)
        target = _data_path(path, data)
        is_new = not target.exists()
        try:
            data.commit(target)
            placed = set(slots)
            others = [(slot, tensor) for slot, tensor in stored_slots(model) if slot not in placed]  # small, or no constant's
            stand_ins = [*references(slots, regions, target.name), *(in_memory(tensor) for _, tensor in others)]
            with standing_in([*slots, *(slot for slot, _ in others)], stand_ins), PendingFile(path.parent, path.name) as file:
                file.write(to_message(model).SerializeToString(deterministic=True))
                file.commit(path)
        except BaseException:
            if is_new and not _mentions(path, target.name):
                target.unlink(missing_ok=True)
            raise
    return [path, target]


def _data_path(path: Path, data: DigestedFile) -> Path:
    """The data file's name: enough of its digest that no file of other content has it."""
    digest = data.digest()
    for length in (8, 16):
        target = path.with_name(f"{path.stem}.{digest[:length]}.data")
        if not target.exists() or _digest(target) == digest:
            return target
    return path.with_name(f"{path.stem}.{digest}.data")


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def data_of(path: Path) -> list[Path]:
    """The data files that an existing model file refers to; none where it is no model."""
    if not may_refer_to_data(path):
        return []
    try:
        model = ir.from_proto(parse(path))
    except (ModelFileError, ir.serde.SerdeError, ValueError, TypeError):
        return []
    return [path.parent / location for location in locations(model)]


def remove_unused(files: list[Path], path: Path, keep: list[Path]) -> None:
    """Removes data files of a model that was replaced.

    Args:
        files: candidates; only plain files beside the model are taken.
        path: the model file that was replaced.
        keep: files that are in use; so are those that any other model file of the folder names.
    """
    used = {file.resolve() for file in keep}
    others = [other for other in path.parent.iterdir() if ".onnx" in other.name and other.is_file() and other != path]
    for file in files:
        if file.parent != path.parent or file.is_symlink() or not file.is_file() or file.resolve() in used:
            continue
        if not any(_mentions(other, file.name) for other in others):
            with suppress(OSError):  # left over, and harmless
                file.unlink()


def _mentions(file: Path, text: str) -> bool:
    """Whether a file contains a text."""
    try:
        with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return content.find(text.encode()) >= 0
    except (OSError, ValueError):  # missing or empty
        return False


def stamp(model: ir.Model) -> None:
    """Writes graphopt and its version into the model as its producer; the original's stays among the metadata."""
    source = " ".join(part for part in (model.producer_name, model.producer_version) if part)
    if source and model.producer_name != "graphopt":
        model.metadata_props["graphopt.source_producer"] = source
    model.producer_name = "graphopt"
    model.producer_version = __version__

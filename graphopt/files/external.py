"""External data: the files beside a model that hold its weights, checked before they are read, and written."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

import onnx_ir as ir

from graphopt.errors import ModelFileError
from graphopt.files.atomic import PendingFile
from graphopt.files.weights import Slot, slots_of, stored_slots

THRESHOLD = 1024
"""Tensors of up to this many bytes stay in the model file: runtimes read them before they open data files."""

_ALIGNMENT = 64
"""Offsets are multiples of a cache line, so that a mapped weight is as fast as an allocated one."""

_REMEDY = "put it beside the model, as a plain file, or export the model again"


@dataclass(frozen=True)
class DataFile:
    """A data file that was found and may be read.

    Attributes:
        root: the folder that bounds where the data may lie.
        location: the file's place in that folder.
        size: bytes.
    """

    root: Path
    location: str
    size: int

    @property
    def path(self) -> Path:
        """The file itself, symbolic links resolved."""
        return self.root / self.location


def locations(model: ir.Model) -> list[str]:
    """The names by which a model's tensors refer to data files, in order of appearance."""
    return list(dict.fromkeys(os.fspath(tensor.location) for _, tensor in stored_slots(model)))


def locate(model: ir.Model, path: Path) -> dict[str, DataFile]:
    """Finds the data files that a model just read refers to, and checks them without reading them.

    Data lies in the model's folder or, where the model's path is a symbolic link into a store of files, in the store's
    folder.

    Args:
        model: as it was read; external tensors still hold what the model file says.
        path: the model file.

    Returns:
        Each location that the model file names, with the file that is meant.

    Raises:
        ModelFileError: a file is missing, outside the folder or hard-linked; one line names the first tensor.
    """
    files: dict[str, DataFile] = {}
    for slot, tensor in stored_slots(model):
        location = os.fspath(tensor.location)
        if location not in files:
            files[location] = find(location, path, slot.name)
    return files


def anchor(model: ir.Model, files: Mapping[str, DataFile]) -> None:
    """Points each external tensor at the file that holds its data, with its exact length.

    Args:
        model: changed in place.
        files: from :func:`locate`.

    Raises:
        ModelFileError: a file is too short for a tensor; one line names the first.
    """
    # Tied weights stay one object.
    anchored: dict[int, ir.ExternalTensor] = {}
    for slot, tensor in stored_slots(model):
        if id(tensor) not in anchored:
            anchored[id(tensor)] = _anchor(tensor, files[os.fspath(tensor.location)], slot.name)
        slot.put(anchored[id(tensor)])


def is_inside(location: str) -> bool:
    """Whether a location names a place in or below the folder it is relative to, on any system."""
    parts = PurePosixPath(location.replace("\\", "/")).parts
    is_anchored = PurePosixPath(location).is_absolute() or PureWindowsPath(location).anchor
    return bool(parts) and not is_anchored and ".." not in parts and "\0" not in location


def find(location: str, path: Path, name: str) -> DataFile:
    """Finds the data file that a tensor refers to, and checks it without reading it; see :func:`locate`.

    Args:
        location: what the model file says.
        path: the model file.
        name: the tensor's name, for the message.

    Raises:
        ModelFileError: the file is missing, outside the folder or hard-linked.
    """
    where = f"tensor {name!r} of {path} has its data in {location!r}"
    if not is_inside(location):
        raise ModelFileError(f"{where}, which is not a path inside the model's folder; {_REMEDY}")
    found = path.parent / location
    try:
        real = found.resolve(strict=True)
        status = real.stat()
    except (OSError, RuntimeError) as error:
        raise ModelFileError(f"{where}, which is missing; {_REMEDY}") from error
    if not stat.S_ISREG(status.st_mode):
        raise ModelFileError(f"{where}, which is no plain file; {_REMEDY}")
    root = next((root for root in (path.parent.resolve(), path.resolve().parent) if real.is_relative_to(root)), None)
    if root is None:
        raise ModelFileError(f"{where}, a link that leaves the model's folder; {_REMEDY}")
    if status.st_nlink > 1:
        raise ModelFileError(f"{where}, which has {status.st_nlink} hard links and could be any file of this disk; copy it")
    return DataFile(root, real.relative_to(root).as_posix(), status.st_size)


def _anchor(tensor: ir.ExternalTensor, file: DataFile, name: str) -> ir.ExternalTensor:
    shape = [dim for dim in tensor.shape if isinstance(dim, int) and dim >= 0]
    if len(shape) != len(tensor.shape) or tensor.dtype in (ir.DataType.STRING, ir.DataType.UNDEFINED):
        raise ModelFileError(f"tensor {name!r}: {tensor.dtype.name}{list(tensor.shape)} cannot be external data; export the model again")
    offset = tensor.offset or 0
    if tensor.length is not None and tensor.length < tensor.nbytes:
        raise ModelFileError(
            f"tensor {name!r} has {tensor.length} bytes in {file.location!r} where "
            f"{tensor.dtype.name}{shape} needs {tensor.nbytes}; export the model again"
        )
    if offset < 0 or offset + tensor.nbytes > file.size:
        raise ModelFileError(
            f"tensor {name!r} needs bytes {offset} to {offset + tensor.nbytes} of {file.location!r}, which has {file.size}; "
            "the file is truncated or belongs to another model"
        )
    return ir.ExternalTensor(
        file.location,
        offset,
        tensor.nbytes,
        tensor.dtype,
        shape=ir.Shape(shape),
        name=tensor.name or name,
        doc_string=tensor.doc_string,
        metadata_props=dict(tensor.metadata_props),
        base_dir=file.root,
    )


def data_files(model: ir.Model) -> list[Path]:
    """The data files that a model's external tensors are read from, in order of appearance."""
    return list(dict.fromkeys(Path(tensor.path) for _, tensor in stored_slots(model)))


def external_slots(model: ir.Model) -> list[Slot]:
    """The places whose tensors go to a data file: initializers and ``Constant`` nodes above the threshold."""
    return [slot for slot in slots_of(model) if _can_leave(slot) and slot.tensor.nbytes > THRESHOLD]


def _can_leave(slot: Slot) -> bool:
    if slot.tensor.dtype == ir.DataType.STRING:
        return False
    return isinstance(slot.holder, ir.Value) or slot.holder.op_type == "Constant"


@dataclass(frozen=True)
class Region:
    """Where a tensor lies in a data file, in bytes."""

    offset: int
    length: int


def write_data(slots: Sequence[Slot], pending: PendingFile) -> list[Region]:
    """Writes tensors one after another, each distinct one once; memory stays bounded by the largest one.

    Args:
        slots: where the tensors stand.
        pending: an empty file.

    Returns:
        Where each slot's tensor lies in the file.

    Raises:
        ModelFileError: a tensor gave more or fewer bytes than its type and shape promise.
    """
    written: dict[object, Region] = {}
    regions = []
    for slot in slots:
        tensor = slot.tensor
        key = _identity(tensor)
        if key not in written:
            pending.write(bytes(-pending.tell() % _ALIGNMENT))
            offset = pending.tell()
            write_tensor(tensor, pending)
            written[key] = Region(offset, tensor.nbytes)
        regions.append(written[key])
    return regions


def write_tensor(tensor: ir.TensorProtocol, file: PendingFile) -> None:
    """Writes a tensor's data.

    Raises:
        ModelFileError: the tensor gave another number of bytes than its type and shape promise.
    """
    start = file.tell()
    if isinstance(tensor, ir.ExternalTensor):
        tensor.tofile(file)  # in pieces, and without a map
    else:
        file.write(tensor.tobytes())
    if file.tell() - start != tensor.nbytes:
        raise ModelFileError(f"tensor {tensor.name!r} gave {file.tell() - start} bytes instead of {tensor.nbytes}")


def _identity(tensor: ir.TensorProtocol) -> object:
    if isinstance(tensor, ir.ExternalTensor):
        return tensor.path, tensor.offset or 0, tensor.dtype, tuple(tensor.shape)
    return id(tensor)


def references(slots: Iterable[Slot], regions: Iterable[Region], location: str) -> list[ir.TensorProtocol]:
    """What stands for the tensors in the model file: references into a data file, with no folder in them."""
    return [_reference(slot, region, location) for slot, region in zip(slots, regions, strict=True)]


def _reference(slot: Slot, region: Region, location: str) -> ir.TensorProtocol:
    tensor = slot.tensor
    return ir.ExternalTensor(
        location,
        region.offset,
        region.length,
        tensor.dtype,
        shape=ir.Shape(tensor.shape.numpy()),
        name=tensor.name or slot.name,
        doc_string=tensor.doc_string,
        metadata_props=dict(tensor.metadata_props),
    )

"""Where samples come from: npz and npy files, folders of them, ONNX test data, Python."""

from __future__ import annotations

import importlib
import re
import sys
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import IO, Any, Protocol, runtime_checkable

import numpy as np
import onnx
import onnx.numpy_helper

from graphopt.errors import SamplesError
from graphopt.graph.signature import Port, Signature

Read = Callable[[], Iterator[Mapping[str, Any]]]
Source = tuple[str, Read, int]
"""A name for messages, a function that starts reading, and the number of feeds."""


@runtime_checkable
class _Indexed(Protocol):
    """What can be read again and out of order: a list, or a data set of torch."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


_FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def open_source(source: str | Path | Iterable[Mapping[str, Any]], signature: Signature, limit: int | None) -> Source:
    """Finds out what `source` is; see `Samples.open`.

    Raises:
        SamplesError: there is no such file, folder or function, or its kind is not known.
    """
    if not isinstance(source, (str, Path)):
        return _objects("the given samples", source, limit)
    path = Path(source)
    if path.is_dir():
        return _folder(path, signature)
    if path.is_file():
        return _file(path, signature)
    if _FUNCTION.fullmatch(str(source)):
        return _function(str(source), limit)
    raise SamplesError(f"no such samples: {source}; give an .npz or .npy file, a folder of them, or module:function")


def _objects(name: str, items: Any, limit: int | None) -> Source:
    if isinstance(items, Mapping):
        items = [items]
    if not isinstance(items, Iterable):
        raise SamplesError(f"{name}: a {type(items).__name__} is not an iterable of dicts of arrays")
    if isinstance(items, _Indexed):
        return name, lambda: (items[i] for i in range(len(items))), len(items)
    kept = list(islice(items, limit))
    return name, lambda: iter(kept), len(kept)


def _function(name: str, limit: int | None) -> Source:
    module_name, function_name = name.split(":")
    here = str(Path.cwd())
    sys.path.insert(0, here)  # as `python -m` does, so that a script beside the model is found
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError) as error:
        raise SamplesError(f"samples {name}: {error}") from error
    finally:
        sys.path.remove(here)
    return _objects(f"{name}()", function(), limit)


def _folder(path: Path, signature: Signature) -> Source:
    single = any(path.glob("input_*.pb"))
    sets = [path] if single else sorted((p for p in path.glob("test_data_set_*") if p.is_dir()), key=_natural)
    if sets:
        return str(path), lambda: (_test_data(folder, signature) for folder in sets), len(sets)
    files = sorted((p for p in path.iterdir() if p.suffix in (".npz", ".npy")), key=_natural)
    if not files:
        raise SamplesError(f"{path} holds no .npz or .npy files and no test_data_set_* folders")
    return str(path), lambda: (_load(file, signature) for file in files), len(files)


def _load(path: Path, signature: Signature) -> Mapping[str, Any]:
    try:
        content = np.load(path, allow_pickle=False)
        if isinstance(content, np.ndarray):
            return {_only_input(path, signature).name: content}
        with content:
            return {name: content[name] for name in content.files}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise SamplesError(f"cannot read {path}: {error}") from error


def _test_data(folder: Path, signature: Signature) -> Mapping[str, Any]:
    tensors = []
    for path in sorted(folder.glob("input_*.pb"), key=_natural):
        try:
            tensors.append(onnx.load_tensor(str(path)))
        except Exception as error:  # protobuf's decode error has no public name
            raise SamplesError(f"cannot read {path} as a tensor: {error}") from error
    wanted = [port.name for port in signature.inputs]
    named = {tensor.name for tensor in tensors}.issuperset(wanted)
    names = [tensor.name for tensor in tensors] if named else wanted
    return {name: onnx.numpy_helper.to_array(tensor) for name, tensor in zip(names, tensors, strict=False)}


def _file(path: Path, signature: Signature) -> Source:
    if path.suffix == ".npy":
        port = _only_input(path, signature)
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        step = _step(port, array.shape, path)
        return str(path), lambda: ({port.name: np.array(item)} for item in _items(array, step)), len(array) // abs(step or 1)
    if path.suffix != ".npz":
        raise SamplesError(f"{path} is no .npz or .npy file")
    try:
        headers = _headers(path)
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise SamplesError(f"cannot read {path}: {error}") from error
    ports = [port for port in signature.inputs if port.name in headers]
    steps = {port.name: _step(port, headers[port.name], path) for port in ports}
    counts = {name: headers[name][0] // abs(step or 1) for name, step in steps.items() if step is not None}
    if len(set(counts.values())) > 1:
        found = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise SamplesError(f"{path}: inputs differ in their number of samples ({found}); put one feed a file into a folder instead")
    if not ports:
        raise SamplesError(f"{path} has {', '.join(headers) or 'nothing'}; the model wants {', '.join(map(str, signature.inputs))}")
    return str(path), lambda: _rows(path, steps), next(iter(counts.values()), 1)


def _only_input(path: Path, signature: Signature) -> Port:
    if len(signature.inputs) != 1:
        raise SamplesError(f"{path}: an .npy file feeds one input, the model has {len(signature.inputs)}; use .npz files")
    return signature.inputs[0]


def _step(port: Port, shape: tuple[int, ...], path: Path) -> int | None:
    """How a stack is taken apart: n > 0 rows of the first axis make a feed, 0: one row without its axis, None: all of it each time."""
    if not shape:
        return None
    if port.shape is None or len(port.shape) == len(shape):
        first = port.shape[0] if port.shape else None
        return first if isinstance(first, int) and first > 0 else 1
    if len(port.shape) + 1 == len(shape):
        return 0
    raise SamplesError(f"{path}: {port.name} has shape {list(shape)}; the model wants {port}, or one axis more to count the samples")


def _rows(path: Path, steps: Mapping[str, int | None]) -> Iterator[Mapping[str, Any]]:
    """Reads all arrays of an npz file side by side, a feed at a time, so that memory holds one feed."""
    with zipfile.ZipFile(path) as archive:
        columns = {name: _column(archive, name, step) for name, step in steps.items()}
        if all(step is None for step in steps.values()):
            yield {name: next(column) for name, column in columns.items()}
            return
        for values in zip(*columns.values(), strict=False):
            yield dict(zip(columns, values, strict=True))


def _column(archive: zipfile.ZipFile, name: str, step: int | None) -> Iterator[np.ndarray]:
    with archive.open(f"{name}.npy") as file:
        shape, fortran, dtype = _header(file)
        if fortran or step is None or dtype.hasobject:
            with archive.open(f"{name}.npy") as whole:
                array = np.lib.format.read_array(whole, allow_pickle=False)
            yield from _items(array, step)
            return
        count, length = max(1, step), int(np.prod(shape[1:]))
        for _ in range(shape[0] // count):
            content = np.frombuffer(file.read(count * length * dtype.itemsize), dtype).copy()
            yield content.reshape(shape[1:] if step == 0 else (count, *shape[1:]))


def _items(array: np.ndarray, step: int | None) -> Iterator[np.ndarray]:
    if step is None:
        while True:
            yield array
    for start in range(0, len(array) - max(1, step) + 1, max(1, step)):
        yield array[start] if step == 0 else array[start : start + step]


def _headers(path: Path) -> dict[str, tuple[int, ...]]:
    with zipfile.ZipFile(path) as archive:
        shapes = {}
        for member in archive.namelist():
            with archive.open(member) as file:
                shapes[member.removesuffix(".npy")] = _header(file)[0]
        return shapes


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return read(file)


def _natural(path: Path) -> list[Any]:
    """Sort key that puts ``feed_10`` after ``feed_9``."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", path.name)]

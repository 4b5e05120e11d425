"""Statistics as an npz file: arrays, and everything else as JSON; the same statistics give the same bytes."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from graphopt.errors import StatisticsError
from graphopt.files.atomic import PendingFile
from graphopt.runtime.statistics.histogram import SIDE, Histogram
from graphopt.runtime.statistics.layers import LayerStatistics
from graphopt.runtime.statistics.values import Channels, ValueStatistics

Array = np.ndarray[Any, Any]

VERSION = 2
_HEAD = "head"
_SCALARS = ("count", "minimum", "maximum", "total")


def write(
    path: Path, samples: int, values: Mapping[str, ValueStatistics], layers: Mapping[str, LayerStatistics], notes: Mapping[str, Any]
) -> None:
    """Writes statistics; Gram matrices as their upper triangles.

    Raises:
        StatisticsError: the file cannot be written.
    """
    arrays: dict[str, Array] = {}
    heads = [_value_head(f"v{index}", value, arrays) for index, value in enumerate(values.values())]
    numbers: dict[int, int] = {}
    for layer in layers.values():
        numbers.setdefault(id(layer), len(numbers))
    head = {
        "version": VERSION,
        "samples": samples,
        "values": dict(zip(values, heads, strict=True)),
        "layers": {name: numbers[id(layer)] for name, layer in layers.items()},
        **notes,
    }
    try:
        with PendingFile(path.parent, path.name) as pending:
            with pending.path.open("wb") as stream, zipfile.ZipFile(stream, "w") as archive:
                _write_array(archive, _HEAD, np.frombuffer(json.dumps(head).encode(), dtype=np.uint8))
                for name, array in arrays.items():
                    _write_array(archive, name, array)
                _write_layers(archive, {numbers[id(layer)]: layer for layer in layers.values()})
            pending.commit(path)
    except OSError as error:
        raise StatisticsError(f"{path}: cannot be written: {error.strerror or error}") from error


def read(path: Path) -> tuple[int, dict[str, ValueStatistics], dict[str, LayerStatistics], dict[str, Any]]:
    """Reads what :func:`write` wrote.

    Returns:
        The number of samples, values, layers, and the rest of the head.

    Raises:
        StatisticsError: the file cannot be read, or is of another version.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            head = json.loads(arrays[_HEAD].tobytes())
            if head["version"] != VERSION:
                raise StatisticsError(f"{path} is of version {head['version']}; this graphopt reads version {VERSION}: calibrate again")
            values = {name: _value(f"v{index}", entry, arrays) for index, (name, entry) in enumerate(head["values"].items())}
            unique = {number: _layer(f"l{number}", arrays) for number in dict.fromkeys(head["layers"].values())}
            layers = {name: unique[number] for name, number in head["layers"].items()}
    except OSError as error:
        raise StatisticsError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, AttributeError, EOFError, zipfile.BadZipFile) as error:
        if isinstance(error, StatisticsError):
            raise
        raise StatisticsError(f"{path} holds no statistics: write it with `graphopt calibrate`") from error
    return head["samples"], values, layers, head


def _value_head(prefix: str, value: ValueStatistics, arrays: dict[str, Array]) -> dict[str, Any]:
    head = {name: getattr(value, name) for name in _SCALARS}
    if value.channels is not None:
        head["axis"] = value.channels.axis
        arrays[f"{prefix}.minimum"], arrays[f"{prefix}.maximum"] = value.channels.minimum, value.channels.maximum
    if value.histogram is not None:
        counts, edges = value.histogram.bins()
        first = round(edges[0] / value.histogram.width) + SIDE
        head["histogram"] = {"exponent": value.histogram.exponent, "first": first, "outside": value.histogram.outside}
        arrays[f"{prefix}.counts"] = counts
    return head


def _value(prefix: str, head: dict[str, Any], arrays: Mapping[str, Array]) -> ValueStatistics:
    value = ValueStatistics(**{name: head[name] for name in _SCALARS})
    if "axis" in head:
        value.channels = Channels(head["axis"], arrays[f"{prefix}.minimum"], arrays[f"{prefix}.maximum"])
    if "histogram" in head:
        stored = head["histogram"]
        value.histogram = Histogram(stored["exponent"], outside=stored["outside"])
        counts = arrays[f"{prefix}.counts"]
        value.histogram.counts[stored["first"] : stored["first"] + counts.size] = counts
    return value


def _write_layers(archive: zipfile.ZipFile, layers: Mapping[int, LayerStatistics]) -> None:
    for number, layer in layers.items():
        _write_array(archive, f"l{number}.n", np.array(layer.n))
        _write_array(archive, f"l{number}.total", layer.total)
        _write_array(archive, f"l{number}.gram", _packed(layer.gram))
        if layer.cross is not None:
            _write_array(archive, f"l{number}.cross", layer.cross)


def _layer(prefix: str, arrays: Mapping[str, Array]) -> LayerStatistics:
    total = arrays[f"{prefix}.total"]
    cross = arrays.get(f"{prefix}.cross")
    return LayerStatistics(int(arrays[f"{prefix}.n"]), total, _unpacked(arrays[f"{prefix}.gram"], *total.shape), cross)


def _packed(gram: Array) -> Array:
    return np.concatenate([matrix[row, row:] for matrix in gram for row in range(matrix.shape[0])])


def _unpacked(packed: Array, groups: int, width: int) -> Array:
    gram = np.empty((groups, width, width), dtype=packed.dtype)
    start = 0
    for matrix in gram:
        for row in range(width):
            matrix[row, row:] = matrix[row:, row] = packed[start : start + width - row]
            start += width - row
    return gram


def _write_array(archive: zipfile.ZipFile, name: str, array: Array) -> None:
    # An entry made by hand bears no date, so that the same statistics give the same bytes.
    with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
        np.lib.format.write_array(member, np.ascontiguousarray(array) if array.ndim else array, allow_pickle=False)

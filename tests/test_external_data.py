"""Tests of reading weights from data files: those that are missing, cut off or outside are refused, links are followed."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import pytest

from graphopt import files
from tests.model_files import make, message_of, run, write


def set_external(tensor: onnx.TensorProto, **entries: str) -> None:
    """Changes what a tensor says about its data."""
    for entry in tensor.external_data:
        if entry.key in entries:
            entry.value = entries.pop(entry.key)
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)


def tensor_of(proto: onnx.ModelProto, place: str) -> onnx.TensorProto:
    """An external tensor of the model: an initializer, a constant, or one inside a branch."""
    if place == "initializer":
        return proto.graph.initializer[0]
    if place == "constant":
        return proto.graph.node[0].attribute[0].t
    return proto.graph.node[-1].attribute[0].g.initializer[0]


@pytest.mark.parametrize("place", ["initializer", "constant", "branch"])
@pytest.mark.parametrize(
    ("entries", "part"),
    [
        ({"location": "missing.data"}, "missing"),
        ({"location": "/etc/passwd"}, "not a path inside"),
        ({"location": "C:\\w.data"}, "not a path inside"),
        ({"location": "../model/w.data"}, "not a path inside"),
        ({"location": "sub\\..\\..\\w.data"}, "not a path inside"),
        ({"location": ""}, "not a path inside"),
        ({"location": "."}, "not a path inside"),
        ({"location": "sub"}, "no plain file"),
        ({"location": "link.data"}, "leaves the model's folder"),
        ({"location": "linked/w.data"}, "leaves the model's folder"),
        ({"location": "hard.data"}, "hard links"),
        ({"offset": "1000000"}, "truncated or belongs"),
        ({"offset": "-1"}, "in.onnx"),
        ({"offset": "many"}, "in.onnx"),
        ({"length": "4"}, "has 4 bytes"),
    ],
)
def test_bad_external_data_is_refused(tmp_path: Path, place: str, entries: dict[str, str], part: str) -> None:
    """Each way in which external data can be missing, outside or too short is one line, wherever the tensor stands."""
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "w.data").write_bytes(bytes(100_000))
    (folder / "link.data").symlink_to(tmp_path / "outside" / "w.data")
    (folder / "linked").symlink_to(tmp_path / "outside")
    (folder / "one.data").write_bytes(bytes(100_000))
    (folder / "hard.data").hardlink_to(folder / "one.data")
    path = write(folder / "in.onnx", make(), "w.data")
    proto = onnx.load(path, load_external_data=False)
    set_external(tensor_of(proto, place), **entries)
    path.write_bytes(proto.SerializeToString())
    assert part in message_of(path)


def test_truncated_external_data_is_refused(tmp_path: Path) -> None:
    """A data file that ends early is refused before anything is read."""
    path = write(tmp_path / "in.onnx", make(), "w.data")
    os.truncate(tmp_path / "w.data", (tmp_path / "w.data").stat().st_size - 1)
    assert "truncated or belongs to another model" in message_of(path)


def test_links_inside_the_folder_and_into_a_store_are_followed(tmp_path: Path) -> None:
    """Data behind a link in the folder loads; so does a model whose files are all links into one store of files."""
    folder, store = tmp_path / "snapshot", tmp_path / "blobs"
    folder.mkdir()
    store.mkdir()
    path = write(folder / "in.onnx", make(), "w.data")
    expected = run(path)
    (folder / "w.data").rename(folder / "real.data")
    (folder / "w.data").symlink_to("real.data")
    files.save(files.load(path), tmp_path / "out.onnx")
    np.testing.assert_array_equal(run(tmp_path / "out.onnx"), expected)
    (folder / "real.data").rename(store / "1a2b")
    (folder / "w.data").unlink()
    (folder / "w.data").symlink_to("../blobs/1a2b")
    path.rename(store / "3c4d")
    path.symlink_to("../blobs/3c4d")
    files.save(files.load(path), tmp_path / "out2.onnx")
    np.testing.assert_array_equal(run(tmp_path / "out2.onnx"), expected)
    files.copy_model(path, tmp_path / "copy.onnx")
    np.testing.assert_array_equal(run(tmp_path / "copy.onnx"), expected)

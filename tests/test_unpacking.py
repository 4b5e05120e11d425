"""Tests of what unpacking replaces and what it leaves alone, and of the commands."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from graphopt.cli import main
from graphopt.container import pack, unpack
from graphopt.errors import GraphoptError, ModelFileError
from tests.model_files import write
from tests.packable import make, save_apart


def test_unpacking_replaces_what_pack_read(tmp_path: Path) -> None:
    """Unpacking beside the original changes nothing; data that only a replaced model used goes."""
    path = save_apart(tmp_path)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    pack(path)
    unpack(tmp_path / "model.gopt")
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir() if file.suffix != ".gopt"} == before
    write(path, make())
    (tmp_path / "model.data").unlink()
    inline = pack(path, tmp_path / "inline.gopt").path
    unpack(tmp_path / "model.gopt")
    unpack(inline, path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["inline.gopt", "model.gopt", "model.onnx"]


def test_other_files_are_never_replaced(tmp_path: Path) -> None:
    """A file of other content under a data file's name, and a model or container given as its own output, are refused."""
    path = save_apart(tmp_path)
    container = pack(path).path
    (tmp_path / "model.data").write_bytes(b"mine")
    with pytest.raises(ModelFileError, match="another file has the name"):
        unpack(container, tmp_path / "new.onnx")
    with pytest.raises(ModelFileError, match="another file has the name"):
        unpack(container, tmp_path / "model.data")
    with pytest.raises(GraphoptError, match="the container itself"):
        unpack(container, container)
    for itself in ("model.onnx", "model.data"):
        with pytest.raises(GraphoptError, match="the model itself"):
            pack(path, tmp_path / itself)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.data", "model.gopt", "model.onnx"]
    assert (tmp_path / "model.data").read_bytes() == b"mine"


def test_commands(tmp_path: Path, digits: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """``pack`` shows sizes by type beside the ideal ones, or as JSON; ``unpack`` says in one line what it wrote."""
    source, container, model = digits / "conv.onnx", tmp_path / "m.gopt", tmp_path / "m.onnx"
    assert main(["pack", str(source), "-o", str(container), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["version"] == 1
    assert found["original_bytes"] == source.stat().st_size
    assert found["packed_bytes"] == container.stat().st_size < source.stat().st_size
    assert set(found["kinds"]["float32"]) == {"original_bytes", "packed_bytes", "ideal_bytes"}
    assert main(["pack", str(source), "-o", str(container)]) == 0
    assert "above ideal" in capsys.readouterr().out
    assert main(["unpack", str(container)]) == 0
    assert capsys.readouterr().out == f"wrote {model}\n"
    assert model.read_bytes() == source.read_bytes()

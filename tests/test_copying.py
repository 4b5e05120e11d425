"""Tests of copying a model, its data and what lies beside it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from graphopt import files
from graphopt.errors import ModelFileError
from graphopt.files.atomic import PendingFile
from tests.model_files import make, run, temporaries, write


def test_copy_model_is_a_copy(tmp_path: Path) -> None:
    """A copy has the same bytes, in its own folder, and copying again or onto itself is harmless."""
    folder = tmp_path / "in"
    (folder / "sub").mkdir(parents=True)
    source = write(folder / "in.onnx", make(), "sub/w.data")
    target = tmp_path / "out" / "model.onnx"
    target.parent.mkdir()
    for _ in range(2):
        copies = files.copy_model(folder, target)
        assert copies == [target, tmp_path / "out" / "sub" / "w.data"]
        assert target.read_bytes() == source.read_bytes()
        assert copies[1].read_bytes() == (folder / "sub" / "w.data").read_bytes()
    assert files.copy_model(target, target) == copies
    np.testing.assert_array_equal(run(target), run(source))
    assert files.total_bytes(tmp_path / "out") == files.total_bytes(source)
    assert temporaries(tmp_path) == []


def test_copy_model_overwrites_no_other_data(tmp_path: Path) -> None:
    """A data file of the same name and other content is refused, and the target stays as it was."""
    source = write(tmp_path / "in.onnx", make(), "w.data")
    out = tmp_path / "out"
    out.mkdir()
    (out / "w.data").write_bytes(b"other")
    with pytest.raises(ModelFileError, match="another model's data"):
        files.copy_model(source, out / "model.onnx")
    assert [path.name for path in out.iterdir()] == ["w.data"]
    assert (out / "w.data").read_bytes() == b"other"


def test_copy_model_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the disk is full after the data was copied, the data is gone again."""
    source = write(tmp_path / "in.onnx", make(), "w.data")
    out = tmp_path / "out"
    out.mkdir()
    commit = PendingFile.commit

    def failing(file: PendingFile, target: Path) -> None:
        if target.suffix == ".onnx":
            raise OSError(28, "No space left on device")
        commit(file, target)

    monkeypatch.setattr(PendingFile, "commit", failing)
    with pytest.raises(ModelFileError, match="No space left"):
        files.copy_model(source, out / "model.onnx")
    assert list(out.iterdir()) == []


def test_companions(tmp_path: Path) -> None:
    """What lies beside a model is copied: not the model, its data, hidden files or the target itself."""
    source = tmp_path / "in"
    (source / "adapters").mkdir(parents=True)
    model = write(source / "model.onnx", make(), "model.onnx.data")
    write(source / "tokenizer.onnx", make())
    (source / "genai_config.json").write_text('{"model": {"decoder": {"filename": "model.onnx"}}}')
    (source / "adapters" / "a.bin").write_bytes(b"a")
    (source / ".cache").mkdir()
    (source / ".cache" / "x").write_bytes(b"x")
    for target in (tmp_path / "out", source / "out"):
        for _ in range(2):
            copies = files.copy_companions(source, target, model)
            names = {"adapters/a.bin", "genai_config.json", "tokenizer.onnx"}
            assert {path.relative_to(target).as_posix() for path in copies} - {"out/" + name for name in names} == names
        assert (target / "genai_config.json").read_text() == (source / "genai_config.json").read_text()
        assert not (target / "model.onnx").exists()
        assert temporaries(tmp_path) == []
    assert files.copy_companions(source, source, model) == []

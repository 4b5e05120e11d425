"""Tests of sessions of packed models."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import helper

import graphopt
from graphopt.container import pack
from graphopt.errors import GraphoptError
from tests.model_files import write
from tests.packable import make, random_weights, save_apart


def test_sessions_need_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A packed model, with or without data files, answers as the original does, and nothing is written meanwhile."""
    import onnxruntime

    takes_data = hasattr(onnxruntime.SessionOptions(), "add_external_initializers_from_files_in_memory")
    feed = {"x": random_weights((3, 64), seed=5), "b": np.array(True)}
    for name in ("inside", "apart") if takes_data else ("inside",):
        folder = tmp_path / name
        folder.mkdir()
        path = save_apart(folder, "sub/model.data") if name == "apart" else write(folder / "model.onnx", make())
        expected = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, feed)[0]
        pack(path, tmp_path / f"{name}.gopt")
        for file in (path, *folder.glob("sub/*")):
            file.unlink()
        before = sorted(tmp_path.rglob("*"))
        monkeypatch.setenv("TMPDIR", str(tmp_path))
        session = graphopt.load_packed(tmp_path / f"{name}.gopt", providers=["CPUExecutionProvider"])
        assert np.array_equal(session.run(None, feed)[0], expected)
        assert sorted(tmp_path.rglob("*")) == before


def test_sessions_take_options(tmp_path: Path) -> None:
    """Options go to the runtime; a model that it refuses is one line."""
    import onnxruntime

    path = write(tmp_path / "model.onnx", make())
    pack(path)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = graphopt.load_packed(tmp_path / "model.gopt", options, providers=["CPUExecutionProvider"])
    assert session.get_session_options().intra_op_num_threads == 1
    path.write_bytes(helper.make_model(helper.make_graph([helper.make_node("Nothing", ["x"], ["y"])], "g", [], [])).SerializeToString())
    pack(path)
    with pytest.raises(GraphoptError, match="does not load"):
        graphopt.load_packed(tmp_path / "model.gopt")


def test_old_runtimes_are_named(tmp_path: Path) -> None:
    """A runtime that takes no data files from memory is told in one line what to do."""
    pack(save_apart(tmp_path))
    with pytest.raises(GraphoptError, match="unpack"):
        graphopt.load_packed(tmp_path / "model.gopt", object())

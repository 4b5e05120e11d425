"""Tests of saving where something is already: over the model itself, beside other data, onto what is no file."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from graphopt import files
from graphopt.errors import ModelFileError
from graphopt.graph.structure import verify_structure
from tests.model_files import WEIGHT, make, run, write


def test_saving_over_the_model_itself(tmp_path: Path) -> None:
    """A model saved over its own file, with its own data mapped, is whole, and stays readable in memory."""
    path = write(tmp_path / "model.onnx", make(), "w.data")
    expected = run(path)
    model = files.load(path)
    model.graph.initializers["w"].const_value.numpy()  # type: ignore[union-attr]
    _, data = files.save(model, path)
    np.testing.assert_array_equal(run(path), expected)
    np.testing.assert_array_equal(np.asarray(model.graph.initializers["w"].const_value), WEIGHT)
    assert (tmp_path / "w.data").exists(), "the model at hand still reads from it"
    model.graph.initializers["w"].const_value = ir.tensor(WEIGHT + 1, name="w")
    files.save(model, path)
    assert not data.exists(), "nothing needs it any more"
    verify_structure(files.load(path))


def test_old_data_goes_only_where_nothing_uses_it(tmp_path: Path) -> None:
    """The data of a replaced model is removed, unless another model of the folder names it."""
    first, second = files.from_proto(make()), files.from_proto(make(seed=1))
    target = tmp_path / "out.onnx"
    _, old = files.save(first, target, external_data=True)
    _, new = files.save(second, target, external_data=True)
    assert not old.exists()
    (tmp_path / "other.onnx").write_bytes(target.read_bytes())
    files.save(first, target, external_data=False)
    assert new.exists()
    assert sorted(child.name for child in tmp_path.iterdir()) == sorted(["other.onnx", "out.onnx", new.name])


def test_a_file_of_other_content_is_never_overwritten(tmp_path: Path) -> None:
    """Where the data file's name is taken by other content, a longer name is used."""
    model = files.from_proto(make())
    _, data = files.save(model, tmp_path / "out.onnx", external_data=True)
    (tmp_path / "out.onnx").unlink()
    data.write_bytes(b"something else")
    _, second = files.save(model, tmp_path / "out.onnx", external_data=True)
    assert data.read_bytes() == b"something else"
    assert re.fullmatch(r"out\.[0-9a-f]{16}\.data", second.name)


def test_impossible_targets(tmp_path: Path) -> None:
    """Folders, devices and missing folders are refused before anything is written."""
    model = files.from_proto(make())
    for target, part in ((tmp_path, "a folder"), (Path("/dev/null"), "not a plain file"), (tmp_path / "no" / "out.onnx", "does not exist")):
        with pytest.raises(ModelFileError, match=part):
            files.save(model, target)
    if os.geteuid() != 0:
        tmp_path.chmod(0o500)
        with pytest.raises(ModelFileError, match="Permission denied"):
            files.save(model, tmp_path / "out.onnx")
        tmp_path.chmod(0o700)


def test_permissions_follow_the_umask_and_an_older_file(tmp_path: Path) -> None:
    """A new file gets the usual permissions, a replaced one keeps its own."""
    model = files.from_proto(make())
    (tmp_path / "plain").touch()
    target = tmp_path / "out.onnx"
    files.save(model, target)
    assert target.stat().st_mode == (tmp_path / "plain").stat().st_mode
    target.chmod(0o640)
    files.save(model, target)
    assert target.stat().st_mode & 0o777 == 0o640

"""Tests of runs that are interrupted or killed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from graphopt.runtime.session import open_session
from tests.desk import good_file

good = pytest.fixture(good_file)


def started(good: Path, *options: str) -> subprocess.Popen[str]:
    """The command line as a process of its own group, with the first progress line already read."""
    command = [sys.executable, "-m", "graphopt", "optimize", str(good), *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stderr is not None
    assert process.stderr.readline().startswith("load")
    return process


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_interrupted(digits: Path, tmp_path: Path) -> None:
    """Ctrl-C, which reaches the timing process too, ends with status 130 and one word, and takes the temporary files away."""
    model = tmp_path / "good.onnx"
    shutil.copy(digits / "conv.onnx", model)
    process = started(model, "-o", str(tmp_path / "out.onnx"), "--time-limit", "60")
    assert process.stderr is not None
    while not process.stderr.readline().startswith("rewrite"):
        pass  # what follows is the timing, which takes seconds for a result that is as fast as its original
    time.sleep(0.5)
    os.killpg(process.pid, signal.SIGINT)
    _, error = process.communicate(timeout=30)
    assert process.returncode == 130
    assert [line for line in error.splitlines() if not line.endswith(" s)")] == ["graphopt: interrupted"]
    assert [path.name for path in tmp_path.iterdir()] == ["good.onnx"]


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
@pytest.mark.parametrize("delay", [0.0, 0.05, 0.15])
@pytest.mark.parametrize("in_place", [False, True])
def test_killed(good: Path, delay: float, in_place: bool) -> None:
    """Killed at any time, the input is whole, the output is whole or absent, and at worst one temporary folder is left."""
    before, output = good.read_bytes(), good.with_name("out.onnx")
    process = started(good, *(["--in-place"] if in_place else ["-o", str(output)]), "--verify", "outputs")
    time.sleep(delay)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=30)
    left = {path.name for path in good.parent.iterdir()}
    assert len([name for name in left if name.startswith(".")]) <= 1
    assert {name for name in left if not name.startswith(".")} <= {
        *("good.onnx", "good.onnx.ledger.json", "good.onnx.recipe.yaml"),
        *("out.onnx", "out.onnx.ledger.json", "out.onnx.recipe.yaml"),
    }
    for model in good.parent.glob("*.onnx"):
        open_session(model).run({"x": np.ones((2, 4), np.float32)})
    assert in_place or good.read_bytes() == before

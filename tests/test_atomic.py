"""Tests of saves that do not come to their end: the old model or the new one is there, and whole."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import onnx_ir as ir
import pytest

from graphopt import files
from graphopt.errors import ModelFileError
from graphopt.files.atomic import PendingFile
from graphopt.graph.structure import verify_structure
from tests.model_files import make, temporaries, weight_of


def stopped_save(model: ir.Model, target: Path, external_data: bool, mode: str, step: int) -> int:
    """Saves in a process of its own that stops at a step: before or after it writes, syncs or renames anything.

    Returns:
        0: the save came to its end first; 3 or 130: it ended with the error that ``mode`` asks for; 4: it passed the error by;
        -9: it was killed.
    """
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        return os.waitstatus_to_exitcode(status)
    count = 0

    def stop() -> None:
        nonlocal count
        count += 1
        if count == step:
            if mode == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            raise KeyboardInterrupt if mode == "interrupt" else OSError(28, "No space left on device")

    def counted(call: Callable[..., object]) -> Callable[..., object]:
        def wrapper(*args: object, **kwargs: object) -> object:
            stop()
            result = call(*args, **kwargs)
            stop()
            return result

        return wrapper

    code = 1
    try:
        for holder, name in ((os, "fsync"), (Path, "replace"), (PendingFile, "write"), (shutil, "copymode")):
            setattr(holder, name, counted(getattr(holder, name)))
        files.save(model, target, external_data=external_data)
        code = 0 if count < step else 4
    except ModelFileError as error:
        code = 3 if str(error) == f"{target}: cannot be written: No space left on device" else 1
    except KeyboardInterrupt:
        code = 130
    finally:
        os._exit(code)


@pytest.mark.parametrize("external_data", [False, True])
@pytest.mark.parametrize("mode", ["kill", "interrupt", "full"])
def test_stopped_at_every_step(tmp_path: Path, mode: str, external_data: bool) -> None:
    """Killed, interrupted or out of space before or after any step, the old model or the new one is there, and whole."""
    old, new = files.from_proto(make()), files.from_proto(make(seed=1))
    expected = {"kill": {-9}, "interrupt": {130}, "full": {3, 4}}[mode]
    steps = 0
    for step in range(1, 200):
        folder = tmp_path / str(step)
        folder.mkdir()
        before = files.save(old, folder / "out.onnx", external_data=external_data)
        code = stopped_save(new, folder / "out.onnx", external_data, mode, step)
        verify_structure(files.load(folder / "out.onnx"))
        left = temporaries(folder)
        assert len(left) <= (mode == "kill"), (step, left)
        names = {path.name for path in folder.iterdir()} - set(left)
        is_new = weight_of(folder / "out.onnx")[0, 0] == 1
        if not is_new:
            assert code in expected - {4}
            assert all(path.exists() for path in before)
        # Data of the model that did not make it, or of the one that was replaced, may be left by a kill or a late stop.
        spare = 1 if external_data and (mode == "kill" or (is_new and code in (3, 130))) else 0
        assert len(names) <= 1 + external_data + spare, (step, names)
        if code == 0:
            assert is_new
            break
        assert code in expected, (step, code)
        steps = step
    assert 8 < steps < 199


def test_a_file_size_limit_leaves_the_old_model(tmp_path: Path, root: Path) -> None:
    """A real limit of the system, hit while writing, is one line and leaves no trace."""
    target = tmp_path / "out.onnx"
    files.save(files.from_proto(make()), target)
    before = target.read_bytes()
    code = f"""
        import resource
        from graphopt import files
        model = files.load({str(target)!r})
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))
        for external_data in (False, True):
            try:
                files.save(model, {str(target)!r}, external_data=external_data)
            except Exception as error:
                print(type(error).__name__, error)
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(root)}, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [f"ModelFileError {target}: cannot be written: File too large"] * 2
    assert target.read_bytes() == before
    assert list(tmp_path.iterdir()) == [target]


def test_pending_file_vanishes_with_its_context(tmp_path: Path) -> None:
    """A file that is not committed leaves nothing, and one that is committed replaces what was there."""
    with PendingFile(tmp_path, "a") as file:
        file.write(b"1")
        assert len(temporaries(tmp_path)) == 1
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "a").write_bytes(b"old")
    with PendingFile(tmp_path, "a") as file:
        file.write(b"new")
        file.commit(tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == b"new"

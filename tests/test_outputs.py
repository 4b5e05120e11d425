"""Tests of where results go: onto the input on demand only, and nowhere where nothing can be written."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from graphopt.cli import main
from tests.desk import Desk, desk_in, good_file

desk = pytest.fixture(desk_in)
good = pytest.fixture(good_file)


def test_output_that_is_the_input(desk: Desk, good: Path) -> None:
    """The input is overwritten on demand only, whatever path leads to it."""
    (desk.folder / "link.onnx").symlink_to(good)
    for output in (good, desk.folder / "." / "good.onnx", desk.folder / "link.onnx"):
        assert "--in-place" in desk.refuse("optimize", good, "-o", output)
    assert "not both" in desk.refuse("optimize", good, "-o", desk.output, "--in-place")


def test_in_place(desk: Desk, good: Path) -> None:
    """On demand the input is replaced; its permissions stay, and nothing temporary is left."""
    good.chmod(0o640)
    before = good.read_bytes()
    assert main(["optimize", str(good), "--in-place", "--verify", "outputs", "-q"]) == 0
    assert good.read_bytes() != before
    assert good.stat().st_mode & 0o777 == 0o640
    assert set(desk.content()) == {"good.onnx", "good.onnx.ledger.json", "good.onnx.recipe.yaml"}
    assert not any(path.is_dir() for path in desk.folder.iterdir())


def test_outputs_that_cannot_be(desk: Desk, good: Path) -> None:
    """A folder that does not exist, a file in the place of a folder, a device."""
    assert "does not exist" in desk.refuse("optimize", good, "-o", desk.folder / "none" / "out.onnx")
    assert "good.onnx" in desk.refuse("optimize", good, "-o", good / "out.onnx")
    assert "not a plain file" in desk.refuse("optimize", good, "-o", "/dev/null")


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is a folder that nobody can write to")
def test_a_folder_that_cannot_be_written(desk: Desk, good: Path) -> None:
    """A folder without leave to write is named."""
    assert "/proc" in desk.refuse("optimize", good, "-o", "/proc/out.onnx")


@pytest.mark.parametrize("in_place", [False, True])
def test_a_full_disk(desk: Desk, good: Path, monkeypatch: pytest.MonkeyPatch, in_place: bool) -> None:
    """Where the disk is full, wherever that shows first, the error says so, and files are as before."""
    synced = os.fsync
    calls = 0

    def full_at(number: int) -> Callable[[int], None]:
        def sync(handle: int) -> None:
            nonlocal calls
            calls += stat.S_ISREG(os.fstat(handle).st_mode)
            if calls == number:
                raise OSError(errno.ENOSPC, "No space left on device")
            synced(handle)

        return sync

    where = ["--in-place"] if in_place else ["-o", str(desk.output)]
    for number in range(1, 5):  # the model, the model with its ledger in it, the recipe, the ledger
        calls = 0
        monkeypatch.setattr(os, "fsync", full_at(number))
        assert "No space left on device" in desk.refuse("optimize", good, *where, "--verify", "outputs")


LIMITED = """
import resource, signal, sys
from graphopt.cli import main
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), -1))
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no file size limits")
@pytest.mark.parametrize("options", [("--verify", "outputs"), ("--time-limit", "0.1")], ids=["outputs", "full"])
def test_a_limit_on_file_sizes(good: Path, options: tuple[str, ...]) -> None:
    """A process that may write 100 bytes ends with one line, and leaves no file behind."""
    command = [sys.executable, "-c", LIMITED, "100", "optimize", str(good), "-o", str(good.with_name("out.onnx")), "-q", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert done.stderr.count("\n") == 1
    assert "File too large" in done.stderr
    assert [path.name for path in good.parent.iterdir()] == ["good.onnx"]

"""The command line in a folder, and what it leaves there."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from graphopt.cli import main

GOOD = """<ir_version: 8, opset_import: ["": 18]> g (float[n,4] x) => (float[n,4] y) <float[4] w = {1, 2, 3, 4}> {
    [twice] i = Identity(x) [add] a = Add(i, w) [relu] y = Relu(a) }"""


def save(text: str, path: Path) -> Path:
    """Writes a model given as text, sound or not."""
    onnx.save(onnx.parser.parse_model(text), path)
    return path


def good_file(tmp_path: Path) -> Path:
    """A small sound model with something to improve."""
    return save(GOOD, tmp_path / "good.onnx")


class Desk:
    """Runs the command line in a folder and looks at what it left there."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self._capsys = folder, capsys
        self.output = folder / "out.onnx"

    def content(self) -> dict[str, bytes]:
        """All files by name; links are not followed."""
        return {path.name: path.read_bytes() for path in self.folder.iterdir() if path.is_file() and not path.is_symlink()}

    def optimize(self, model: Path, *options: str) -> tuple[str, str]:
        """Runs ``optimize`` without timing, which must succeed; gives back what it printed."""
        status = main(["optimize", str(model), "-o", str(self.output), "--verify", "outputs", *options])
        printed = self._capsys.readouterr()
        assert status == 0, printed.err
        return printed.out, printed.err

    def refuse(self, *arguments: str | Path, status: int = 1) -> str:
        """Runs a command that must fail with one line and leave the folder as it was; gives back that line."""
        before = self.content()
        assert main([str(argument) for argument in arguments]) == status
        assert self.content() == before
        printed = self._capsys.readouterr()
        lines = [line for line in printed.err.splitlines() if not line.endswith(" s)")]  # progress ends with the seconds
        assert printed.out == ""
        if status == 1:
            assert len(lines) == 1, printed.err
            assert lines[0].startswith("graphopt: ")
        assert "Traceback" not in printed.err
        return "\n".join(lines)

    def refuse_model(self, model: Path, *options: str) -> str:
        """Optimizing must fail."""
        return self.refuse("optimize", model, "-o", self.output, *options)


def desk_in(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Desk:
    """The command line in a temporary folder."""
    return Desk(tmp_path, capsys)

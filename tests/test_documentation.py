"""The documentation's examples, run as a reader would run them.

Fenced blocks marked ``python`` are executed, those of one page in order and in one namespace. In ``console`` blocks
every line that begins with ``$ graphopt`` runs through the command line. ``bash`` blocks hold what sets a machine up
and are not run; the make targets that they name must exist.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?:|#)([^)#]+)")
TIME_LIMIT_S = 240
TIMED = {"optimize", "compare"}
TIMED_S = 2
"""Limit on a timed comparison here: on a busy machine each would take its default of 20 seconds, and proves nothing more."""
COMMAND = "import sys; from graphopt.cli import main; sys.exit(main())"


class Block(NamedTuple):
    """A fenced block: its language, its text and the line it begins at."""

    language: str
    text: str
    line: int


def blocks_of(page: Path) -> Iterator[Block]:
    """All fenced blocks of a page that name a language."""
    text = page.read_text(encoding="utf-8")
    for match in FENCE.finditer(text):
        yield Block(match[1], match[2], text.count("\n", 0, match.start()) + 2)


@pytest.fixture
def desk(digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which a reader stands: model.onnx with calibration and evaluation samples beside it."""
    for source, name in (("conv.onnx", "model.onnx"), ("calib.npz", "calib.npz"), ("eval.npz", "eval.npz")):
        shutil.copy(digits / source, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _run_python(block: Block, page: Path, namespace: dict[str, Any]) -> None:
    code = "\n" * (block.line - 1) + block.text  # so that a traceback shows the page's own line numbers
    exec(compile(code, str(page), "exec"), namespace)  # noqa: S102 - running it is the test


def _run_console(block: Block, page: Path, desk: Path) -> None:
    for offset, line in enumerate(block.text.splitlines()):
        if not line.startswith("$ graphopt "):
            continue
        arguments = shlex.split(line.removeprefix("$ graphopt "))
        limit = ["--time-limit", str(TIMED_S)] if arguments[0] in TIMED else []
        command = [sys.executable, "-c", COMMAND, *arguments, *limit]
        done = subprocess.run(command, cwd=desk, capture_output=True, text=True, timeout=TIME_LIMIT_S, check=False)
        assert done.returncode == 0, f"{page.name}:{block.line + offset}: {line}\n{done.stdout}{done.stderr}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_examples_run(page: Path, desk: Path) -> None:
    """Every example of a page runs, one after the other, as it stands."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for block in blocks_of(page):
        if block.language == "python":
            _run_python(block, page, namespace)
        elif block.language == "console":
            _run_console(block, page, desk)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    """Every relative link of a page names a file or folder of the repository."""
    for target in LINK.findall(page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), f"{page.name} links to {target}, which is not there"


def test_make_targets_exist() -> None:
    """Every make target that the documentation names is one of the Makefile's."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for page in PAGES:
        named = set(re.findall(r"\bmake ([a-z-]+)\b", "".join(b.text for b in blocks_of(page) if b.language == "bash")))
        assert named <= targets, f"{page.name} names make targets that do not exist: {sorted(named - targets)}"

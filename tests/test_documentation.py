"""The documentation's examples, run as a reader would run them.

Fenced blocks marked ``python`` are executed, those of one page in order and in one namespace; one with a title is a file that the
reader writes. In ``console`` blocks every line that begins with ``$ graphopt`` runs through the command line. ``bash`` blocks hold
what sets a machine up and are not run; the make targets that they name must exist.
"""

from __future__ import annotations

import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from graphopt.cli import main

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?:|#)([^)#]+)")
TIMED = {"optimize", "compare"}
TIMED_S = 0.5
"""Limit on a timed comparison here: on a busy machine each would take its default of 20 seconds, and proves nothing more."""


class Block(NamedTuple):
    """A fenced block: its language, the file that it is or None, its text and the line it begins at."""

    language: str
    title: str | None
    text: str
    line: int


def blocks_of(page: Path) -> Iterator[Block]:
    """All fenced blocks of a page that name a language."""
    text = page.read_text(encoding="utf-8")
    for match in FENCE.finditer(text):
        yield Block(match[1], match[2], match[3], text.count("\n", 0, match.start()) + 2)


@pytest.fixture
def desk(digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder in which a reader stands: the example models with calibration and evaluation samples beside them."""
    for source, name in (("conv.onnx", "model.onnx"), *((name, name) for name in ("attention.onnx", "calib.npz", "eval.npz"))):
        shutil.copy(digits / source, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:  # what a page wrote and imported, another page may write otherwise
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def _run_python(block: Block, page: Path, namespace: dict[str, Any]) -> None:
    code = "\n" * (block.line - 1) + block.text  # so that a traceback shows the page's own line numbers
    exec(compile(code, str(page), "exec"), namespace)  # noqa: S102 - running it is the test


def _run_console(block: Block, page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for offset, line in enumerate(block.text.splitlines()):
        if not line.startswith("$ graphopt "):
            continue
        arguments = shlex.split(line.removeprefix("$ graphopt "))
        limit = ["--time-limit", str(TIMED_S)] if arguments[0] in TIMED else []
        status = main([*arguments, *limit])
        printed = capsys.readouterr()
        assert status == 0, f"{page.name}:{block.line + offset}: {line}\n{printed.out}{printed.err}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_examples_run(page: Path, desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every example of a page runs, one after the other, as it stands."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for block in blocks_of(page):
        if block.title is not None:
            (desk / block.title).write_text(block.text, encoding="utf-8")
        elif block.language == "python":
            _run_python(block, page, namespace)
        elif block.language == "console":
            _run_console(block, page, capsys)


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

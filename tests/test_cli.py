"""Tests of the command line: every command's JSON, help and exit status, and what goes to a terminal, a pipe or nowhere."""

from __future__ import annotations

import io
import json
import logging
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from rich.console import Console

from graphopt import __version__
from graphopt.cli import app, main
from graphopt.passes import PASSES
from graphopt.progress import Lines, Live, progress_on

COMMANDS = [command.name or command.callback.__name__ for command in app.registered_commands if command.callback]
TEXT = """<ir_version: 8, opset_import: ["": 18]> g (float[n,4] x) => (float[n,4] y) <float[4] w = {1, 2, 3, 4}>
    { i = Identity(x) a = Add(i, w) y = Relu(a) }"""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A small model."""
    path = tmp_path / "model.onnx"
    ir.save(ir.from_onnx_text(TEXT), path)
    return path


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """The model with another weight."""
    path = tmp_path / "other.onnx"
    ir.save(ir.from_onnx_text(TEXT.replace("{1, 2", "{1.5, 2")), path)
    return path


Captured = pytest.CaptureFixture[str]


def run(capsys: Captured, *arguments: str | Path, status: int = 0) -> str:
    """Runs a command; gives back what it printed to standard output."""
    assert main([str(argument) for argument in arguments]) == status, capsys.readouterr().err
    return capsys.readouterr().out


def run_json(capsys: Captured, *arguments: str | Path, status: int = 0) -> dict[str, Any]:
    """Runs a command with --json; nothing else may be printed."""
    content = json.loads(run(capsys, *arguments, "--json", status=status))
    assert isinstance(content, dict)
    assert content["version"] == 1
    return content


# Help.


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example(capsys: Captured, command: str) -> None:
    """Each command explains itself with an example that names it, and can print JSON."""
    text = run(capsys, command, "--help")
    assert "Example: " in text
    assert f"graphopt {command}" in text
    assert "--json" in text
    assert run(capsys, command, "-h") == text


def test_overview(capsys: Captured) -> None:
    """The overview lists every command; without arguments it is shown too."""
    text = run(capsys, "--help")
    assert all(command in text for command in COMMANDS)
    assert main([]) == 2
    capsys.readouterr()
    assert run(capsys, "--version") == f"graphopt {__version__}\n"


def test_help_is_quick() -> None:
    """Help needs neither onnx nor a runtime nor torch."""
    code = "import sys; from graphopt.cli import main; main(['--help']); sys.exit(bool({'onnx', 'onnxruntime', 'torch'} & {*sys.modules}))"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


# Each command.


def test_optimize(capsys: Captured, model: Path) -> None:
    """The result tells what changed, in figures."""
    content = run_json(capsys, "optimize", model, "-o", model.with_name("out.onnx"), "--time-limit", "0.05")
    assert content["changed"]
    assert content["source"] == "model.onnx"
    assert content["rules"]["simplify/drop-identity"] == 1
    assert content["dropped"] == []
    figures = content["figures"]
    assert figures["bytes_after"] < figures["bytes_before"]
    assert figures["speed"]["speedup"]["ratio"] > 0
    text = run(capsys, "optimize", model, "-o", model.with_name("out.onnx"), "--verify", "outputs")
    assert "simplify/drop-identity" in text
    assert "out.onnx" in text


def test_optimize_options(capsys: Captured, model: Path) -> None:
    """Passes, skips, samples and sizes reach the run, and the resolved recipe holds them."""
    np.savez(model.with_name("data.npz"), x=np.ones((3, 4), np.float32))
    recipe = model.with_name("out.onnx.recipe.yaml")
    common = ("optimize", model, "-o", model.with_name("out.onnx"), "--verify", "outputs")
    content = run_json(capsys, *common, "--data", model.with_name("data.npz"))
    assert content["figures"]["synthetic"] is False
    run(capsys, *common, "--pass", "simplify", "--pass", "shapes", "--threads", "1", "--shape", "n=3", "--skip", "drop-identity")
    assert json.loads(json.dumps(run_json(capsys, "recipe", recipe)["shapes"])) == {"n": 3}
    text = recipe.read_text()
    assert "- simplify\n- shapes\n" in text
    assert "threads: 1" in text
    assert "drop-identity" in text
    content = run_json(capsys, *common, "--recipe", recipe)
    assert not content["changed"]
    assert run(capsys, *common, "--no-ledger", "--quiet") == ""
    assert not model.with_name("out.onnx.ledger.json").exists()


def test_compare(capsys: Captured, model: Path, other: Path) -> None:
    """Models that agree end with 0, others with 1 and one line; the figures are printed in both cases."""
    content = run_json(capsys, "compare", model, model, "--time-limit", "0.05")
    assert content
    assert main(["compare", str(model), str(other), "--time-limit", "0.05", "--json"]) == 1
    printed = capsys.readouterr()
    assert json.loads(printed.out)["version"] == 1
    assert printed.err.count("\n") == 1
    assert "differs from" in printed.err
    assert run(capsys, "compare", model, other, "--time-limit", "0.05", "--tolerance", "0.9")


def test_inspect(capsys: Captured, model: Path) -> None:
    """Signature and operators of a model."""
    assert "x" in str(run_json(capsys, "inspect", model))
    assert "Identity" in run(capsys, "inspect", model, "--shape", "n=3")


def test_verify(capsys: Captured, model: Path, other: Path) -> None:
    """A sound model ends with 0, one that differs from its original or has another signature with 1."""
    content = run_json(capsys, "verify", model)
    assert content["against"] is None
    assert content["feeds"] > 0
    assert run_json(capsys, "verify", model, "--against", model)["relative_error"] == 0
    assert "structure is right" in run(capsys, "verify", model)
    run(capsys, "verify", other, "--against", model, status=1)
    renamed = model.with_name("renamed.onnx")
    ir.save(ir.from_onnx_text(TEXT.replace(" y", " z")), renamed)
    run(capsys, "verify", renamed, "--against", model, status=1)


def test_passes(capsys: Captured) -> None:
    """Every registered pass, with its rules and their first lines; one pass in full."""
    content = run_json(capsys, "passes")
    assert [entry["name"] for entry in content["passes"]] == list(PASSES)
    assert all(entry["text"] and entry["kind"] in {"exact", "guided"} for entry in content["passes"])
    assert all(text for entry in content["passes"] for text in entry["rules"].values())
    text = run(capsys, "passes")
    assert all(name in text for name in PASSES)
    assert "drop-identity" in run(capsys, "passes", "simplify")
    run(capsys, "passes", "simplifi", status=1)


def test_targets(capsys: Captured) -> None:
    """Every target, the first of which runs here."""
    assert run_json(capsys, "targets")["targets"][0]["name"] == "cpu"
    assert "cpu" in run(capsys, "targets")


def test_recipe(capsys: Captured, tmp_path: Path) -> None:
    """A printed preset is a recipe file, which is checked and printed again the same."""
    assert "exact" in run_json(capsys, "recipe")["presets"]
    assert run(capsys, "recipe").startswith("exact: ")
    text = run(capsys, "recipe", "exact")
    (tmp_path / "my.yaml").write_text(text)
    assert run(capsys, "recipe", tmp_path / "my.yaml") == text
    assert run_json(capsys, "recipe", "exact")["passes"][0] == "cleanup"
    (tmp_path / "my.yaml").write_text("passes: [nonsense]")
    run(capsys, "recipe", tmp_path / "my.yaml", status=1)
    run(capsys, "recipe", "nonsense", status=1)


def test_export_of_nothing(capsys: Captured, tmp_path: Path) -> None:
    """A factory that cannot be imported, or torch that is not there, is one line."""
    assert main(["export", "no_such_module:factory", "-o", str(tmp_path / "out.onnx")]) == 1
    assert re.fullmatch(r"graphopt: .*(no_such_module|graphopt\[torch\]).*\n", capsys.readouterr().err)
    assert not list(tmp_path.iterdir())


# Where things are printed.


def test_results_and_progress_are_apart(capsys: Captured, model: Path) -> None:
    """Results go to standard output, progress in plain lines to standard error; --quiet and --json have no progress."""
    command = ["optimize", str(model), "-o", str(model.with_name("out.onnx")), "--verify", "outputs"]
    assert main(command) == 0
    printed = capsys.readouterr()
    assert all(re.fullmatch(r"[^\x1b]+ \(\d+\.\d s\)", line) for line in printed.err.splitlines())
    assert printed.err.startswith("load (")
    assert "\x1b" not in printed.out
    for option in ("--quiet", "--json"):
        assert main([*command, option]) == 0
        printed = capsys.readouterr()
        assert printed.err == ""
        assert bool(printed.out) == (option == "--json")


def test_progress_on_a_terminal_and_in_a_pipe() -> None:
    """A spinner and a line on a terminal, a line alone in a pipe; what looks like markup is text; nothing is said of what failed."""
    for terminal, kind in ((True, Live), (False, Lines)):
        stream = io.StringIO()
        progress = progress_on(Console(file=stream, force_terminal=terminal, width=60))
        assert type(progress) is kind
        with progress.step("load [bold]model[/bold] [1]"):
            pass
        assert "load [bold]model[/bold] [1]" in re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", stream.getvalue())
        with pytest.raises(ValueError, match="no"), progress.step("second"):
            raise ValueError("no")
        assert not stream.getvalue().rstrip().endswith("s)  second")


def test_verbose(capsys: Captured, model: Path) -> None:
    """The log is silent unless it is asked for."""
    try:
        assert main(["-vv", "inspect", str(model)]) == 0
        assert logging.getLogger("graphopt").level == logging.DEBUG
    finally:
        logging.getLogger("graphopt").setLevel(logging.NOTSET)


def test_the_module_is_the_command(model: Path) -> None:
    """``python -m graphopt`` does what ``graphopt`` does, exit status included."""
    done = subprocess.run([sys.executable, "-m", "graphopt", "inspect", "--json", str(model)], capture_output=True, check=True)
    assert json.loads(done.stdout)["version"] == 1
    assert subprocess.run([sys.executable, "-m", "graphopt", "nonsense"], capture_output=True, check=False).returncode == 2

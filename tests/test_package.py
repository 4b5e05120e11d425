"""The wheel as users install it, away from the repository."""

from __future__ import annotations

import ast
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest

TIME_LIMIT_S = 120


def _run(command: Sequence[str | Path], folder: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=TIME_LIMIT_S, check=False)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy, so that the repository stays clean and an old build cannot leak into it."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    shutil.copytree(root / "graphopt", source / "graphopt", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(root / name, source)
    build: list[str | Path] = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        source,
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--wheel-dir",
        folder,
    ]
    _run(build, folder)
    return next(folder.glob("graphopt-*.whl"))


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scripts folder of an environment that holds the wheel, and finds its dependencies in the current one."""
    folder = tmp_path_factory.mktemp("environment")
    _run([sys.executable, "-m", "venv", "--without-pip", folder], folder)
    paths = sysconfig.get_paths("venv", {"base": str(folder), "platbase": str(folder)})
    install: list[str | Path] = [sys.executable, "-m", "pip", "--python", folder, "install", "--quiet", "--no-deps", wheel]
    _run(install, folder)
    dependencies = Path(paths["purelib"]) / "dependencies.pth"
    dependencies.write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    return Path(paths["scripts"])


def _imported(path: Path) -> set[str]:
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    plain = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return {name.split(".")[0] for name in plain | {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}}


def _spelled_alike(names: Iterable[str]) -> set[str]:
    return {re.split(r"[<>=!~;\[ ]", name)[0].lower().replace("_", "-") for name in names}


def test_imports_are_declared(root: Path) -> None:
    """Everything that the package imports comes from Python itself or from a dependency that pyproject.toml names."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    declared = _spelled_alike([*project["dependencies"], *(name for extra, names in extras.items() if extra != "dev" for name in names)])
    homes = importlib.metadata.packages_distributions()
    for path in (root / "graphopt").rglob("*.py"):
        for name in _imported(path) - {"graphopt"} - set(sys.stdlib_module_names):
            homes_of_it = _spelled_alike(homes.get(name, [name]))
            assert homes_of_it & declared, f"{path} imports {name}, which no dependency in pyproject.toml provides"


def test_wheel_holds_the_package_alone(wheel: Path, root: Path) -> None:
    """The wheel has every module, the typing marker and the licence, and nothing from outside the package."""
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    modules = {path.relative_to(root).as_posix() for path in (root / "graphopt").rglob("*.py")}
    assert modules | {"graphopt/py.typed"} <= names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert {name.split("/")[0] for name in names} == {"graphopt", wheel.name.split("-py3")[0] + ".dist-info"}


def test_installed_command_runs(environment: Path, tmp_path: Path) -> None:
    """The installed command answers from any folder, and names every command."""
    text = _run([environment / "graphopt", "--help"], tmp_path)
    for command in ("optimize", "export", "compare", "inspect", "verify", "passes", "recipe"):
        assert command in text


def test_import_is_of_the_wheel_and_light(environment: Path, tmp_path: Path) -> None:
    """Importing the package takes the wheel's copy, and neither torch nor matplotlib nor the runtime."""
    code = (
        "import sys, graphopt; print(graphopt.__file__); print(graphopt.__version__);"
        "print(sorted({'torch', 'matplotlib', 'onnxruntime'} & set(sys.modules)))"
    )
    file, version, heavy = _run([environment / "python", "-c", code], tmp_path).splitlines()
    assert Path(file).is_relative_to(environment.parent)
    assert version
    assert heavy == "[]"

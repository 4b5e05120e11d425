"""The tools that graphopt is compared with, each in a virtual environment of its own, and their versions."""

from __future__ import annotations

import json
import subprocess
import sys
import venv
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from models import ROOT
from processes import GRAPHOPT

_FOLDER = ROOT / "build" / "peers"
_LISTED = ("graphopt", "onnxslim", "onnxsim", "onnx", "onnx-ir", "onnxscript", "onnxruntime", "numpy", "sympy")
_PEERS = {
    "onnxslim": ("onnxslim==0.1.98", "onnxruntime==1.31.1"),  # leaves more nodes where it finds no runtime
    "onnxsim": ("onnxsim==0.8.1", "onnxruntime==1.31.1"),
}


@dataclass(frozen=True)
class Tool:
    """A command that optimizes a model file.

    Attributes:
        name: what results call it.
        words: the command up to its arguments.
        before_output: an option that the output's path follows; empty where it is the second argument.
        options: what follows the paths.
        versions: of the packages that it runs on.
    """

    name: str
    words: tuple[str, ...]
    before_output: tuple[str, ...]
    options: tuple[str, ...]
    versions: dict[str, str]

    def command(self, source: Path, target: Path) -> list[str]:
        """The whole command for one model."""
        return [*self.words, str(source), *self.before_output, str(target), *self.options]


def peers() -> list[Tool]:
    """The other tools; their environments are made where they do not stand yet."""
    tools = []
    for name, requirements in _PEERS.items():
        programs = environment(name, requirements)
        tools.append(Tool(name, (str(programs / name),), (), (), _versions(programs / "python")))
    return tools


def graphopt(verify: str) -> Tool:
    """This project's command at one level of verification, ``structure`` or ``outputs``."""
    versions = {name: metadata.version(name) for name in _LISTED if _is_installed(name)}
    return Tool(f"graphopt {verify}", GRAPHOPT, ("-o",), (f"--verify={verify}", "--no-ledger", "--quiet"), versions)


def environment(name: str, requirements: tuple[str, ...]) -> Path:
    """Makes a virtual environment, unless it stands with these requirements; returns the folder of its programs."""
    folder, wanted = _FOLDER / name, " ".join(requirements)
    programs, stamp = folder / ("Scripts" if sys.platform == "win32" else "bin"), folder / "requirements"
    if not stamp.exists() or stamp.read_text(encoding="utf-8") != wanted:
        venv.create(folder, clear=True, with_pip=True)
        subprocess.run([programs / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *requirements], check=True)
        stamp.write_text(wanted, encoding="utf-8")
    return programs


def _versions(python: Path) -> dict[str, str]:
    listed = subprocess.run([python, "-m", "pip", "list", "--format=json"], check=True, capture_output=True, text=True).stdout
    found = {entry["name"].lower().replace("_", "-"): entry["version"] for entry in json.loads(listed)}
    return {name: found[name] for name in _LISTED if name in found}


def _is_installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True

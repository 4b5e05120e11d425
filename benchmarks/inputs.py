"""Real inputs of the measured models: what lies beside them, or what the zoo calibrates with."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

Feed = Mapping[str, np.ndarray[Any, Any]]

_ITEMS = 4
"""Items of a trained model's calibration data that are measured, one a feed."""


def inputs_of(path: Path) -> list[Feed]:
    """Fixed feeds of a model file: its architecture's ``inputs.npz``, the first calibration items of the zoo, or of the examples.

    Raises:
        SystemExit: there are none.
    """
    folder = path.resolve().parent
    if (folder / "inputs.npz").exists():
        return [_arrays(folder / "inputs.npz")]
    zoo = os.environ.get("GRAPHOPT_ZOO")
    if zoo and folder.parent == Path(zoo).resolve():
        return _calibration(Path(zoo), folder.name)
    if (folder / "calib.npz").exists():
        return [{name: array[i : i + 1] for name, array in _arrays(folder / "calib.npz").items()} for i in range(_ITEMS)]
    raise SystemExit(f"no inputs are known for {path}: put an inputs.npz beside it")


def one_token(feeds: Sequence[Feed]) -> list[Feed]:
    """The same feeds with the first new token only: a step of decoding; empty where a model has no cache among its inputs."""
    if not any(name.startswith("past") for name in feeds[0]):
        return []
    return [{name: array if name.startswith("past") else array[:, :1] for name, array in feed.items()} for feed in feeds]


def _arrays(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    with np.load(path) as content:
        return {name: content[name] for name in content.files}


def _calibration(zoo: Path, name: str) -> list[Feed]:
    spec = importlib.util.spec_from_file_location("zoo_evaluate", zoo / "evaluate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look themselves up there
    spec.loader.exec_module(module)
    return list(islice(module.calib_feeds(name, batch=1, limit=_ITEMS), _ITEMS))

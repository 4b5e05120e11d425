"""The promise of the int8 preset on real models: it loads, runs as planned, is a quarter of the size, and tells what it left in float."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import graphopt
from graphopt.presets import preset
from graphopt.result import Result
from graphopt.runtime.kernels import executed_kernels
from graphopt.runtime.session import open_session

Feed = dict[str, "np.ndarray[Any, Any]"]

ZOO, ARCH = (Path(os.environ[name]) if name in os.environ else None for name in ("GRAPHOPT_ZOO", "GRAPHOPT_ARCH"))
QUICK = {"cifar_resnet20_ft", "superres_espcn", "silero_vad_seq", "llama_shakespeare", "mobilenetv1_025"}
"""Those whose run takes a few seconds."""
INT8 = preset("int8").changed(verify="outputs")
_SAMPLES, _BATCH = 32, 8
_UNITS = (" us", " ms", " dB", "of the time")
_SMALL = 2_000_000
"""Bytes below which names and scales count."""


def _models(folder: Path | None, pattern: str) -> list[Any]:
    found = sorted(folder.glob(pattern)) if folder else []
    return [
        pytest.param(path, id=f"{path.parent.name}/{path.stem}", marks=() if path.parent.name in QUICK else pytest.mark.slow)
        for path in found
    ]


def _zoo() -> ModuleType:
    """The zoo's own ``evaluate.py``, which knows what to feed its models with."""
    assert ZOO is not None, "asked where there is a zoo"
    specification = importlib.util.spec_from_file_location("zoo_evaluate", ZOO / "evaluate.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module  # its dataclasses look themselves up there
    specification.loader.exec_module(module)
    return module


def check(model: Path, feeds: Iterable[Feed], written: Path) -> Result:
    """Quantizes a model and holds the file to what is promised."""
    samples = list(feeds)
    result = graphopt.optimize(model, written, recipe=INT8, data=samples)
    open_session(written).run(samples[0])
    figures = result.figures
    assert figures.bytes_after <= (0.36 if figures.bytes_before < _SMALL else 0.32) * figures.bytes_before
    planned = [kernel for rewrite in result.ledger.rewrites for kernel in rewrite.kernels]
    running = executed_kernels(written).counts
    for kernel in set(planned):
        domain, _, operator = kernel.rpartition("::")
        assert running[domain, operator] >= planned.count(kernel), f"{kernel} was planned {planned.count(kernel)} times"
    coverage = figures.coverage
    assert coverage is not None
    assert all(layer.reason for layer in coverage.left)
    assert coverage.share >= 0.8 or all(
        any(unit in layer.reason for unit in (" us", " ms", " dB", "of the time")) for layer in coverage.left
    )
    return result


@pytest.mark.skipif(ZOO is None, reason="GRAPHOPT_ZOO is not set: it names the folder of trained models")
@pytest.mark.parametrize("model", _models(ZOO, "*/model.onnx"))
def test_trained_models(model: Path, tmp_path: Path) -> None:
    """Every trained model."""
    feeds = islice(_zoo().calib_feeds(model.parent.name, _SAMPLES, _BATCH), _SAMPLES // _BATCH)
    check(model, feeds, tmp_path / "out.onnx")


@pytest.mark.slow
@pytest.mark.skipif(ARCH is None, reason="GRAPHOPT_ARCH is not set: it names the folder of exported architectures")
@pytest.mark.parametrize("model", _models(ARCH, "*/model*.onnx"))
def test_exported_architectures(model: Path, tmp_path: Path) -> None:
    """Every exported architecture, from both exporters."""
    with np.load(model.with_name("inputs.npz"), allow_pickle=False) as file:
        feed = {name: file[name] for name in file.files}
    check(model, [feed], tmp_path / "out.onnx")

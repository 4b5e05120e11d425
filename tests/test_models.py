"""The promise on real models: right at other sizes, a second run finds nothing, a replay gives the same bytes."""

from __future__ import annotations

import os
from itertools import chain
from pathlib import Path

import pytest

import graphopt
from graphopt import files
from graphopt.presets import preset
from graphopt.recipe import Recipe
from graphopt.runtime.session import SessionOptions
from graphopt.runtime.trial import runnable_samples
from graphopt.verification import verifier_of


def _models(variable: str) -> list[Path]:
    folder = os.environ.get(variable)
    return sorted(Path(folder).glob("*/model*.onnx")) if folder else []


ZOO, ARCH = _models("GRAPHOPT_ZOO"), _models("GRAPHOPT_ARCH")
OUTPUTS = preset("exact").changed(verify="outputs")


def _name(path: Path) -> str:
    return f"{path.parent.name}/{path.stem}"


def check(model: Path, folder: Path) -> None:
    """Optimizes a model and holds the result against it, on samples that the run itself did not see."""
    written = folder / "out.onnx"
    result = graphopt.optimize(model, written, recipe=OUTPUTS)
    assert files.total_bytes(written) <= files.total_bytes(model)
    assert result.figures.nodes_after <= result.figures.nodes_before
    original = files.load(model)
    fresh = runnable_samples(original, seed=1, count=2, path=model)
    verdict = verifier_of(model, list(fresh), SessionOptions(), OUTPUTS.tolerance, lambda candidate: candidate).check(written)
    assert verdict.ok, verdict.reason
    again = graphopt.optimize(written, folder / "again.onnx", recipe=OUTPUTS)
    assert not again.changed, again.ledger.counts()
    assert (folder / "again.onnx").read_bytes() == written.read_bytes()
    (folder / "replay").mkdir()
    graphopt.optimize(model, folder / "replay" / "out.onnx", recipe=Recipe.load(folder / "out.onnx.recipe.yaml"))
    assert (folder / "replay" / "out.onnx").read_bytes() == written.read_bytes()


@pytest.mark.skipif(not ZOO, reason="GRAPHOPT_ZOO is not set: it names the folder of trained models")
@pytest.mark.parametrize("model", ZOO, ids=_name)
def test_trained_models(model: Path, tmp_path: Path) -> None:
    """Every trained model becomes no larger and computes the same at sizes and values that the run did not see."""
    check(model, tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(not ARCH, reason="GRAPHOPT_ARCH is not set: it names the folder of exported architectures")
@pytest.mark.parametrize("model", ARCH, ids=_name)
def test_exported_architectures(model: Path, tmp_path: Path) -> None:
    """Every exported architecture, from both exporters, likewise."""
    check(model, tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(not ARCH, reason="GRAPHOPT_ARCH is not set: it names the folder of exported architectures")
def test_both_exporters_end_alike() -> None:
    """A legacy export ends with at most 1.2 times the nodes of the dynamo export of the same network."""
    counts = {path: graphopt.optimize(path, recipe=OUTPUTS.changed(verify="structure")).figures.nodes_after for path in chain(ARCH)}
    for path, count in counts.items():
        twin = path.with_name("model.onnx")
        if path != twin and twin in counts:
            assert count <= 1.2 * counts[twin], f"{path.parent.name}: {count} nodes beside {counts[twin]}"

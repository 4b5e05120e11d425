"""Tests of limits on one's own metric."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graphopt import driver
from graphopt.cli import main
from graphopt.errors import LimitError, RecipeError
from graphopt.recipe import Recipe
from tests.noisy import LAYERS, chain, chain_file, data, recipe

model = pytest.fixture(chain_file)


def closeness(run: Callable[[Mapping[str, Any]], Mapping[str, Any]], path: Path) -> float:
    """One, less the mean error of the chain's outputs relative to their size; the chain's weights are orthogonal."""
    assert path.is_file()
    expected, x = data()[0]["v0"], data()[0]["v0"]
    for node in chain().graph:
        weight = node.inputs[1]
        assert weight is not None
        assert weight.const_value is not None
        expected = expected @ weight.const_value.numpy()
    return float(1 - np.linalg.norm(run({"v0": x})[f"v{LAYERS}"] - expected) / np.linalg.norm(expected))


def failing(run: object, path: Path) -> float:
    """Divides by zero."""
    return 1 / 0


def wordy(run: object, path: Path) -> str:
    """Gives no number."""
    return "good"


@pytest.mark.parametrize(("max_drop", "left_out"), [(0.1, []), (0.02, ["mm1"]), (0.003, ["mm1", "mm3"])], ids=str)
def test_a_metric_limits_what_is_lost(model: Path, max_drop: float, left_out: list[str]) -> None:
    """The metric alone decides; its numbers are in the figures."""
    chosen = Recipe.model_validate({"passes": ["disturb"], "verify": "outputs", "metric": "closeness", "max_drop": max_drop})
    assert chosen.min_sqnr == 0
    assert Recipe.parse(chosen.changed(min_sqnr=20).to_yaml()).min_sqnr == 20
    result = driver.optimize(model, recipe=chosen, data=data(), metric=closeness)
    assert sorted(drop.key.anchor for drop in result.ledger.drops) == left_out
    assert result.figures.metric is not None
    _, before, after = result.figures.metric
    assert 0 <= before - after <= max_drop


def test_a_metric_that_nothing_keeps(model: Path) -> None:
    """The nearest is told in the metric's own numbers."""
    chosen = recipe(metric="closeness", max_drop=1e-9, min_sqnr=0, insist=True)
    with pytest.raises(LimitError, match=r"nearest is closeness falls from 1 to 0\.9"):
        driver.optimize(model, recipe=chosen, data=data(), metric=closeness)


@pytest.mark.parametrize(
    ("function", "message"), [(failing, "failed: ZeroDivisionError: division by zero"), (wordy, "must return one number, not str")]
)
def test_metrics_that_fail(model: Path, function: Any, message: str) -> None:
    """What goes wrong in the user's function is one line."""
    with pytest.raises(RecipeError, match=message):
        driver.optimize(model, recipe=recipe(metric="mine", max_drop=0, min_sqnr=0), data=data(), metric=function)


def test_metrics_and_consent(model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A recipe may name a metric, which is imported by consent only; the flag is consent."""
    file = model.with_name("my.yaml")
    file.write_text(f"passes: [disturb]\nverify: outputs\nmetric: {__name__}:closeness\nmax_drop: 0.02\n")
    np.savez(model.with_name("data.npz"), v0=data()[0]["v0"])
    common = ["optimize", str(model), "-o", str(model.with_name("out.onnx")), "--data", str(model.with_name("data.npz")), "-q"]
    assert main([*common, "--recipe", str(file)]) == 1
    assert "--allow-imports" in capsys.readouterr().err
    assert main([*common, "--recipe", str(file), "--allow-imports"]) == 0
    flags = ["--verify", "outputs", "--metric", f"{__name__}:closeness", "--max-drop", "0.02"]
    assert main([*common, "--pass", "disturb", *flags]) == 0
    assert main([*common, "--pass", "disturb", "--metric", "nowhere:nothing", "--max-drop", "1"]) == 1
    assert "metric nowhere:nothing cannot be imported" in capsys.readouterr().err
    assert main([*common, "--pass", "disturb", "--max-drop", "0.02"]) == 1
    assert "go together" in capsys.readouterr().err
    assert main([*common, "--pass", "disturb", "--verify", "structure", "--metric", f"{__name__}:closeness", "--max-drop", "0"]) == 1

"""Pruning: what goes is what the outputs miss least, within the budget, and what remains is refitted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

import graphopt
from graphopt import files
from graphopt.errors import RecipeError
from graphopt.graph.layers import layers_of
from graphopt.graph.units import couplings_of
from graphopt.passes.prune import Prune
from graphopt.recipe import Recipe
from graphopt.result import Result
from graphopt.runtime.session import open_session

DIGITS = Path(__file__).parent.parent / "examples/digits"


def _pruned(model: str, **options: object) -> Result:
    written = ", ".join(f"{name}={value!r}" for name, value in options.items())
    recipe = Recipe.of("cleanup", "shapes", "simplify", f"prune({written})").changed(verify="outputs", min_sqnr=3.0)
    return graphopt.optimize(DIGITS / f"{model}.onnx", recipe=recipe, data=DIGITS / "calib.npz")


def _weights(model: ir.Model) -> int:
    return sum(layer.size for layer in layers_of(model))


def _agreement(result: Result, model: str) -> float:
    data = np.load(DIGITS / "eval.npz")
    signature = open_session(DIGITS / f"{model}.onnx").input_names
    feed = {name: data[name] for name in signature}
    before, after = (next(iter(open_session(each).run(feed).values())) for each in (DIGITS / f"{model}.onnx", result.model))
    return float((before.argmax(-1) == after.argmax(-1)).mean())


@pytest.mark.parametrize("model", ["conv", "attention"])
def test_half_of_the_work_and_nearly_the_same_answers(model: str) -> None:
    """The budget is met, and the answers hardly change."""
    result = _pruned(model, parameters=0.6)
    assert _weights(result.model) <= 0.6 * _weights(files.load(DIGITS / f"{model}.onnx"))
    assert _agreement(result, model) > 0.95
    assert result.ledger.counts()["prune"] >= 2


def test_convolutions_keep_widths_that_kernels_like() -> None:
    """Multiples of four."""
    couplings = couplings_of(_pruned("conv", macs=0.6).model)
    assert all(block.count % 4 == 0 for block in couplings.blocks if block.kind == "channels")


def test_replay_gives_the_same_bytes(tmp_path: Path) -> None:
    """Nothing of it depends on chance."""
    for name in ("a.onnx", "b.onnx"):
        recipe = Recipe.of("cleanup", "prune(macs=0.7)").changed(verify="outputs", min_sqnr=3.0)
        graphopt.optimize(DIGITS / "conv.onnx", tmp_path / name, recipe=recipe, data=DIGITS / "calib.npz")
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give a budget"),
        ({"macs": 1.5}, "between 0 and 1"),
    ],
)
def test_budgets_that_mean_nothing(options: dict[str, float], message: str) -> None:
    """Refused in one line."""
    with pytest.raises(RecipeError, match=message):
        Prune(**options)  # type: ignore[arg-type]  # the test's own options


def test_unknown_blocks_are_named() -> None:
    """A pattern that matches no block says which there are."""
    recipe = Recipe.of("cleanup", "prune(macs=0.7, include=['nothing*'])").changed(verify="outputs", min_sqnr=3.0)
    result = graphopt.optimize(DIGITS / "conv.onnx", recipe=recipe, data=DIGITS / "calib.npz")
    assert any("no block matches" in drop.reason for drop in result.ledger.drops)

"""Pruning: what goes is what the outputs miss least, within the budget, and what remains is refitted."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

import graphopt
from graphopt import files
from graphopt.cli import main
from graphopt.errors import LimitError, RecipeError
from graphopt.graph.edits import name_nodes
from graphopt.graph.layers import layers_of
from graphopt.graph.units import couplings_of
from graphopt.ledger import Recorder, recording
from graphopt.passes.base import Context
from graphopt.passes.prune import Prune, channels
from graphopt.passes.prune.curves import Candidate
from graphopt.passes.walk.damage import Damage
from graphopt.presets import preset
from graphopt.recipe import Recipe
from graphopt.result import Result
from graphopt.runtime.session import SessionOptions, open_session
from graphopt.samples import Samples
from graphopt.stage import Stage
from tests.weighted import weighted

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


def test_a_model_too_large_for_its_samples_is_measured_at_fewer_widths(monkeypatch: pytest.MonkeyPatch) -> None:
    """The damage of a block between two that were measured in full rises as theirs."""
    measured: list[str] = []
    of = Damage.of

    def counted(damage: Damage, weights: Mapping[str, np.ndarray[Any, Any]]) -> float:
        measured.extend(weights)
        return of(damage, weights)

    monkeypatch.setattr(Damage, "of", counted)
    monkeypatch.setattr(channels, "samples_for", lambda *_: 0)
    result = _pruned("conv", parameters=0.6)
    assert set(Counter(measured).values()) == {1, 2}
    assert _weights(result.model) <= 0.6 * _weights(files.load(DIGITS / "conv.onnx"))
    assert _agreement(result, "conv") > 0.9


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


@pytest.mark.parametrize("importance", ["activation", "magnitude"])
def test_other_importances(importance: str) -> None:
    """They keep within the budget too."""
    result = _pruned("conv", macs=0.7, importance=importance)
    assert _agreement(result, "conv") > 0.9
    assert result.ledger.counts()["prune"] >= 1


def test_residual_streams_where_asked_for() -> None:
    """They are left alone unless one says so."""
    names = {each.block.name for each in _candidates(residual=False)}
    assert {each.block.name for each in _candidates(residual=True)} >= names


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give one budget"),
        ({"macs": 0.5, "parameters": 0.5}, "give one budget"),
        ({"macs": 1.5}, "between 0 and 1"),
        ({"macs": 0.5, "multiple": 0}, "multiples of 1 at least"),
    ],
)
def test_budgets_that_mean_nothing(options: dict[str, float], message: str) -> None:
    """Refused in one line."""
    with pytest.raises(RecipeError, match=message):
        Prune(**options)  # type: ignore[arg-type]  # the test's own options


def test_unknown_blocks_are_named() -> None:
    """A pattern that matches no block says which there are."""
    model, context = _given("conv")
    with pytest.raises(RecipeError, match=r"no block matches 'nothing\*'; the first are: "):
        Prune(macs=0.7, include=("nothing*",)).run(model, context)


def test_budgets_that_cannot_be_met() -> None:
    """The nearest that can is named."""
    model, context = _given("conv")
    with pytest.raises(LimitError, match=r"the narrowest widths leave \d+\.\d%"):
        Prune(macs=0.001).run(model, context)


def test_streams_are_named_where_they_would_help() -> None:
    """They are left alone unless one says so, and a budget that cannot be met without them says so."""
    model = weighted(
        "(float[B,8] x) => (float[B,3] y) { h = MatMul(x, first) b = MatMul(h, inner) r = Relu(b) c = MatMul(r, outer)"
        "s = Add(h, c) y = MatMul(s, last) }",
        {"first": (8, 64), "inner": (64, 4), "outer": (4, 64), "last": (64, 3)},
    )
    context = _noise(model, 4, 8)
    with pytest.raises(LimitError, match=r"let 1 residual streams become narrower too \(residual=true\)"):
        Prune(macs=0.5).run(model, context)
    assert Prune(macs=0.5, residual=True).run(model, context)


def test_nothing_that_could_go_is_no_success() -> None:
    """A budget is not met by a model without a hidden layer."""
    model = weighted("(float[B,8] x) => (float[B,3] y) { y = MatMul(x, only) }", {"only": (8, 3)})
    with pytest.raises(LimitError, match="no channels can go; see inspect --couplings"):
        Prune(macs=0.5).run(model, _noise(model, 4, 8))


def test_constants_that_a_layer_multiplies() -> None:
    """Tables of positions that a weight projects, for instance: such a layer is refitted as if they were data."""
    model = weighted(
        "(float[B,4,8] x) => (float[B,4,3] y) { h = MatMul(x, first) r = Relu(h) m = MatMul(r, second) p = MatMul(table, third)"
        "s = Add(m, p) y = MatMul(s, last) }",
        {"first": (8, 64), "second": (64, 6), "table": (4, 5), "third": (5, 6), "last": (6, 3)},
    )
    before = model.clone()
    assert Prune(macs=0.7).run(model, _noise(model, 2, 4, 8))
    feed = {"x": np.random.default_rng(1).normal(size=(2, 4, 8)).astype(np.float32)}
    expected, found = (open_session(each).run(feed)["y"] for each in (before, model))
    assert np.square(found - expected).sum() < 0.1 * np.square(expected).sum()


def test_double_precision() -> None:
    """Weights of any element type are refitted."""
    model = weighted(
        "(double[B,16] x) => (double[B,3] y) { h = MatMul(x, first) r = Relu(h) y = MatMul(r, second) }",
        {"first": (16, 32), "second": (32, 3)},
    )
    for value in model.graph.initializers.values():
        assert value.const_value is not None
        value.const_value = ir.tensor(value.const_value.numpy().astype(np.float64), name=value.name)
        value.type = ir.TensorType(ir.DataType.DOUBLE)
    feeds = [{"x": array} for array in np.random.default_rng(0).normal(size=(8, 4, 16))]
    result = graphopt.optimize(model, recipe=preset("prune", macs=0.7).changed(verify="outputs"), data=feeds)
    assert result.ledger.counts()["prune"] == 1
    assert "refitted" in " ".join(result.ledger.notes)


def test_a_budget_of_time() -> None:
    """Widths are what kernels like, and a replay that measures nothing comes to the same ones."""
    model, context = _given("conv", repeat=64)
    replayed = model.clone()
    with recording(Recorder()) as recorder:
        assert Prune(latency=0.9).run(model, context)
    with recording(Recorder(denied=frozenset(drop.key for drop in recorder.declined))):
        assert Prune(latency=0.9).run(replayed, dataclasses.replace(context, measures=False))
    assert [layer.shape for layer in layers_of(model)] == [layer.shape for layer in layers_of(replayed)]
    narrower = [block.count for block in couplings_of(model).blocks if block.kind == "channels"]
    assert all(count % 16 == 0 for count in narrower)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One budget, samples, a smaller file."""
    out = tmp_path / "out.onnx"
    options = ["--preset", "prune", "--macs=0.7", "--data", str(DIGITS / "calib.npz"), "--verify", "outputs"]
    assert main(["optimize", str(DIGITS / "conv.onnx"), "-o", str(out), *options]) == 0
    assert out.stat().st_size < 0.85 * (DIGITS / "conv.onnx").stat().st_size
    assert main(["optimize", str(DIGITS / "conv.onnx"), "-o", str(out), *options, "--latency", "0.5"]) == 1
    assert "give one budget" in capsys.readouterr().err


def _given(name: str, repeat: int = 1) -> tuple[ir.Model, Context]:
    """A model after the exact passes, and samples, each so many times as large."""
    model = files.load(DIGITS / f"{name}.onnx")
    name_nodes(model)
    model = Stage(tuple(preset("exact").build())).attempt(model, frozenset()).model
    data = np.load(DIGITS / "calib.npz")
    inputs = [value.name or "" for value in model.graph.inputs]
    feeds = [{name: np.concatenate([data[name][row : row + 4]] * repeat) for name in inputs} for row in range(0, 32, 4)]
    samples = Samples(lambda: iter(feeds), len(feeds), "digits")
    return model, Context(samples, "cpu", options=SessionOptions(threads=1), original=model.clone())


def _noise(model: ir.Model, *shape: int) -> Context:
    """Random samples of a shape for the input ``x``, and the model as it is now."""
    feeds = [{"x": array} for array in np.random.default_rng(0).normal(size=(8, *shape)).astype(np.float32)]
    return Context(Samples(lambda: iter(feeds), len(feeds), "noise"), "cpu", options=SessionOptions(threads=1), original=model.clone())


def _candidates(*, residual: bool) -> list[Candidate]:
    model, _ = _given("attention")
    return Prune(macs=0.7, residual=residual).candidates(couplings_of(model))


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--macs", "0.001", "--data", str(DIGITS / "calib.npz")], "the narrowest widths leave"),
        (["--macs", "0.5", "--min-sqnr", "60", "--data", str(DIGITS / "calib.npz")], "cost the outputs more than they may lose"),
        (["--macs", "0.5"], "give --data"),
        (["--macs", "0.7", "--parameters", "0.5"], "give one budget"),
        (["--macs=much"], "unable to parse string as a number"),
    ],
    ids=["too-little", "too-much-lost", "no-data", "two-budgets", "no-number"],
)
def test_impossible_budgets_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], told: str) -> None:
    """One line says what stands in the way, and nothing is written."""
    out = tmp_path / "out.onnx"
    assert main(["optimize", str(DIGITS / "conv.onnx"), "-o", str(out), "--preset", "prune", "--quiet", *arguments]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert told in line
    assert not out.exists()


def test_unknown_block_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A pattern of the pass that matches no block is an error, not a pass that does nothing."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("passes: [{prune: {macs: 0.7, include: ['nothing*']}}]\n")
    arguments = ["--recipe", str(recipe), "--data", str(DIGITS / "calib.npz"), "--quiet"]
    assert main(["optimize", str(DIGITS / "conv.onnx"), "-o", str(tmp_path / "out.onnx"), *arguments]) == 1
    assert "no block matches 'nothing*'" in capsys.readouterr().err

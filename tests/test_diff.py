"""Differences of two models: found wherever they are planted, none invented, whatever nodes are called."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

import graphopt
from graphopt import files
from graphopt.cli import main
from graphopt.graph.difference import Change, Flow, align, changes_of
from graphopt.graph.edits import name_nodes
from graphopt.presets import preset
from graphopt.report.diff import diff
from tests.helpers import parse
from tests.planting import plant, scramble


def load(path: Path) -> ir.Model:
    """A model of which each node has a name."""
    model = files.load(path)
    name_nodes(model)
    return model


def differences(a: ir.Model, b: ir.Model) -> list[Change]:
    """What differs between two models."""
    first = Flow(a)
    return changes_of(align(first, Flow(b, like=first)))


def finds(path: Path, seed: int) -> bool:
    """Whether an edit planted into a model is found, at the node where it is, as what it is."""
    rng = random.Random(seed)
    a, b = load(path), load(path)
    planted = plant(b, rng)
    former = scramble(b, rng)
    found = differences(a, b)
    return any(change.kind == planted.kind and planted.node in (*change.a, *(former[name] for name in change.b)) for change in found)


@pytest.mark.parametrize("file", ["conv.onnx", "conv_torchscript.onnx", "attention.onnx"])
def test_planted_edits_are_found(digits: Path, file: str) -> None:
    """Of random edits in scrambled models at least 95 % are found for what they are."""
    found = Counter(finds(digits / file, seed) for seed in range(60))
    assert found[True] >= 57


def test_planted_edits_are_found_in_real_models(zoo: Path) -> None:
    """The same for trained models with residuals, attention, branches and recurrent layers."""
    models = sorted(path for path in zoo.glob("*/model*.onnx") if path.stat().st_size < 2**22)
    found = Counter(finds(models[seed % len(models)], seed) for seed in range(200))
    assert found[True] >= 190


def test_other_names_and_order_are_no_difference(zoo: Path) -> None:
    """Models saved under other names and in another order: each node finds itself, and nothing differs."""
    for path in sorted(zoo.glob("*/model*.onnx")):
        a, b = load(path), load(path)
        former = scramble(b, random.Random(1))
        first = Flow(a)
        alignment = align(first, Flow(b, like=first))
        assert [former[other.name or ""] for other in alignment.nodes.values()] == [node.name for node in alignment.nodes]
        assert changes_of(alignment) == []


def test_corrupted_weight_is_named(digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One wrong element: the layer is named with how much of it changed, and values part right there."""
    model = files.load(digits / "conv.onnx")
    value = next(value for value in model.graph.initializers.values() if value.const_value is not None and value.const_value.size > 256)
    [user] = value.consumers()
    assert value.const_value is not None
    array = value.const_value.numpy().copy()
    array.reshape(-1)[5] += 0.5
    value.const_value = ir.tensor(array, name=value.name)
    files.save(model, tmp_path / "corrupted.onnx")
    found = diff(digits / "conv.onnx", tmp_path / "corrupted.onnx", digits / "calib.npz")
    [change] = found.changes
    assert (change.kind, change.what) == ("weight", value.name)
    assert "1 of" in change.detail
    assert change.relative == pytest.approx(0.5 / float(np.linalg.norm(array)), rel=0.1)
    first = next(parting for parting in found.values or () if parting.parts)
    assert first.a == user.outputs[0].name
    assert main(["diff", str(digits / "conv.onnx"), str(tmp_path / "corrupted.onnx"), "--data", str(digits / "calib.npz")]) == 0
    assert (value.name or "?") in capsys.readouterr().out


def test_fusion_is_a_replacement(digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What a pass put in the place of several nodes stands beside them; values after it still correspond and agree."""
    graphopt.optimize(digits / "attention.onnx", tmp_path / "out.onnx", recipe=preset("exact").changed(verify="structure"))
    found = diff(digits / "attention.onnx", tmp_path / "out.onnx", digits / "calib.npz")
    replaced = [change for change in found.changes if change.kind == "replaced"]
    assert any("Gelu" in " ".join(change.operators[1]) for change in replaced)
    assert found.values is not None
    last = found.values[-1]
    assert not last.parts
    assert main(["diff", str(digits / "attention.onnx"), str(tmp_path / "out.onnx"), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["version"] == 1
    assert printed["aligned"] == found.aligned


def test_moved_inputs_and_swapped_ones() -> None:
    """A subtraction the other way round differs in both inputs; an addition of a constant elsewhere is not confused with it."""
    text = "(float[n] x, float[n] z) => (float[n] y) {{ a = Relu(x) b = Exp(z) [s] y = Sub({}) }}"
    found = differences(parse(text.format("a, b")), parse(text.format("b, a")))
    assert [(change.kind, change.a, change.what) for change in found] == [("input", ("s",), "input 0"), ("input", ("s",), "input 1")]


def test_signatures_differ() -> None:
    """Names, types and shapes of inputs and outputs are compared, and opsets."""
    a = parse("(float[n] x) => (float[n] y) { y = Relu(x) }")
    b = parse("(float[n] x) => (float[n] z) { z = Relu(x) }")
    [change] = differences(a, b)
    assert (change.kind, change.what, change.detail) == ("signature", "output", "y: float[n] → z: float[n]")

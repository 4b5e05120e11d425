"""Differences of two models: found wherever they are planted, none invented, whatever nodes are called."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

import graphopt
from graphopt import files
from graphopt.cli import main
from graphopt.graph.difference import Change, Flow, align, changes_of
from graphopt.graph.edits import name_nodes
from graphopt.presets import preset
from graphopt.report.diff import diff
from graphopt.runtime.trial import runnable_samples
from tests.helpers import parse
from tests.pages import Page
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


CHAIN = "(float[n,4] x) => (float[n,4] y) <float[4,4] w = {{{0}}}, float[4] c = {{1, 1, 1, 1}}, float two = {{2}}> {{ {1} }}"
WEIGHT = ", ".join(map(str, range(1, 17)))


def test_what_lies_behind_a_removed_node_corresponds() -> None:
    """A chain between nodes that went is found though neither of its ends touches a pair."""
    text = "m = MatMul(x, w) [one] i = Identity(m) [p] p = Pow(i, two) [s] s = Sqrt(p) [two] j = Identity(s) y = Add(j, c)"
    after = "m = MatMul(x, w) [q] p = Pow(m, two) [r] s = Sqrt(p) y = Add(s, c)"
    found = differences(parse(CHAIN.format(WEIGHT, text)), parse(CHAIN.format(WEIGHT, after)))
    assert [(change.kind, change.a) for change in found] == [("removed", ("one",)), ("removed", ("two",))]


def test_fused_layers_are_replaced_one_by_one() -> None:
    """Layers under another operator are known by their weights; a weight that changed in one of them is told."""
    other = ", ".join(map(str, range(2, 18)))
    text = "(float[n,4] x) => (float[n,4] y) <float[4,4] w = {{{}}}, float[4,4] v = {{{}}}> {{ {} }}"
    plain = "[a] m = MatMul(x, w) [b] r = Relu(m) [c] o = MatMul(r, v) [d] y = Relu(o)"
    fused = '[e] m = FusedGemm<activation = "Relu">(x, w) [f] y = FusedGemm<activation = "Relu">(m, v)'.replace(
        "Fused", "com.microsoft.Fused"
    )
    before = parse(text.format(WEIGHT, other, plain))
    found = differences(before, parse(text.format(WEIGHT, other, fused)))
    assert [(change.kind, change.a, change.b) for change in found if change.kind != "signature"] == [
        ("replaced", ("a", "b"), ("e",)),
        ("replaced", ("c", "d"), ("f",)),
    ]
    assert all(change.detail == "" for change in found if change.kind != "signature")
    wrong = differences(before, parse(text.format(WEIGHT, other[:-2] + "20", fused)))
    [changed] = [change for change in wrong if change.relative is not None]
    assert changed.b == ("f",)
    assert "v: float[4, 4]" in changed.detail


def test_folded_factor_is_told_from_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Values between a weight that took a factor and the node that went are multiples, not errors; an output never is."""
    text = "(float[n,4] x) => (float[n,4] y) <float[4,4] w = {{{}}}, float c = {{2}}> {{ m = MatMul(x, w) t = Neg(m) {} }}"
    halves = ", ".join(str(number / 2) for number in range(1, 17))
    files.save(parse(text.format(WEIGHT, "s = Mul(t, c) y = Relu(s)")), tmp_path / "a.onnx")
    files.save(parse(text.format(", ".join(str(2.0 * number) for number in range(1, 17)), "y = Relu(t)")), tmp_path / "b.onnx")
    files.save(parse(text.format(halves, "s = Mul(t, c) y = Relu(s)")), tmp_path / "c.onnx")
    np.savez(tmp_path / "x.npz", x=-np.ones((2, 3, 4), np.float32))
    found = diff(tmp_path / "a.onnx", tmp_path / "b.onnx", tmp_path / "x.npz")
    assert [value.a for value in found.values or () if value.parts] == []
    wrong = diff(tmp_path / "a.onnx", tmp_path / "c.onnx", tmp_path / "x.npz")
    assert {value.a: round(value.factor or 0, 6) for value in wrong.values or () if value.is_scaled} == {"m": 0.5, "t": 0.5, "s": 0.5}
    assert [value.a for value in wrong.values or () if value.parts] == ["y"]
    assert main(["diff", str(tmp_path / "a.onnx"), str(tmp_path / "c.onnx"), "--data", str(tmp_path / "x.npz")]) == 0
    assert "times 0.5" in capsys.readouterr().out


def test_scaled_channels_are_told_from_an_error(tmp_path: Path) -> None:
    """Channels that layers share out differently are multiples, each by its own number; noise on top of that is told without it."""
    text = "(float[n,4] x) => (float[n,4] y) <float[4,4] w = {{{}}}, float[4,4] v = {{{}}}>"
    text += " {{ m = MatMul(x, w) r = Relu(m) y = MatMul(r, v) }}"
    weights, scales, generator = (
        np.abs(np.random.default_rng(0).normal(size=(2, 4, 4))),
        np.array([1, 8, 0.1, 30]),
        np.random.default_rng(1),
    )

    def written(name: str, first: np.ndarray, second: np.ndarray) -> Path:
        files.save(parse(text.format(*(", ".join(map(str, weight.ravel())) for weight in (first, second)))), tmp_path / name)
        return tmp_path / name

    np.savez(tmp_path / "x.npz", x=generator.normal(size=(64, 1, 4)).astype(np.float32))
    original = written("a.onnx", *weights)
    equalized = diff(original, written("b.onnx", weights[0] * scales, weights[1] / scales[:, None]), tmp_path / "x.npz")
    assert [value.a for value in equalized.values or () if value.parts] == []
    noisy = weights[0] * scales * (1 + 0.01 * generator.normal(size=(4, 4)))
    found = diff(original, written("c.onnx", noisy, weights[1] / scales[:, None]), tmp_path / "x.npz")
    decibels = {value.a: (value.fidelity.sqnr_db, value.decibels) for value in found.values or () if value.parts}
    assert list(decibels) == ["m", "r", "y"]
    assert decibels["m"][0] < 5
    assert 30 < decibels["m"][1] < 60
    assert decibels["y"][0] == decibels["y"][1]
    np.savez(tmp_path / "one.npz", x=np.ones((1, 1, 4), np.float32))
    alone = diff(original, written("d.onnx", noisy, weights[1] / scales[:, None]), tmp_path / "one.npz")
    assert [value.a for value in alone.values or () if value.parts] == ["m", "r", "y"]  # with one element a channel anything is a multiple


def test_runtime_optimized_files_align(zoo: Path, tmp_path: Path) -> None:
    """Files that the runtime's own optimizer wrote: each value that is said to correspond has the same content."""
    for path in sorted(zoo.glob("*/model*.onnx")):
        if path.stat().st_size > 2**22:
            continue
        samples = runnable_samples(load(path), None, None, count=1, path=path)
        for level in ("BASIC", "EXTENDED"):
            options = onnxruntime.SessionOptions()
            options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, f"ORT_ENABLE_{level}")
            options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
            options.log_severity_level = 3
            onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
            found = diff(path, tmp_path / "optimized.onnx", samples)
            assert [value for value in found.values or () if not (value.fidelity.within(1e-3) or value.is_scaled)] == []


def test_page_shows_both_side_by_side(digits: Path, tmp_path: Path) -> None:
    """Every node of both models stands in one row; the first divergence is where the weight changed; names stay text."""
    hostile = "<script>alert(1)</script><img src=x onerror=alert(2)>"
    model = load(digits / "conv.onnx")
    conv = next(node for node in model.graph if node.op_type == "Conv")
    conv.name = hostile
    weight = conv.inputs[1]
    assert weight is not None
    assert weight.const_value is not None
    weight.const_value = ir.tensor(weight.const_value.numpy() * np.linspace(1, 2, 3, dtype=np.float32), name=weight.name)
    files.save(model, tmp_path / "b.onnx")
    arguments = ["--data", str(digits / "calib.npz"), "--report", str(tmp_path / "d.html"), "--quiet"]
    assert main(["diff", str(digits / "conv.onnx"), str(tmp_path / "b.onnx"), *arguments]) == 0
    text = (tmp_path / "d.html").read_text(encoding="utf-8")
    parsed = Page(text)
    assert (parsed.loads, parsed.images, parsed.scripts) == ([], 0, 2)
    rows = parsed.content["rows"]
    for side, path in (("a", digits / "conv.onnx"), ("b", tmp_path / "b.onnx")):
        names = [name for row in rows for _, name in row[side]]
        assert sorted(names) == sorted(node.name or "" for node in Flow(load(path)).nodes)
    first = rows[parsed.content["first"]]
    assert (first["kind"], first["b"], first["changes"][0]["kind"]) == ("changed", [["Conv", hostile]], "weight")
    assert first["value"]["parts"] is True
    assert main(["diff", str(digits / "conv.onnx"), str(tmp_path / "b.onnx"), "--report", "/none/of/this.html", "--quiet"]) == 1


@pytest.mark.browser
def test_difference_in_a_browser(digits: Path, tmp_path: Path, browser: Any) -> None:
    """What is the same folds and opens, the search finds, and nothing is logged or loaded."""
    graphopt.optimize(digits / "attention.onnx", tmp_path / "b.onnx", recipe=preset("exact").changed(verify="structure"))
    assert main(["diff", str(digits / "attention.onnx"), str(tmp_path / "b.onnx"), "--report", str(tmp_path / "d.html"), "--quiet"]) == 0
    browser.get((tmp_path / "d.html").as_uri())
    count = "return document.querySelectorAll('#pairs .pair').length"
    folded = browser.execute_script(count)
    browser.execute_script("document.getElementById('only').click()")
    assert browser.execute_script(count) == browser.execute_script("return graphoptPage.data.rows.length") > folded
    browser.execute_script("const box = document.getElementById('node-search'); box.value = 'gelu'; box.dispatchEvent(new Event('input'))")
    assert browser.execute_script(count) < folded + 20
    assert "Gelu" in browser.execute_script("return document.getElementById('pairs').textContent")
    assert [entry for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")] == []


def test_signatures_differ() -> None:
    """Names, types and shapes of inputs and outputs are compared, and opsets."""
    a = parse("(float[n] x) => (float[n] y) { y = Relu(x) }")
    b = parse("(float[n] x) => (float[n] z) { z = Relu(x) }")
    [change] = differences(a, b)
    assert (change.kind, change.what, change.detail) == ("signature", "output", "y: float[n] → z: float[n]")

"""Tests of the promise "never slower": what takes longer is measured twice, named and dropped."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx_ir as ir
import pytest

from graphopt import driver, proof
from graphopt.graph.view import View
from graphopt.ledger import Key
from graphopt.passes.rules import Change, rule
from tests.layered import GOOD, LAYERS, Register, assert_outputs_kept, dropped, is_place, layered_file, registering, table, timed

model = pytest.fixture(layered_file)
register = pytest.fixture(registering)


def detour(node: ir.Node, view: View) -> Change | None:
    """Replaces a Relu with itself plus zero times the product of two large matrices."""
    if not is_place(node) or node.name != "r4":
        return None

    def built(build: Any) -> ir.Value:
        one = build.op("Tanh", build.op("ReduceMax", node.inputs[0], keepdims=1))
        large = build.op("Expand", one, build.constant(np.array([400, 400], np.int64)))
        nothing = build.op("Mul", build.op("ReduceMax", build.op("MatMul", large, large), keepdims=1), build.constant(np.float32(0)))
        return cast("ir.Value", build.op("Add", build.op("Relu", node.inputs[0]), nothing))

    return Change(built)


def test_a_slow_rule_is_named(model: Path, register: Register) -> None:
    """A right rewrite that takes longer is found by measuring, and the rest is kept; real clocks."""
    chosen = register(table("sabotage", GOOD, rule(detour, "Relu")), verify="full", time_limit=0.2, session={"threads": 1})
    result = driver.optimize(model, model.with_name("out.onnx"), recipe=chosen)
    assert dropped(result) == [Key("sabotage", "detour")]
    assert "times the original's time" in result.ledger.drops[0].reason
    assert result.ledger.counts() == {"sabotage/cancel-negations": LAYERS}
    assert result.figures.speed is not None
    assert not result.figures.speed.slower
    assert_outputs_kept(model, result)


def test_slow_once_is_not_slow(model: Path, register: Register, monkeypatch: pytest.MonkeyPatch) -> None:
    """One measurement that says slower is held to be noise where a second one does not."""
    answers = [timed(0.5), timed(1.0)]
    monkeypatch.setattr(proof, "compare_speed", lambda *_, **__: answers.pop(0))
    result = driver.optimize(model, model.with_name("out.onnx"), recipe=register(table("sabotage", GOOD), verify="full"))
    assert not answers
    assert not result.ledger.drops


def test_nothing_left_is_a_copy_without_figures(model: Path, register: Register, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where all that was done is slower, the output is the input byte for byte, and no measurement of another file is shown."""
    monkeypatch.setattr(proof, "compare_speed", lambda *_, **__: timed(0.5))
    result = driver.optimize(model, model.with_name("out.onnx"), recipe=register(table("sabotage", GOOD), verify="full"))
    assert dropped(result) == [Key("sabotage", "cancel-negations")]
    assert result.path is not None
    assert result.path.read_bytes() == model.read_bytes()
    assert result.figures.speed is None
    assert result.figures.kernels_after is None
    assert "nothing to improve: the output equals the input" in result.ledger.notes

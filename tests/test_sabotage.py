"""Tests of the promise "never wrong, never larger": rules that break it are named, dropped, and the rest is kept."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import onnx_ir as ir
import pytest

from graphopt import driver, ledger, proof
from graphopt.cli import main
from graphopt.errors import VerificationError
from graphopt.graph.view import View
from graphopt.ledger import Key
from graphopt.passes.base import Context, GuidedPass
from graphopt.passes.rules import Change, rule
from tests.layered import GOOD, LAYERS, Register, assert_outputs_kept, dropped, is_place, layered_file, registering, table, timed
from tests.saboteurs import BAD, COSTLY, WRONG, RuleFunction, corrupt_weight, fail_while_building, grow, ids, name_of, zero_a_weight

model = pytest.fixture(layered_file)
register = pytest.fixture(registering)


@dataclass(frozen=True)
class Rescale(GuidedPass):
    """Multiplies what goes into each Relu by one, and by three at one place."""

    name: ClassVar[str] = "rescale"

    def run(self, model: ir.Model, context: Context) -> bool:
        """Asks the ledger at each Relu."""
        assert len(context.samples) > 0
        changed = False
        for node in [node for node in model.graph if node.op_type == "Relu"]:
            key = Key(self.name, "scale", node.name or "")
            if not ledger.allow(key):
                continue
            scale = ir.val(f"{node.name}s", const_value=ir.tensor(np.float32(3 if node.name == "r2" else 1), name=f"{node.name}s"))
            model.graph.register_initializer(scale)
            scaled = ir.node("Mul", [node.inputs[0], scale], name=f"{node.name}/Mul")
            scaled.outputs[0].name = f"{node.name}/Mul"
            node.replace_input_with(0, scaled.outputs[0])
            model.graph.insert_before(node, scaled)
            ledger.record(ledger.Rewrite(key, added=(scaled.name or "",)))
            changed = True
        return changed


@pytest.mark.parametrize(("function", "reason"), WRONG, ids=ids(WRONG))
def test_one_wrong_rewrite_among_good_ones(model: Path, register: Register, function: RuleFunction, reason: str) -> None:
    """A rule that is wrong at one place is dropped there and nowhere else, and the ledger says why."""
    chosen = register(table("sabotage", GOOD, rule(function, "MatMul")))
    result = driver.optimize(model, model.with_name("out.onnx"), recipe=chosen)
    assert dropped(result) == [Key("sabotage", name_of(function), BAD)]
    assert reason in result.ledger.drops[0].reason
    assert "\n" not in result.ledger.drops[0].reason
    assert result.ledger.counts() == {"sabotage/cancel-negations": LAYERS, f"sabotage/{name_of(function)}": LAYERS - 1}
    assert_outputs_kept(model, result)
    beside = json.loads(model.with_name("out.onnx.ledger.json").read_text())
    assert beside["dropped"] == [["sabotage", name_of(function), BAD, result.ledger.drops[0].reason]]
    assert result.recipe.resolved is not None
    assert result.recipe.resolved.denied == {Key("sabotage", name_of(function), BAD)}


@pytest.mark.parametrize(("function", "reason"), COSTLY, ids=ids(COSTLY))
def test_one_costly_rewrite_among_good_ones(
    model: Path, register: Register, monkeypatch: pytest.MonkeyPatch, function: RuleFunction, reason: str
) -> None:
    """A right rewrite that makes the file larger or runs more kernels is dropped, alone."""
    monkeypatch.setattr(proof, "compare_speed", lambda *_, **__: timed(1.0))
    chosen = register(table("sabotage", GOOD, rule(function, "MatMul")), verify="full")
    result = driver.optimize(model, model.with_name("out.onnx"), recipe=chosen)
    assert dropped(result) == [Key("sabotage", name_of(function), BAD)]
    assert reason in result.ledger.drops[0].reason
    assert result.ledger.counts() == {"sabotage/cancel-negations": LAYERS, f"sabotage/{name_of(function)}": LAYERS - 1}
    assert result.figures.bytes_after <= result.figures.bytes_before
    assert_outputs_kept(model, result)


@pytest.mark.parametrize("function", [corrupt_weight, fail_while_building, grow])
def test_several_stages(model: Path, register: Register, function: RuleFunction) -> None:
    """In a recipe of several stages each culprit is found in its own stage, and the other stages stay whole."""
    chosen = register(table("first", GOOD), Rescale, table("last", rule(function, "MatMul")))
    result = driver.optimize(model, model.with_name("out.onnx"), recipe=chosen)
    assert set(dropped(result)) == {Key("rescale", "scale", "r2"), Key("last", name_of(function), BAD)}
    assert result.ledger.counts() == {
        "first/cancel-negations": LAYERS,
        "rescale/scale": LAYERS - 1,
        f"last/{name_of(function)}": LAYERS - 1,
    }
    assert_outputs_kept(model, result)


def test_strict_writes_nothing(model: Path, register: Register, capsys: pytest.CaptureFixture[str]) -> None:
    """With --strict a dropped rewrite is an error in one line that names it, and no file appears; without, a success."""
    register(table("sabotage", GOOD, rule(corrupt_weight, "MatMul")))
    command = ["optimize", str(model), "-o", str(model.with_name("out.onnx")), "--pass", "sabotage", "--verify", "outputs", "-q"]
    assert main([*command, "--strict"]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"sabotage/corrupt-weight at {BAD}" in error
    assert [path.name for path in model.parent.iterdir()] == ["model.onnx"]
    assert main(command) == 0


def test_a_rule_that_is_wrong_everywhere(model: Path, register: Register) -> None:
    """After two places the rule itself is dropped, since one place after the other would take a run each."""

    def negate(node: ir.Node, view: View) -> Change | None:
        """Replaces a MatMul with its negative."""
        return Change(lambda build: build.op("Neg", build.op("MatMul", *node.inputs))) if is_place(node) else None

    result = driver.optimize(model, model.with_name("out.onnx"), recipe=register(table("sabotage", rule(negate, "MatMul"), GOOD)))
    assert dropped(result)[-1] == Key("sabotage", "negate")
    assert len(dropped(result)) == 3
    assert result.ledger.counts() == {"sabotage/cancel-negations": LAYERS}


def test_rules_that_undo_each_other(model: Path, register: Register) -> None:
    """A table that never comes to an end is stopped, and one of its rules is dropped."""

    def forth(node: ir.Node, view: View) -> Change | None:
        """Replaces Relu with Abs."""
        return Change(lambda build: build.op("Abs", node.inputs[0]))

    def back(node: ir.Node, view: View) -> Change | None:
        """Replaces Abs with Relu."""
        return Change(lambda build: build.op("Relu", node.inputs[0]))

    result = driver.optimize(
        model, model.with_name("out.onnx"), recipe=register(table("sabotage", GOOD, rule(forth, "Relu"), rule(back, "Abs")))
    )
    assert "does not come to an end" in result.ledger.drops[0].reason
    assert result.ledger.counts() == {"sabotage/cancel-negations": LAYERS}
    assert_outputs_kept(model, result)


def test_verification_error_is_the_last_resort(model: Path, register: Register, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the written file differs from what was verified, nothing is written at all."""
    monkeypatch.setattr("graphopt.run.write_model", lambda attempts, dropped, fallback, path, original: ir.save(zeroed(fallback), path))
    with pytest.raises(VerificationError, match="the written file failed the last check"):
        driver.optimize(model, model.with_name("out.onnx"), recipe=register(table("good", GOOD)))
    assert [path.name for path in model.parent.iterdir()] == ["model.onnx"]


def zeroed(model: ir.Model) -> ir.Model:
    """A copy with a weight of zeros."""
    copy = model.clone()
    zero_a_weight(copy)
    return copy

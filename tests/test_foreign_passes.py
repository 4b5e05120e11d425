"""Tests of passes from anyone's module: they run by consent, and are held to the same promise."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import onnx_ir as ir
import pytest

from graphopt import driver
from graphopt.cli import main
from graphopt.ledger import Key
from graphopt.passes.rules import Rule, RulePass, rule
from graphopt.recipe import Recipe
from tests.layered import GOOD, LAYERS, assert_outputs_kept, dropped, layered_file
from tests.saboteurs import BAD, corrupt_weight, zero_a_weight

model = pytest.fixture(layered_file)


class Zeroing(ir.passes.InPlacePass):
    """Anyone's pass of onnx_ir: zeroes a weight."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Knows no ledger."""
        zero_a_weight(model)
        return ir.passes.PassResult(model, True)


class Renaming(ir.passes.FunctionalPass):
    """Anyone's functional pass: gives back another model, with a comment."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Knows no ledger."""
        copy = model.clone()
        changed = copy.graph.doc_string != "hello"
        copy.graph.doc_string = "hello"
        return ir.passes.PassResult(copy, changed)


def test_foreign_passes(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Anyone's onnx_ir pass runs under its import name where imports are allowed, is one rewrite, and is dropped where it is wrong."""
    wrong, right = f"{__name__}:Zeroing", f"{__name__}:Renaming"
    chosen = Recipe.of(wrong, "simplify", right).changed(verify="outputs")
    result = driver.optimize(model, model.with_name("out.onnx"), recipe=chosen, allow_imports=True)
    assert dropped(result) == [Key(wrong)]
    assert result.ledger.counts()[right] == 1
    assert result.model.graph.doc_string == "hello"
    assert_outputs_kept(model, result)
    assert main(["optimize", str(model), "-o", str(model.with_name("no.onnx")), "--pass", wrong]) == 1
    assert "--allow-imports" in capsys.readouterr().err


@dataclass(frozen=True)
class Imported(RulePass):
    """A pass of graphopt's own kind in somebody's module."""

    name: ClassVar[str] = "imported"
    rules: ClassVar[tuple[Rule, ...]] = (GOOD, rule(corrupt_weight, "MatMul"))


def test_an_imported_pass_of_our_kind_is_bisected(model: Path) -> None:
    """A pass named ``module:Class`` that speaks to the ledger is dropped at one place only, and counted once."""
    chosen = Recipe.of(f"{__name__}:Imported").changed(verify="outputs")
    result = driver.optimize(model, model.with_name("out.onnx"), recipe=chosen, allow_imports=True)
    assert dropped(result) == [Key("imported", "corrupt-weight", BAD)]
    assert result.ledger.counts() == {"imported/cancel-negations": LAYERS, "imported/corrupt-weight": LAYERS - 1}

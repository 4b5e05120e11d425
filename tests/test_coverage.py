"""What a user hears of the work that runs in integers: how much, what is left, and what int8 does without samples."""

from __future__ import annotations

from pathlib import Path

import pytest

from graphopt import driver
from graphopt.choosing.coverage import coverage_of
from graphopt.choosing.unguided import unguided
from graphopt.ledger import Drop, Key, Ledger, Miss, Rewrite
from graphopt.passes.quantize.dynamic import Dynamic
from graphopt.passes.quantize.static import Static
from graphopt.passes.quantize.storage import Storage
from graphopt.presets import preset
from tests.helpers import parse

QUANTIZED = "com.microsoft::DynamicQuantizeMatMul"
LAYERS = """(float[4, 2] x) => (float[4, 3] y) <float[2, 3] a = {1,2,3,4,5,6}, float[3, 3] b = {1,2,3,4,5,6,7,8,9}>
    { [first] v = MatMul(x, a) [second] w = MatMul(v, b) [third] z = MatMul(w, b) y = Relu(z) }"""
SHAPES = {"x": (4, 2), "v": (4, 3), "w": (4, 3), "z": (4, 3)}


def test_what_is_left_in_float_and_why() -> None:
    """Work is counted by layers with constants; a measurement says more than a condition; all that is silent has one reason."""
    ledger = Ledger(
        rewrites=[Rewrite(Key("dynamic", "", "first"), kernels=(QUANTIZED,)), Rewrite(Key("storage", "", "second"))],
        declined=[Drop(Key("dynamic", "", "second"), "9 us instead of 5 us")],
        misses=[Miss(Key("dynamic", "", "second"), "too small"), Miss(Key("smooth", "", "third"), "not for this")],
    )
    found = coverage_of(parse(LAYERS), SHAPES, ledger, {"dynamic", "storage"}, "nobody asked")
    assert found is not None
    assert (found.macs, found.integer_macs, found.layers) == (24 + 36 + 36, 24, 3)
    assert [(layer.name, layer.reason) for layer in found.left] == [("second", "dynamic: 9 us instead of 5 us"), ("third", "nobody asked")]
    assert found.to_json()["left_in_float"][0]["share"] == pytest.approx(36 / 96)
    assert "25.0%" in str(found)
    assert coverage_of(parse(LAYERS), SHAPES, ledger, {"half"}, "") is None
    assert coverage_of(parse("(float[2] x) => (float[2] y) { y = Relu(x) }"), {}, ledger, {"dynamic"}, "") is None


def test_a_layer_that_another_rewrite_takes_along_counts() -> None:
    """As a head that shares its weight with a table, whose rewrite is the table's."""
    ledger = Ledger(rewrites=[Rewrite(Key("embeddings", "tied-rows", "table"), removed=("third",), kernels=(QUANTIZED,))])
    found = coverage_of(parse(LAYERS), SHAPES, ledger, {"dynamic"}, "")
    assert found is not None
    assert {layer.name for layer in found.left} == {"first", "second"}


def test_passes_that_need_samples() -> None:
    """They are left out, and the line says what is done without them; a recipe without any is left as it is."""
    kept, note = unguided([Static(), Dynamic(), Storage()])
    assert [each.name for each in kept] == ["dynamic", "storage"]
    assert note.startswith("without --data there is no static: linear layers run in integers")
    assert unguided([Dynamic()]) == ([Dynamic()], "")


@pytest.mark.parametrize(("name", "covered"), [("conv", False), ("attention", True)])
def test_int8_without_data(digits: Path, tmp_path: Path, name: str, covered: bool) -> None:
    """One line says what int8 does without samples, and that is done: products in integers, convolutions stored in them."""
    recipe = preset("int8").changed(verify="outputs")
    result = driver.optimize(digits / f"{name}.onnx", tmp_path / "out.onnx", recipe=recipe)
    assert sum("--data" in note and "without" in note for note in result.ledger.notes) == 1
    rules = result.ledger.counts()
    assert "static" not in rules
    assert "bias" not in rules
    assert ("dynamic" in rules) == covered
    assert "storage" in rules
    assert result.figures.coverage is not None
    assert (result.figures.coverage.integer_macs > 0) == covered

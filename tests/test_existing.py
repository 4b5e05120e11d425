"""Models that come quantized: kept as they are, shifted to unsigned data exactly, or stripped."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from graphopt import ledger
from graphopt.driver import optimize
from graphopt.graph.edits import name_nodes
from graphopt.graph.signature import signature_of
from graphopt.graph.structure import verify_structure
from graphopt.passes.base import Context
from graphopt.passes.quantize.retarget import Retarget
from graphopt.passes.quantize.strip import StripQuantization
from graphopt.presets import preset
from graphopt.recipe import Recipe
from graphopt.runtime.kernels import executed_kernels
from graphopt.runtime.session import open_session
from graphopt.samples import Samples
from tests.helpers import operators, parse
from tests.weighted import weighted

on_x86 = pytest.mark.skipif(platform.machine().lower() not in {"x86_64", "amd64"}, reason="only x86 kernels want unsigned data")

RESIDUAL = """(float[1,16,12,12] x) => (float[1,10] y) {
    a = Conv<pads=[1,1,1,1]>(x, w1, b1) ra = Relu(a)
    b = Conv<pads=[1,1,1,1]>(ra, w2, b2) s = Add(b, ra) rs = Relu(s)
    c = Conv<pads=[1,1,1,1]>(rs, w3, b3) t = Add(c, rs) rt = Relu(t)
    g = GlobalAveragePool(rt) f = Flatten(g) y = Gemm<transB=1>(f, w4)
}"""
WEIGHTS = {f"w{n}": (16, 16, 3, 3) for n in (1, 2, 3)} | {f"b{n}": (16,) for n in (1, 2, 3)} | {"w4": (10, 16)}


def feeds() -> list[dict[str, np.ndarray[Any, Any]]]:
    """Four pictures."""
    generator = np.random.default_rng(1)
    return [{"x": generator.normal(size=(1, 16, 12, 12)).astype(np.float32)} for _ in range(4)]


@pytest.fixture(scope="module")
def residual(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A residual network, in float."""
    model = weighted(RESIDUAL, WEIGHTS)
    for name, value in model.graph.initializers.items():
        assert value.const_value is not None
        value.const_value = ir.tensor(value.const_value.numpy() * np.float32(0.08 if name.startswith("w") else 0.1), name=name)
    path = tmp_path_factory.mktemp("residual") / "float.onnx"
    ir.save(model, path)
    return path


@pytest.fixture(scope="module", params=["uint8", "int8", "int8 symmetric"])
def quantized(request: pytest.FixtureRequest, residual: Path) -> Path:
    """The network as ONNX Runtime's own quantizer writes it, for each kind of codes."""
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # the runtime has no types
        def __init__(self) -> None:
            self._feeds: Iterator[dict[str, Any]] = iter(feeds())

        def get_next(self) -> dict[str, Any] | None:
            return next(self._feeds, None)

    kind: str = request.param
    path = residual.with_name(f"{kind.replace(' ', '_')}.onnx")
    activations = QuantType.QUInt8 if kind == "uint8" else QuantType.QInt8
    options = {"ActivationSymmetric": kind.endswith("symmetric")}
    quantize_static(residual, path, Reader(), activation_type=activations, per_channel=True, extra_options=options)
    return path


def loaded(path: Path) -> ir.Model:
    """A model whose nodes have names."""
    model = ir.load(path)
    name_nodes(model)
    return model


def count(model: ir.Model, operator: str) -> int:
    """How many kernels of an operator run, whatever their domain."""
    return sum(number for (_, name), number in executed_kernels(model).counts.items() if name == operator)


def test_exact_passes_keep_it(quantized: Path, tmp_path: Path) -> None:
    """The exact preset drops nothing and leaves every quantize and dequantize node and every kernel in place."""
    result = optimize(quantized, tmp_path / "out.onnx", recipe=preset("exact").changed(verify="outputs"), data=feeds())
    assert not result.ledger.drops
    before, after = ir.load(quantized), ir.load(tmp_path / "out.onnx")
    for operator in ("QuantizeLinear", "DequantizeLinear"):
        assert operators(after).count(operator) == operators(before).count(operator)
    assert executed_kernels(after).counts == executed_kernels(before).counts


@on_x86
def test_retarget_is_exact_and_runs_in_integers(quantized: Path) -> None:
    """Every dequantized number stays; all convolutions and additions run in integers afterwards."""
    before, after = loaded(quantized), loaded(quantized)
    with ledger.recording(ledger.Recorder()) as recorder:
        changed = Retarget()(after).modified
    verify_structure(after)
    assert changed == (quantized.stem != "uint8")
    for feed in feeds():
        expected, found = (open_session(model, "none").run(feed)["y"] for model in (before, after))
        np.testing.assert_array_equal(found, expected)
    assert count(after, "QLinearConv") == 3
    assert count(after, "QLinearAdd") == 2
    assert not recorder.misses
    assert not Retarget()(after).modified


@on_x86
def test_retarget_survives_the_driver(residual: Path, quantized: Path, tmp_path: Path) -> None:
    """The whole run keeps what the pass did: outputs, size and kernels."""
    recipe = Recipe.of("retarget").changed(verify="outputs")
    result = optimize(quantized, tmp_path / "out.onnx", recipe=recipe, data=feeds())
    assert not result.ledger.drops
    assert ("retarget/unsigned-data" in result.ledger.counts()) == (quantized.stem != "uint8")


@on_x86
def test_retarget_moves_through_views_and_constants() -> None:
    """Codes that are moved about are shifted with their pair, and so is a constant that meets the data; a read code is not."""
    text = """(float[2,3,4] x) => (float[3,8] y) <float s = {0.1}, int8 z = {-5}, int8[1,8] c = {-128, -5, 0, 1, 2, 3, 4, 127}> {
        q = QuantizeLinear(x, s, z) t = Transpose<perm=[1,0,2]>(q) shape = Constant<value_ints=[3,8]>()
        r = Reshape(t, shape) d = DequantizeLinear(r, s, z) e = DequantizeLinear(c, s, z) y = Add(d, e)
    }"""
    before, after = parse(text), parse(text)
    name_nodes(after)
    assert Retarget()(after).modified
    verify_structure(after)
    feed = {"x": np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32) * 9}
    for level in ("none", "all"):
        np.testing.assert_array_equal(open_session(after, level).run(feed)["y"], open_session(before, level).run(feed)["y"])
    assert {value.dtype for value in after.graph.initializers.values()} == {ir.DataType.FLOAT, ir.DataType.UINT8}
    shown = parse("(float[4] x) => (int8[4] y) <float s = {0.1}, int8 z = {0}> { y = QuantizeLinear(x, s, z) }")
    with ledger.recording(ledger.Recorder()) as recorder:
        assert not Retarget()(shown).modified
    assert list(recorder.misses.values()) == ["its codes are an output"]


def test_strip_gives_the_float_model_back(residual: Path, quantized: Path) -> None:
    """No quantize or dequantize node is left, and the outputs come as close to float as the weights' rounding lets them."""
    model = loaded(quantized)
    samples = Samples.open(feeds(), signature_of(model))
    assert StripQuantization().run(model, Context(samples, "cpu"))
    verify_structure(model)
    assert not {"QuantizeLinear", "DequantizeLinear"} & set(operators(model))
    for level in ("none", "all"):
        for feed in feeds():
            expected, found, before = (open_session(one, level).run(feed)["y"] for one in (residual, model, quantized))
            error = np.square(found - expected).sum()
            assert error < 1e-3 * np.square(expected).sum()
            assert error < 2 * np.square(before - expected).sum()


def test_strip_keeps_the_bound_of_dropped_activations() -> None:
    """Codes that end at zero stood for a ReLU: the bound stays; others go without a trace."""
    text = """(float[6] x) => (float[6] y) <float s = {0.1}, uint8 low = {0}, uint8 middle = {128}> {
        a = QuantizeLinear(x, s, low) b = DequantizeLinear(a, s, low)
        c = QuantizeLinear(b, s, middle) y = DequantizeLinear(c, s, middle)
    }"""
    model = parse(text)
    name_nodes(model)
    samples = Samples.open([{"x": np.zeros(6, np.float32)}], signature_of(model))
    assert StripQuantization().run(model, Context(samples, "cpu"))
    verify_structure(model)
    x = np.array([-3, -0.04, 0, 0.04, 3, 99], np.float32)
    np.testing.assert_allclose(open_session(model).run({"x": x})["y"], np.clip(x, 0, 25.5), rtol=1e-6)
    assert "QuantizeLinear" not in operators(model)


def test_other_targets_keep_signed_data() -> None:
    """Where signed data is what kernels take, nothing is shifted."""
    model = parse(
        "(float[4] x) => (float[4] y) <float s = {0.1}, int8 z = {0}> { q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z) }"
    )
    name_nodes(model)
    assert not Retarget(target="cuda")(model).modified
    assert Retarget()(model).modified == (platform.machine().lower() in {"x86_64", "amd64"})

"""Tests of kernels that were planned and do not run: the form that asked for them is dropped."""

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
from tests.layered import Register, dropped, is_place, registering, table, timed

register = pytest.fixture(registering)


def two_products() -> ir.Model:
    """A product that runs in 8 bits, and one with a bias, which the runtime turns into a float Gemm."""
    return ir.from_onnx_text(
        """<ir_version: 8, opset_import: ["": 18]> g (float[16,32] x, float[16,32] z) => (float[16,32] y, float[16,32] u)
        <float[32,32] a = {0}, float[32,32] b = {0}, float[32] bias = {0}>
        { [plain] y = MatMul(x, a) [biased] p = MatMul(z, b) [add] u = Add(p, bias) }"""
    )


def quantize_product(node: ir.Node, view: View) -> Change | None:
    """Replaces a MatMul with its 8-bit form: DequantizeLinear on both sides, and QuantizeLinear behind where no bias follows."""
    weight = view.constant(node.inputs[1])
    if not is_place(node) or weight is None:
        return None

    def built(build: Any) -> ir.Value:
        def quantized(value: ir.Value | None, scale: float) -> ir.Value:
            step, zero = build.constant(np.float32(scale)), build.constant(np.uint8(128))
            return cast("ir.Value", build.op("DequantizeLinear", build.op("QuantizeLinear", value, step, zero), step, zero))

        scale = np.abs(weight).max() / 127
        integers = build.constant(np.round(weight / scale).astype(np.int8))
        product = build.op(
            "MatMul",
            quantized(node.inputs[0], 4 / 128),
            build.op("DequantizeLinear", integers, build.constant(np.float32(scale)), build.constant(np.int8(0))),
        )
        return quantized(product, 0.25) if node.name == "plain" else cast("ir.Value", product)

    return Change(built, kernels=("::QLinearMatMul", "::QuantizeLinear", "::DequantizeLinear"))


def test_a_planned_kernel_that_falls_back(tmp_path: Path, register: Register, monkeypatch: pytest.MonkeyPatch) -> None:
    """A form that was planned to run in 8 bits and runs in float is dropped; the one that runs as planned is kept."""
    monkeypatch.setattr(proof, "compare_speed", lambda *_, **__: timed(1.0))
    products, generator = two_products(), np.random.default_rng(1)
    for value in products.graph.initializers.values():
        assert value.shape is not None
        value.const_value = ir.tensor(generator.normal(size=value.shape.numpy()).astype(np.float32), name=value.name)
    path = tmp_path / "model.onnx"
    ir.save(products, path)
    chosen = register(table("quantize", rule(quantize_product, "MatMul")), verify="full", tolerance=0.5)
    result = driver.optimize(path, tmp_path / "out.onnx", recipe=chosen)
    assert dropped(result) == [Key("quantize", "quantize-product", "biased")]
    assert result.ledger.drops[0].reason.startswith("1 of 2 planned ::QLinearMatMul kernels run")
    assert [rewrite.key.anchor for rewrite in result.ledger.rewrites] == ["plain"]

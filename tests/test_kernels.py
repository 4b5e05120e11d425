"""Tests of graphopt.runtime.kernels."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
import onnxruntime

from graphopt.runtime.kernels import executed_kernels, fuses_float_biases
from graphopt.targets import TARGETS

MODEL = """<ir_version: 8, opset_import: ["" : 17]> g (bool c, float[2, 2] x) => (float[2, 2] y) <float[2, 2] w = {1, 2, 3, 4}>
{ [same] i = Identity(x) [product] p = MatMul(i, w)
  [choice] y = If(c) <then_branch = t () => (float[2, 2] q) { [inside] q = Exp(p) },
    else_branch = e () => (float[2, 2] r) { r = Neg(p) }> }"""


def test_nodes_of_the_optimized_graph_and_its_subgraphs(tmp_path: Path) -> None:
    """Executed nodes are those that the runtime keeps, subgraphs included, and nothing is written beside the file."""
    ir.save(ir.from_onnx_text(MODEL), tmp_path / "m.onnx")
    for source in (tmp_path / "m.onnx", ir.from_onnx_text(MODEL)):
        kernels = executed_kernels(source)
        assert dict(kernels.counts) == {("", "MatMul"): 1, ("", "If"): 1, ("", "Exp"): 1, ("", "Neg"): 1}
        assert kernels.total == 4
        assert "product" in [kernel.name for kernel in kernels.nodes]
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


def test_float_biases_are_fused_by_newer_runtimes() -> None:
    """1.20 leaves such a convolution in float; a runtime that is not known yet may do either."""
    version = tuple(map(int, onnxruntime.__version__.split(".")[:2]))
    if version in {(1, 20), (1, 31)}:
        assert fuses_float_biases() == (version == (1, 31))
    assert not TARGETS["portable"].fuses_float_biases()

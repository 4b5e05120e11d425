"""Quantized linear layers: packing, the operators that replace them, and what a recipe allows them to lose."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from graphopt import ledger
from graphopt.driver import optimize
from graphopt.graph.edits import Builder, Names
from graphopt.graph.signature import signature_of
from graphopt.graph.structure import verify_structure
from graphopt.passes.base import Context, GuidedPass
from graphopt.passes.quantize.dynamic import Dynamic
from graphopt.passes.quantize.weights import Weights
from graphopt.recipe import Recipe
from graphopt.runtime.kernels import executed_kernels
from graphopt.runtime.session import open_session
from graphopt.samples import Samples
from graphopt.solve.grid import Scheme, fit_extremes, round_to_nearest
from graphopt.targets.emit import matmul_nbits
from tests.helpers import operators

OUT, WIDTH = 24, 80


def model_of(nodes: str, rank: int = 3) -> ir.Model:
    """A model of some nodes over ``x [..., 80]``, with a weight ``w [80, 24]`` and a bias ``b [24]``."""
    axes = ", ".join(("N", "M")[: rank - 1])
    text = f'<ir_version: 8, opset_import: ["": 18]> graph (float[{axes}, {WIDTH}] x) => (float[{axes}, {OUT}] y) {{ {nodes} }}'
    model = ir.from_onnx_text(text)
    generator = np.random.default_rng(0)
    for name, shape in (("w", (WIDTH, OUT)), ("b", (OUT,))):
        value = next((v for node in model.graph for v in node.inputs if v is not None and v.name == name), None)
        if value is not None:
            value.const_value = ir.tensor(generator.normal(size=shape).astype(np.float32), name=name)
            value.type, value.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(shape)
            model.graph.register_initializer(value)
    for index, node in enumerate(model.graph):
        node.name = f"node_{index}"
    return model


def samples_of(model: ir.Model, count: int = 4) -> Samples:
    """Real samples, as far as a pass can tell."""
    generator = np.random.default_rng(1)
    shape = [dim if isinstance(dim, int) else 5 for dim in model.graph.inputs[0].shape or ()]
    return Samples.open([{"x": generator.normal(size=shape).astype(np.float32)} for _ in range(count)], signature_of(model))


LINEAR = "matmul = MatMul(x, w) y = Add(matmul, b)"


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("block", [16, 32, 128])
def test_packed_blocks_are_read_as_written(bits: int, symmetric: bool, block: int) -> None:
    """The runtime multiplies with the very weights that the grid stands for, last blocks filled up included."""
    model = model_of("y = MatMul(x, w)")
    weight = np.random.default_rng(2).normal(size=(1, OUT, WIDTH)).astype(np.float32)
    quantized = round_to_nearest(weight, fit_extremes(weight, Scheme(bits, symmetric, block)))
    anchor = model.graph[0]
    new = matmul_nbits(Builder(anchor, Names(model)), model.graph.inputs[0], quantized, np.arange(OUT, dtype=np.float32))
    node = new.producer()
    assert node is not None
    node.attributes["accuracy_level"] = ir.AttrInt64("accuracy_level", 1)  # exact products, to see the weights
    new.type, new.shape, model.graph.outputs[0] = anchor.outputs[0].type, anchor.outputs[0].shape, new
    model.graph.remove(anchor)
    model.graph.opset_imports["com.microsoft"] = 1
    x = np.random.default_rng(3).normal(size=(2, 3, WIDTH)).astype(np.float32)
    [found] = open_session(model).run({"x": x}).values()
    np.testing.assert_allclose(found, x @ quantized.weight[0].T + np.arange(OUT), atol=2e-4)


@pytest.mark.parametrize(
    ("chosen", "operator"), [(Weights(min_size=0, bits=8), "MatMulNBits"), (Dynamic(min_size=0), "DynamicQuantizeMatMul")]
)
@pytest.mark.parametrize(
    ("nodes", "rank"),
    [(LINEAR, 3), ("y = MatMul(x, w)", 3), ("y = Gemm(x, w, b)", 2), ("y = Gemm<alpha = 0.5, beta = 2.0>(x, w, b)", 2)],
)
def test_layers_run_as_planned(chosen: GuidedPass, operator: str, nodes: str, rank: int) -> None:
    """A layer with its bias becomes one operator, runs as the kernel planned, and keeps its output within 30 dB."""
    before, after = model_of(nodes, rank), model_of(nodes, rank)
    samples = samples_of(after)
    with ledger.recording(ledger.Recorder()) as recorder:
        assert chosen.run(after, Context(samples, "cpu"))
    verify_structure(after)
    assert operators(after) == [operator]
    assert [rewrite.kernels for rewrite in recorder.rewrites] == [(f"com.microsoft::{operator}",)]
    assert executed_kernels(after).counts["com.microsoft", operator] == 1
    feed = next(iter(samples))
    expected, found = (open_session(model).run(feed)["y"] for model in (before, after))
    assert np.square(found - expected).sum() < 1e-3 * np.square(expected).sum()


def test_bias_that_is_no_vector_stays() -> None:
    """What is added and is not one number per output channel is added still."""
    model = model_of("matmul = MatMul(x, w) y = Add(matmul, matmul)")
    assert Weights(min_size=0).run(model, Context(samples_of(model), "cpu"))
    assert operators(model) == ["MatMulNBits", "Add"]


def test_other_targets_and_other_layers_are_left_alone() -> None:
    """A target without the kernel, a layer too small, and one that is excluded: nothing changes."""
    model = model_of(LINEAR)
    samples = samples_of(model)
    assert not Weights(min_size=0).run(model, Context(samples, "portable"))
    assert not Weights(min_size=10_000).run(model, Context(samples, "cpu"))
    assert not Weights(min_size=0, exclude=("node_*",)).run(model, Context(samples, "cpu"))
    assert operators(model) == ["MatMul", "Add"]


def test_an_approximation_is_held_to_the_recipe(tmp_path: Path) -> None:
    """What the recipe allows is kept; what it does not is taken back, and the ledger says so."""
    ir.save(model_of(LINEAR), tmp_path / "model.onnx")
    recipe = Recipe.of("weights(min_size=0, bits=8, block=16)").changed(verify="outputs")
    kept = optimize(tmp_path / "model.onnx", tmp_path / "kept.onnx", recipe=recipe.changed(min_sqnr=25))
    assert kept.ledger.counts() == {"weights": 1}
    assert kept.figures.sqnr_db is not None
    assert kept.figures.sqnr_db >= 25
    strict = optimize(tmp_path / "model.onnx", tmp_path / "strict.onnx", recipe=recipe.changed(min_sqnr=120))
    assert not strict.ledger.rewrites
    assert [drop.key.anchor for drop in strict.ledger.drops] == ["node_0"]

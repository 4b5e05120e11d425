"""Quantized linear layers: packing, the operators that replace them, and what a recipe allows them to lose."""

from __future__ import annotations

import os
import runpy
from pathlib import Path
from typing import Literal

import numpy as np
import onnx_ir as ir
import pytest

from graphopt import ledger
from graphopt.driver import optimize
from graphopt.graph.edits import Builder, Names
from graphopt.graph.layers import layers_of
from graphopt.graph.signature import signature_of
from graphopt.graph.structure import verify_structure
from graphopt.passes.base import Context, GuidedPass
from graphopt.passes.quantize.dynamic import CHANNELS, Dynamic
from graphopt.passes.quantize.linear import places_of, solve
from graphopt.passes.quantize.weights import PACKED, Weights
from graphopt.proof import Prover
from graphopt.recipe import Recipe
from graphopt.runtime.kernels import executed_kernels
from graphopt.runtime.registry import packed_bits
from graphopt.runtime.session import SessionOptions, open_session
from graphopt.runtime.statistics import Request, collect
from graphopt.samples import Samples
from graphopt.solve.gptq import gptq
from graphopt.solve.grid import Scheme, fit_extremes, round_to_nearest
from graphopt.solve.metric import Metric
from graphopt.targets.emit import matmul_nbits
from tests.helpers import operators

OUT, WIDTH = 24, 80
on_2_bits, on_4_bits, on_8_bits = (
    pytest.mark.skipif(bits not in packed_bits(), reason=f"the installed runtime's MatMulNBits takes no weights of {bits} bits")
    for bits in (2, 4, 8)
)
WIDTHS = [pytest.param(2, marks=on_2_bits), pytest.param(4, marks=on_4_bits), pytest.param(8, marks=on_8_bits)]


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


@pytest.mark.parametrize("bits", WIDTHS)
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
    ("chosen", "operator"),
    [
        pytest.param(Weights(min_size=0, bits=8), "MatMulNBits", marks=on_8_bits),
        (Dynamic(min_size=0), "DynamicQuantizeMatMul"),
    ],
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
        assert chosen.run(after, Context(samples, "cpu", measures=False))
    verify_structure(after)
    assert operators(after) == [operator]
    assert [rewrite.kernels for rewrite in recorder.rewrites] == [(f"com.microsoft::{operator}",)]
    assert executed_kernels(after).counts["com.microsoft", operator] == 1
    feed = next(iter(samples))
    expected, found = (open_session(model).run(feed)["y"] for model in (before, after))
    assert np.square(found - expected).sum() < 1e-3 * np.square(expected).sum()


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("block", [16, 32, 128])
def test_a_layer_that_is_slow_is_unpacked_when_loaded(bits: Literal[2, 4, 8], symmetric: bool, block: Literal[16, 32, 128]) -> None:
    """Where MatMulNBits is denied the same weights are stored in as few bits, and nothing but a float layer runs."""
    packed, folded = model_of(LINEAR), model_of(LINEAR)
    samples = samples_of(packed)
    chosen = Weights(min_size=0, bits=bits, symmetric=symmetric, block=block)
    assert chosen.run(packed, Context(samples, "cpu", measures=False))
    with ledger.recording(ledger.Recorder(frozenset({ledger.Key("weights", PACKED, "node_0")}))) as recorder:
        assert chosen.run(folded, Context(samples, "cpu", measures=False))
    verify_structure(folded)
    assert [rewrite.key for rewrite in recorder.rewrites] == [ledger.Key("weights", "", "node_0")]
    assert set(executed_kernels(folded).counts) <= {("", "MatMul"), ("", "Add"), ("", "Gemm"), ("com.microsoft", "FusedMatMul")}
    next(node for node in packed.graph if node.op_type == "MatMulNBits").attributes["accuracy_level"] = ir.AttrInt64("accuracy_level", 1)
    expected, found = (open_session(model).run(next(iter(samples)))["y"] for model in (packed, folded))
    np.testing.assert_allclose(found, expected, atol=2e-4)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_widths_that_the_runtime_does_not_multiply_with(bits: Literal[2, 4, 8], monkeypatch: pytest.MonkeyPatch) -> None:
    """Older runtimes have MatMulNBits for 4 bits alone: other weights are stored and unpacked, and 8-bit layers take the other form."""
    monkeypatch.setattr("graphopt.targets.provider.packed_bits", frozenset)
    model = model_of(LINEAR)
    samples = samples_of(model)
    with ledger.recording(ledger.Recorder()) as recorder:
        assert Weights(min_size=0, bits=bits).run(model, Context(samples, "cpu", measures=True))
        assert Dynamic(min_size=0).run(model_of(LINEAR), Context(samples, "cpu", measures=False))
        assert not Dynamic(min_size=0, forms=("blocks",)).run(model_of(LINEAR), Context(samples, "cpu", measures=False))
    assert [rewrite.kernels for rewrite in recorder.rewrites] == [(), ("com.microsoft::DynamicQuantizeMatMul",)]
    assert [note.partition(":")[0] for note in recorder.notes] == ["weights", "dynamic"]
    assert ("com.microsoft", "MatMulNBits") not in executed_kernels(model).counts


def stored(path: Path) -> list[str]:
    """The operators of a written file."""
    return operators(ir.load(path))


@on_2_bits
def test_slow_kernels_give_way_to_float_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the measurement speaks against MatMulNBits the file is as small without it; a replay measures nothing, for the same bytes."""
    ir.save(model_of(LINEAR), tmp_path / "model.onnx")
    recipe = Recipe.of("weights(min_size=0, bits=2, block=16)").changed(min_sqnr=0)
    monkeypatch.setattr(Prover, "_speed", lambda *_: "")
    written = {}
    for name, seconds in (("packed", [2.0, 1.0]), ("folded", [1.0, 2.0])):
        monkeypatch.setattr("graphopt.passes.racing.seconds_of", lambda *_, seconds=seconds: seconds)
        written[name] = optimize(tmp_path / "model.onnx", tmp_path / f"{name}.onnx", recipe=recipe)
    assert stored(tmp_path / "packed.onnx") == ["MatMulNBits"]
    assert "MatMulNBits" not in stored(tmp_path / "folded.onnx")
    assert written["folded"].ledger.counts() == {"weights": 1}
    assert (tmp_path / "folded.onnx").stat().st_size < (tmp_path / "model.onnx").stat().st_size / 2
    x = np.random.default_rng(3).normal(size=(2, 3, WIDTH)).astype(np.float32)
    expected, found = (open_session(tmp_path / f"{name}.onnx").run({"x": x})["y"] for name in written)
    assert np.square(found - expected).sum() < 1e-3 * np.square(expected).sum()

    def forbidden(*_: object) -> list[float]:
        raise AssertionError("a replay measures nothing")

    monkeypatch.setattr("graphopt.passes.racing.seconds_of", forbidden)
    optimize(tmp_path / "model.onnx", tmp_path / "again.onnx", recipe=written["folded"].recipe)
    assert (tmp_path / "again.onnx").read_bytes() == (tmp_path / "folded.onnx").read_bytes()


def test_kernels_that_the_proof_finds_slow_give_way_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the written file is slower for MatMulNBits at a layer, the next one stores the same codes for a float layer."""
    ir.save(model_of(LINEAR), tmp_path / "model.onnx")
    slow = ledger.Drop(ledger.Key("weights", PACKED, "node_0"), "slow")
    monkeypatch.setattr("graphopt.passes.racing.seconds_of", lambda *_: [2.0, 1.0])
    monkeypatch.setattr("graphopt.run.slow_layers", lambda made, *_: [slow] if any(one.form == PACKED for one in made) else [])
    monkeypatch.setattr(Prover, "_speed", lambda _, __, made: "slower" if any(one.form == PACKED for one in made) else "")
    recipe = Recipe.of("weights(min_size=0, block=16)").changed(min_sqnr=0)
    result = optimize(tmp_path / "model.onnx", tmp_path / "result.onnx", recipe=recipe)
    assert "MatMulNBits" not in stored(tmp_path / "result.onnx")
    assert result.ledger.counts() == {"weights": 1}
    assert slow.key in {drop.key for drop in result.ledger.declined}


def test_bias_that_is_no_vector_stays() -> None:
    """What is added and is not one number per output channel is added still."""
    model = model_of("matmul = MatMul(x, w) y = Add(matmul, matmul)")
    assert Weights(min_size=0).run(model, Context(samples_of(model), "cpu", measures=False))
    assert operators(model) == ["MatMulNBits", "Add"]


def test_other_targets_and_other_layers_are_left_alone() -> None:
    """A target without the kernel, a layer too small, and one that is excluded: nothing changes."""
    model = model_of(LINEAR)
    samples = samples_of(model)
    assert not Weights(min_size=0).run(model, Context(samples, "portable"))
    assert not Weights(min_size=10_000).run(model, Context(samples, "cpu", measures=False))
    assert not Weights(min_size=0, exclude=("node_*",)).run(model, Context(samples, "cpu"))
    assert operators(model) == ["MatMul", "Add"]


def context_of(model: ir.Model, monkeypatch: pytest.MonkeyPatch, seconds: list[float]) -> Context:
    """A context that measures, on a machine that takes so long in float and in integers."""
    monkeypatch.setattr("graphopt.passes.racing.seconds_of", lambda models, feed, options: seconds)
    return Context(samples_of(model), "cpu")


def test_narrow_layers_get_seven_bits() -> None:
    """The weights of a layer at risk of saturation stay within 64 steps of zero, those of others take all 8 bits."""
    for narrow, most in (((), 128), (("node_0",), 64)):
        model = model_of(LINEAR)
        assert Dynamic(min_size=0, narrow=narrow).run(model, Context(samples_of(model), "cpu", measures=False))
        weight = model.graph[0].inputs[1]
        assert weight is not None
        codes = weight.const_value
        assert codes is not None
        assert most // 2 < np.abs(codes.numpy().astype(int)).max() <= most


@on_8_bits
def test_a_form_that_does_not_pay_is_declined(monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer that is slower in integers stays in float, and the ledger has the times, the shape and the key that a replay denies."""
    model = model_of(LINEAR)
    with ledger.recording(ledger.Recorder()) as recorder:
        assert not Dynamic(min_size=0).run(model, context_of(model, monkeypatch, [12e-6 * 8, 14e-6 * 8, 15e-6 * 8]))
    assert operators(model) == ["MatMul", "Add"]
    [declined] = recorder.declined
    assert declined.key == ledger.Key("dynamic", "", "node_0")
    assert declined.reason == "float 12.0 us, DynamicQuantizeMatMul 14.0 us, MatMulNBits 15.0 us for [25,80]x[80,24]"


@on_8_bits
def test_a_form_that_is_slower_by_noise_alone_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few per cent on a busy machine tell nothing."""
    model = model_of(LINEAR)
    assert Dynamic(min_size=0).run(model, context_of(model, monkeypatch, [1e-5, 1.04e-5, 1.02e-5]))
    assert operators(model) == ["DynamicQuantizeMatMul"]


@on_8_bits
def test_the_form_of_a_layer_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scales per block are taken where that is clearly faster than scales per channel; a replay, told so by a denial, times nothing."""
    model = model_of(LINEAR)
    measured, replayed = model.clone(), model.clone()
    with ledger.recording(ledger.Recorder()) as recorder:
        assert Dynamic(min_size=0).run(measured, context_of(model, monkeypatch, [3e-5, 2e-5, 1e-5]))
    assert operators(measured) == ["MatMulNBits"]
    [declined] = recorder.declined
    assert declined.key == ledger.Key("dynamic", CHANNELS, "node_0")
    with ledger.recording(ledger.Recorder(frozenset({declined.key}))):
        assert Dynamic(min_size=0).run(replayed, Context(samples_of(model), "cpu", measures=False))
    assert operators(replayed) == ["MatMulNBits"]
    feed = next(iter(samples_of(model)))
    expected, *found = (open_session(each).run(feed)["y"] for each in (model, measured, replayed))
    np.testing.assert_array_equal(*found)
    assert np.square(found[0] - expected).sum() < 1e-3 * np.square(expected).sum()
    for seconds, narrow in (([3e-5, 2e-5, 1.9e-5], ()), ([3e-5, 2e-5, 1e-5], ("node_0",))):
        other = model.clone()
        assert Dynamic(min_size=0, narrow=narrow).run(other, context_of(model, monkeypatch, seconds))
        assert operators(other) == ["DynamicQuantizeMatMul"]


@on_8_bits
def test_layers_with_one_input_are_timed_together_and_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two layers of one shape on one value are one measurement, made once for all attempts of a run; a replay makes none."""
    timed: list[int] = []

    def race(models: list[ir.Model], feed: dict[str, np.ndarray], options: SessionOptions) -> list[float]:
        timed.extend(len(open_session(model).run(feed)) for model in models)
        return [2.0, 1.0, 3.0]

    monkeypatch.setattr("graphopt.passes.racing.seconds_of", race)
    model = model_of("first = MatMul(x, w) second = MatMul(x, w) y = Add(first, second)")
    context = Context(samples_of(model), "cpu")
    for each in (model.clone(), model.clone(), model.clone()):
        Dynamic(min_size=0).run(each, context)
    assert timed == [16, 16, 16]  # two layers, eight times, in float and in two forms
    Dynamic(min_size=0).run(model.clone(), Context(samples_of(model), "cpu", measures=False))
    assert timed == [16, 16, 16]


def test_what_was_solved_is_kept_as_long_as_it_holds() -> None:
    """A clone with the same weight and the same input gets the same result, without statistics or solving; a new weight is solved anew."""
    model = model_of(LINEAR)
    context = Context(samples_of(model), "cpu", measures=False)
    places = places_of(model, "dynamic", "com.microsoft::DynamicQuantizeMatMul", context, (), (), 0)
    [first] = solve(model, places, Scheme(8), context)
    clone = model.clone()
    again = places_of(clone, "dynamic", "com.microsoft::DynamicQuantizeMatMul", context, (), (), 0)
    [second] = solve(clone, again, Scheme(8), context)
    assert second.weight is first.weight
    again[0].layer.assign(2 * again[0].layer.weight(), Names(clone))
    [third] = solve(clone, again, Scheme(8), context)
    np.testing.assert_allclose(third.weight.weight, 2 * first.weight.weight, rtol=1e-5)


@pytest.mark.parametrize(
    "nodes",
    [
        "turned = Transpose<perm = [0, 2, 1]>(x) product = MatMul(w_left, turned) y = Transpose<perm = [0, 2, 1]>(product)",
        "deep = Unsqueeze(x, axis) product = MatMul(deep, stack) y = Squeeze(product, axis)",
    ],
)
def test_layers_without_a_kernel_say_so(nodes: str) -> None:
    """A weight on the left and a stack of weights stay, and the ledger says why."""
    model = model_of(nodes)
    for name, array in (
        ("w_left", np.ones((OUT, WIDTH), np.float32)),
        ("stack", np.ones((2, WIDTH, OUT), np.float32)),
        ("axis", np.array([1], np.int64)),
    ):
        value = next((v for node in model.graph for v in node.inputs if v is not None and v.name == name), None)
        if value is not None:
            value.const_value = ir.tensor(array, name=name)
            value.type, value.shape = ir.TensorType(ir.DataType.from_numpy(array.dtype)), ir.Shape(array.shape)
            model.graph.register_initializer(value)
    with ledger.recording(ledger.Recorder()) as recorder:
        assert not Weights(min_size=0).run(model, Context(samples_of(model), "cpu", measures=False))
    assert list(recorder.misses.values()) == ["its weight is not one matrix on the right"]


@pytest.mark.skipif("GRAPHOPT_ZOO" not in os.environ, reason="GRAPHOPT_ZOO names no folder with the zoo")
@pytest.mark.parametrize("name", ["llama_shakespeare", "minilm_l6", "cifar_resnet20_ft"])
def test_gptq_is_never_worse_than_rounding_on_samples_it_has_not_seen(name: str) -> None:
    """On every third layer of a trained model GPTQ's error on held-out samples is at most that of rounding to nearest."""
    folder = Path(os.environ["GRAPHOPT_ZOO"])
    evaluate = runpy.run_path(str(folder / "evaluate.py"))
    feeds = list(evaluate["calib_feeds"](name, batch=8))
    model = optimize(folder / name / "model.onnx", recipe=Recipe.of("cleanup").changed(verify="structure")).model
    layers = [layer for layer in layers_of(model) if layer.graph is model.graph and layer.size >= 4096][::3]
    request = Request(layers=tuple(layer.name for layer in layers))
    half = len(feeds) // 2
    seen, unseen = (collect(model, part, request).layers for part in (feeds[:half], feeds[half:]))
    for scheme in (Scheme(8), Scheme(4, True, 64, mirrored=True)):
        for layer in layers:
            weight, metric = layer.weight(), Metric(seen[layer.name].gram)
            rounded = round_to_nearest(weight, fit_extremes(weight, scheme))
            held_out = Metric(unseen[layer.name].gram, damping=0.0)
            found, plain = (held_out.error(weight, one.weight).sum() for one in (gptq(weight, metric, scheme), rounded))
            assert found <= plain, f"{layer.name} at {scheme.bits} bits"


@on_8_bits
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

"""Bias correction: means come back, layer by layer, on every operator that takes a bias; what does not help is taken back."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from graphopt import ledger
from graphopt.graph.signature import signature_of
from graphopt.graph.structure import verify_structure
from graphopt.passes.base import Context
from graphopt.passes.quantize.bias import BiasCorrection
from graphopt.passes.quantize.dynamic import Dynamic
from graphopt.passes.quantize.weights import Weights
from graphopt.runtime.relay import LAST, Stop, channel_means, relay
from graphopt.runtime.session import SessionOptions, open_session
from graphopt.samples import Samples
from tests.helpers import operators, parse

Array = np.ndarray[Any, Any]

CONVOLUTIONS = """(float[N, 3, 8, M] x) => (float[N, 4, 8, M] y) {
    a = Conv<pads = [1, 1, 1, 1]>(x, w1, b1)
    r = Relu(a)
    y = Conv(r, w2)
}"""
LINEAR = """(float[N, 40] x) => (float[N, 24] y) {
    m = MatMul(x, w1)
    a = Add(m, b1)
    r = Relu(a)
    y = Gemm(r, w2)
}"""
SQUARES = dict.fromkeys(("w1", "w2", "w3"), (6, 6))
SHAPES: dict[str, dict[str, tuple[int, ...]]] = {
    CONVOLUTIONS: {"w1": (8, 3, 3, 3), "b1": (8,), "w2": (4, 8, 1, 1)},
    LINEAR: {"w1": (40, 32), "b1": (32,), "w2": (32, 24)},
}


def model_of(text: str) -> ir.Model:
    """A model from text, with random weights and named nodes."""
    model = parse(text)
    generator = np.random.default_rng(0)
    free = {value.name or "": value for node in model.graph for value in node.inputs if value is not None and value.producer() is None}
    for name, shape in SHAPES.get(text, SQUARES).items():
        if name in free:
            free[name].const_value = ir.tensor(generator.normal(size=shape).astype(np.float32), name=name)
            free[name].type, free[name].shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(shape)
            model.graph.register_initializer(free[name])
    for index, node in enumerate(model.graph):
        node.name = f"node_{index}"
    return model


def samples_of(model: ir.Model, count: int = 12) -> Samples:
    """Real samples, as far as a pass can tell, of varying shapes and a mean of 1."""
    generator = np.random.default_rng(1)
    shape = [dim if isinstance(dim, int) else None for dim in model.graph.inputs[0].shape or ()]
    feeds = [
        {"x": generator.normal(1.0, size=[3 + index % 3 if dim is None else dim for dim in shape]).astype(np.float32)}
        for index in range(count)
    ]
    return Samples.open(feeds, signature_of(model))


def coarsened(model: ir.Model) -> ir.Model:
    """A clone with weights in steps of a half, rounded down, so that means move."""
    after = model.clone()
    for value in after.graph.initializers.values():
        assert value.const_value is not None
        array = value.const_value.numpy()
        if array.ndim > 1:
            value.const_value = ir.tensor(np.floor(array * 2) / 2, name=value.name)
    return after


def quantized_weights(model: ir.Model) -> ir.Model:
    """A clone whose weights are 8-bit integers, dequantized, and whose biases are 32-bit ones."""
    after = model.clone()
    for node in list(after.graph):
        for slot, value in enumerate(node.inputs[1:], 1):
            if node.op_type != "Conv" or value is None or value.const_value is None:
                continue
            array = value.const_value.numpy()
            step = np.float32(0.7 if slot == 1 else 1e-3)
            dtype = np.int8 if slot == 1 else np.int32
            codes = ir.val(f"{value.name}_codes", const_value=ir.tensor(np.floor(array / step).astype(dtype), name=f"{value.name}_codes"))
            scale = ir.val(f"{value.name}_scale", const_value=ir.tensor(step, name=f"{value.name}_scale"))
            after.graph.register_initializer(codes)
            after.graph.register_initializer(scale)
            restored = ir.node("DequantizeLinear", [codes, scale], name=f"{value.name}_restored")
            restored.outputs[0].name = f"{value.name}_restored"
            after.graph.insert_before(node, restored)
            node.replace_input_with(slot, restored.outputs[0])
    return after


def errors(original: ir.Model, model: ir.Model, samples: Samples) -> tuple[float, float]:
    """The largest mean error of an output channel, and the mean squared error."""
    sessions = [open_session(each) for each in (original, model)]
    gaps = []
    for feed in samples:
        before, after = (session.run(feed)["y"] for session in sessions)
        gap = after - before
        gaps.append(gap.reshape(-1, gap.shape[-1]) if gap.ndim == 2 else np.moveaxis(gap, 1, -1).reshape(-1, gap.shape[1]))
    stacked = np.concatenate(gaps)
    return float(np.abs(stacked.mean(axis=0)).max()), float(np.square(stacked).mean())


def corrected(original: ir.Model, model: ir.Model, samples: Samples) -> ledger.Recorder:
    """Runs the pass; the model stays sound."""
    with ledger.recording(ledger.Recorder()) as recorder:
        assert BiasCorrection().run(model, Context(samples, "cpu", original=original))
    verify_structure(model)
    return recorder


@pytest.mark.parametrize(("text", "anchors"), [(CONVOLUTIONS, ["node_0", "node_2"]), (LINEAR, ["node_0", "node_3"])])
def test_means_come_back(text: str, anchors: list[str]) -> None:
    """Coarse weights move the means of the outputs; biases, made where there was none, take that back and lower the error."""
    original = model_of(text)
    model = coarsened(original)
    samples = samples_of(original)
    before = errors(original, model, samples)
    recorder = corrected(original, model, samples)
    after = errors(original, model, samples)
    assert [rewrite.key.anchor for rewrite in recorder.rewrites] == anchors
    assert operators(model) == operators(original)
    assert after[1] < 0.8 * before[1]
    assert after[0] < 0.2 * before[0]


def test_integers_stay_integers() -> None:
    """A bias in 32-bit integers is corrected in its own steps; a convolution without one is given one."""
    original = model_of(CONVOLUTIONS)
    model = quantized_weights(original)
    samples = samples_of(original)
    before = errors(original, model, samples)
    kinds = operators(model)
    corrected(original, model, samples)
    assert operators(model) == kinds
    first = model.graph.node("node_0")
    bias = first.inputs[2].producer() if first.inputs[2] is not None else None
    assert bias is not None
    assert bias.inputs[0] is not None
    assert bias.inputs[0].dtype == ir.DataType.INT32
    assert errors(original, model, samples)[1] < 0.8 * before[1]


@pytest.mark.parametrize("chosen", [Weights(bits=4, block=32, min_size=0), Dynamic(min_size=0)])
def test_quantized_linear_layers_take_a_bias(chosen: Weights | Dynamic) -> None:
    """The operators that linear layers become have a place for a bias, which is found by the name of their output."""
    original = model_of(LINEAR)
    model = original.clone()
    samples = samples_of(original)
    assert chosen.run(model, Context(samples, "cpu", measures=False))
    kinds = operators(model)
    before = errors(original, model, samples)
    with ledger.recording(ledger.Recorder()) as recorder:
        BiasCorrection().run(model, Context(samples, "cpu", original=original))
    verify_structure(model)
    assert operators(model) == kinds
    assert len(recorder.allowed) == 2
    assert errors(original, model, samples)[1] <= 1.02 * before[1]


def test_nothing_is_added_to_the_graph() -> None:
    """A MatMul whose output goes nowhere near an Add of a vector is passed by, and the ledger says so."""
    original = model_of("(float[N, 6] x) => (float[N, 6] y) { y = MatMul(x, w1) }")
    with ledger.recording(ledger.Recorder()) as recorder:
        assert not BiasCorrection().run(coarsened(original), Context(samples_of(original), "cpu", original=original))
    assert list(recorder.misses.values()) == ["nothing adds a bias to its output"]


def test_a_layer_that_did_not_change_keeps_its_bias() -> None:
    """Nothing is corrected where no weight was approximated, where there was no approximation, or without real samples."""
    original = model_of(CONVOLUTIONS)
    samples = samples_of(original)
    for context in (
        Context(samples, "cpu", original=original.clone()),
        Context(samples, "cpu"),
        Context(Samples.synthetic(original), "cpu", original=coarsened(original)),
    ):
        with ledger.recording(ledger.Recorder()) as recorder:
            assert not BiasCorrection().run(original, context)
        assert not recorder.rewrites


def test_what_does_not_help_is_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the samples kept out come out worse, the model stays as it was and the ledger says so."""
    original = model_of(CONVOLUTIONS)
    model = coarsened(original)
    shifts = {"a": np.full(8, 3.0), "y": np.full(4, -5.0)}
    monkeypatch.setattr("graphopt.passes.quantize.bias._shifts", lambda *_: shifts)
    before = {name: value.const_value for name, value in model.graph.initializers.items()}
    with ledger.recording(ledger.Recorder()) as recorder:
        assert not BiasCorrection().run(model, Context(samples_of(original), "cpu", original=original))
    assert {name: value.const_value for name, value in model.graph.initializers.items()} == before
    assert not recorder.rewrites
    assert "taken back" in recorder.notes[0]


@pytest.mark.parametrize("memory", [0, 1 << 30])
def test_a_relay_runs_what_the_model_runs(memory: int) -> None:
    """Without shifts the means at all stops are those of the whole model, whether activations wait in memory or on the disk."""
    model = model_of("""(float[N, 6] x) => (float[N, 6] y) {
        a = MatMul(x, w1)
        b = Relu(a)
        c = MatMul(x, w2)
        d = Add(b, c)
        e = MatMul(d, w3)
        y = Add(e, b)
    }""")
    stops = [Stop(name, LAST) for name in "ace"]
    feeds = list(samples_of(model))
    expected = channel_means(model, stops, feeds, SessionOptions())
    legs: list[dict[str, Array]] = []

    def no_shifts(means: Any) -> dict[str, Array]:
        legs.append(dict(means))
        return {}

    relay(model, stops, feeds, no_shifts, SessionOptions(), memory)
    assert [sorted(leg) for leg in legs] == [["a", "c"], ["e"]]
    for leg in legs:
        for name, mean in leg.items():
            np.testing.assert_allclose(mean, expected[name], atol=1e-5)


def test_a_relay_stops_at_what_constants_alone_determine() -> None:
    """As at the projection of a table of positions that is too large to be computed ahead."""
    model = model_of("(float[N, 6] x) => (float[N, 6] y) { r = Relu(w1) a = MatMul(r, w2) b = MatMul(x, a) y = MatMul(b, w3) }")
    stops, means = [Stop(name, LAST) for name in "ab"], dict[str, Array]()

    def no_shifts(found: Any) -> dict[str, Array]:
        means.update(found)
        return {}

    relay(model, stops, list(samples_of(model)), no_shifts, SessionOptions())
    for name, mean in channel_means(model, stops, list(samples_of(model)), SessionOptions()).items():
        np.testing.assert_allclose(means[name], mean, atol=1e-5)


def test_a_shift_reaches_what_comes_after() -> None:
    """What is added at a stop is there when the samples go on."""
    model = model_of("(float[N, 6] x) => (float[N, 6] y) { a = MatMul(x, w1) y = MatMul(a, w2) }")
    feeds = list(samples_of(model))
    found: dict[str, Array] = {}
    for shift in (0.0, 1.0):

        def add(means: Any, shift: float = shift) -> dict[str, Array]:
            found.update({f"{name}{shift:.0f}": mean for name, mean in means.items()})
            return {"a": np.full(6, shift)}

        relay(model, [Stop("a", LAST), Stop("y", LAST)], feeds, add, SessionOptions())
    weight = model.graph.initializers["w2"].const_value
    assert weight is not None
    np.testing.assert_allclose(found["a0"], found["a1"])
    np.testing.assert_allclose(found["y1"] - found["y0"], weight.numpy().sum(axis=0), atol=1e-5)

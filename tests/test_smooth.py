"""Scales folded into neighbours or applied by a Mul: exact, worth it with outliers, left out where they cost more than they gain."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from graphopt import ledger
from graphopt.graph.signature import signature_of
from graphopt.graph.structure import verify_structure
from graphopt.passes.base import Context, GuidedPass
from graphopt.passes.quantize.candidates import Verdict
from graphopt.passes.quantize.dynamic import Dynamic
from graphopt.passes.quantize.smooth import Smooth
from graphopt.passes.quantize.static import Static
from graphopt.passes.quantize.weights import Weights
from graphopt.runtime.session import open_session
from graphopt.samples import Samples
from graphopt.solve.smooth import Inputs, best_threshold
from graphopt.stage import stages_of
from tests.helpers import assert_same_outputs, operators, parse

WIDTH = 32
GATED = "g = MatMul(x, w1) a = Sigmoid(g) u = MatMul(x, w2) m = Mul(a, u) y = MatMul(m, w3)"
NORMALIZED = "n = LayerNormalization(x, s, b) p = MatMul(n, w1) q = MatMul(n, w2) y = Add(p, q)"
PLAIN_NORMALIZED = "n = SimplifiedLayerNormalization<axis = -1>(x, s) y = MatMul(n, w1)"
RELU = "g = MatMul(x, w1) c = Add(g, b) r = Relu(c) y = MatMul(r, w2)"
ATTENTION = """
    v = MatMul(x, w1) heads = Reshape(v, split) turned = Transpose<perm = [0, 2, 1, 3]>(heads)
    scores = MatMul(turned_q, turned_k) weights = Softmax(scores) mixed = MatMul(weights, turned)
    back = Transpose<perm = [0, 2, 1, 3]>(mixed) flat = Reshape(back, merge) y = MatMul(flat, w2)
"""
GROUPED = """
    v = MatMul(x, narrow) heads = Reshape(v, split_few) turned = Transpose<perm = [0, 2, 1, 3]>(heads)
    one = Unsqueeze(turned, two) many = Expand(one, repeat) joined = Reshape(many, all_heads)
    scores = MatMul(turned_q, turned_k) weights = Softmax(scores) mixed = MatMul(weights, joined)
    back = Transpose<perm = [0, 2, 1, 3]>(mixed) flat = Reshape(back, merge) y = MatMul(flat, w2)
"""
QUERIES = """
    q = MatMul(x, w3) q_heads = Reshape(q, split) turned_q = Transpose<perm = [0, 2, 1, 3]>(q_heads)
    k = MatMul(x, w4) k_heads = Reshape(k, split) turned_k = Transpose<perm = [0, 2, 3, 1]>(k_heads)
"""
FUSED = """
    q = MatMul(x, w3) k = MatMul(x, w4) v = MatMul(x, w1)
    mixed = com.microsoft.MultiHeadAttention<num_heads = 4>(q, k, v) y = MatMul(mixed, w2)
"""
SHARED = """
    n = LayerNormalization(x, s, b) q = MatMul(n, wide1) k = MatMul(n, wide2) v = MatMul(n, wide3)
    qk = Mul(q, k) c = Add(qk, v) t = Tanh(c) d = MatMul(t, down) y = Add(d, n)
"""
INTEGERS: Mapping[str, list[int]] = {
    "split": [0, 0, 4, 8],
    "split_few": [0, 0, 2, 8],
    "merge": [0, 0, WIDTH],
    "two": [2],
    "repeat": [1, 1, 2, 1, 1],
    "all_heads": [0, 4, -1, 8],
}


def model_of(nodes: str) -> ir.Model:
    """A model over ``x [N, M, 32]`` with random constants of the names that appear; two channels between layers are large."""
    model = parse(f"(float[N, M, {WIDTH}] x) => (float[N, M, {WIDTH}] y) {{ {nodes} }}")
    generator = np.random.default_rng(0)
    for value in [value for node in model.graph for value in node.inputs if value is not None]:
        name = value.name or ""
        if value.producer() is not None or value.is_graph_input() or value.is_initializer():
            continue
        if name in INTEGERS:
            array: np.ndarray[Any, Any] = np.array(INTEGERS[name])
        else:
            vectors = dict.fromkeys(("s", "b", "even"), (WIDTH,))
            vectors["wide"] = (3 * WIDTH,)
            matrices = dict.fromkeys(("wide1", "wide2", "wide3"), (WIDTH, 256)) | {"narrow": (WIDTH, WIDTH // 2), "down": (256, WIDTH)}
            shape = (vectors | matrices).get(name, (WIDTH, WIDTH))
            array = generator.normal(size=shape).astype(np.float32)
            if name in ("w1", "w2", "s", "narrow"):
                array[..., [3, 12]] *= 30
        value.const_value = ir.tensor(array, name=name)
        value.type, value.shape = ir.TensorType(value.const_value.dtype), ir.Shape(array.shape)
        model.graph.register_initializer(value)
    for index, node in enumerate(model.graph):
        node.name = f"node_{index}"
    return model


def samples_of(model: ir.Model) -> Samples:
    """Real samples, as far as a pass can tell, of varying lengths."""
    generator = np.random.default_rng(1)
    feeds = [{"x": generator.normal(size=(2, 5 + index, WIDTH)).astype(np.float32)} for index in range(4)]
    return Samples.open(feeds, signature_of(model))


def smoothed(
    model: ir.Model, samples: Samples, denied: Collection[ledger.Key] = (), served: GuidedPass | None = None
) -> tuple[ir.Model, ledger.Recorder]:
    """A clone, which is sound, after the pass in a stage with another one."""
    after = model.clone()
    passes = (Smooth(), served or Dynamic(min_size=0))
    with ledger.recording(ledger.Recorder(frozenset(denied))) as recorder:
        Smooth().run(after, Context(samples, "cpu", measures=False, passes=passes))
    verify_structure(after)
    return after, recorder


def error(reference: ir.Model, model: ir.Model, samples: Samples) -> float:
    """The mean squared error of the output."""
    sessions = [open_session(each) for each in (reference, model)]
    gaps = [np.square(sessions[1].run(feed)["y"] - sessions[0].run(feed)["y"]).mean() for feed in samples]
    return float(np.mean(gaps))


@pytest.mark.parametrize("nodes", [GATED, NORMALIZED, PLAIN_NORMALIZED, RELU, QUERIES + ATTENTION, QUERIES + GROUPED, FUSED])
def test_scales_are_exact_and_lower_the_error_of_8_bits(nodes: str) -> None:
    """The same function, no new operator, and at most half of the error once the layers that read the scaled values are quantized."""
    model = model_of(nodes)
    samples = samples_of(model)
    after, recorder = smoothed(model, samples)
    assert len(recorder.rewrites) == 1, recorder.misses
    assert operators(after) == operators(model)
    assert_same_outputs(model, after, next(iter(samples)), tolerance=2e-5)
    found = []
    for each in (model, after):
        quantized = each.clone()
        assert Dynamic(min_size=0, include=(recorder.rewrites[0].key.anchor,)).run(quantized, Context(samples, "cpu", measures=False))
        found.append(error(model, quantized, samples))
    assert found[1] < 0.5 * found[0]


def test_heads_that_share_values_share_scales() -> None:
    """With grouped queries the output projection's columns of one group are scaled alike."""
    model = model_of(QUERIES + GROUPED)
    after, _ = smoothed(model, samples_of(model))
    old, new = (each.graph[-1].inputs[1] for each in (model, after))
    assert old is not None
    assert new is not None
    assert old.const_value is not None
    assert new.const_value is not None
    factors = (new.const_value.numpy() / old.const_value.numpy())[:, 0].reshape(2, 2, 8)
    np.testing.assert_allclose(factors[:, 0], factors[:, 1], rtol=1e-5)
    assert factors.max() > 2 * factors.min()


@pytest.mark.parametrize(
    ("nodes", "reason"),
    [
        ("n = LayerNormalization(x, s, b) p = MatMul(n, w1) y = Add(p, n)", "used elsewhere"),
        ("g = MatMul(x, w1) a = Tanh(g) y = MatMul(a, w2)", "takes no factors"),
        ("g = MatMul(x, w1) a = Add(x, g) y = MatMul(a, w2)", "adds values"),
        ("g = MatMul(x, w1) a = Softmax(g) b2 = Mul(g, a) y = MatMul(b2, w2)", "used elsewhere too and Softmax"),
        ("y = MatMul(x, w1)", "made by no operator"),
        (FUSED.replace("(q, k, v)", "(q, k, v, wide)"), "adds to them"),
    ],
)
def test_what_cannot_take_scales_is_left(nodes: str, reason: str) -> None:
    """Other uses, other functions, residual sums and inputs of the model: nothing changes, and the ledger says why."""
    model = model_of(nodes)
    after, recorder = smoothed(model, samples_of(model))
    assert not [rewrite for rewrite in recorder.rewrites if rewrite.key.anchor == model.graph[-1].name]
    assert any(reason in text for text in recorder.misses.values()), recorder.misses
    assert_same_outputs(model, after, next(iter(samples_of(model))))


def readers(model: ir.Model, operator: str) -> list[str]:
    """The nodes that read what the first node of an operator makes."""
    value = next(node for node in model.graph if node.op_type == operator).outputs[0]
    return sorted(node.name or "" for node in model.graph if value in node.inputs)


def test_one_mul_scales_what_a_residual_sum_reads_too() -> None:
    """The layers that share a normalization with a later sum read it through one Mul, the sum does not; their error in 8 bits falls."""
    model = model_of(SHARED)
    samples = samples_of(model)
    after, recorder = smoothed(model, samples)
    (made,) = recorder.rewrites
    assert made.key.anchor == "node_1"
    assert made.reason.startswith("explicit Mul")
    assert operators(after) == ["LayerNormalization", "Mul", *operators(model)[1:]]
    assert readers(after, "LayerNormalization") == sorted([*made.added, "node_8"])
    assert readers(after, "Mul") == ["node_1", "node_2", "node_3"]
    assert_same_outputs(model, after, next(iter(samples)), tolerance=2e-5)
    found = []
    for each in (model, after):
        quantized = each.clone()
        Dynamic(min_size=0, include=("node_[123]",)).run(quantized, Context(samples, "cpu", measures=False))
        found.append(error(model, quantized, samples))
    assert found[1] < 0.5 * found[0]


def test_a_mul_serves_only_layers_that_will_be_quantized() -> None:
    """A layer that stays in float keeps its input and weight; where too few others are left, there is no Mul at all."""
    model = model_of(SHARED)
    samples = samples_of(model)
    first, second = (ledger.Key("dynamic", "", name) for name in ("node_1", "node_2"))
    after, recorder = smoothed(model, samples, [first])
    assert len(recorder.rewrites) == 1
    assert readers(after, "Mul") == ["node_2", "node_3"]
    assert_same_outputs(model, after, next(iter(samples)), tolerance=2e-5)
    after, recorder = smoothed(model, samples, [first, second])
    assert not recorder.rewrites
    assert operators(after) == operators(model)


def test_no_mul_for_layers_that_are_slower_in_8_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the measurement that ``dynamic`` goes by speaks against its form, nothing is put before the layers."""
    monkeypatch.setattr(
        "graphopt.passes.quantize.smooth.race", lambda _, places, *__: {place.layer.name: Verdict("", "slow") for place in places}
    )
    model = model_of(SHARED)
    after, recorder = smoothed(model, samples_of(model))
    assert not recorder.rewrites
    assert operators(after) == operators(model)


def test_no_mul_without_outliers() -> None:
    """Channels of similar ranges are worth no Mul, and the ledger says what it would have gained."""
    model = model_of(SHARED.replace("(x, s, b)", "(x, even, b)"))
    value = next(value for name, value in model.graph.initializers.items() if name == "even")
    value.const_value = ir.tensor(np.linspace(1, 2, WIDTH, dtype=np.float32), name="even")
    after, recorder = smoothed(model, samples_of(model))
    assert not recorder.rewrites
    assert operators(after) == operators(model)
    assert any("only a Mul" in reason or "no scales" in reason for reason in recorder.misses.values()), recorder.misses


def test_shared_weights_are_not_touched() -> None:
    """A weight that another layer uses too keeps its content there."""
    model = model_of("g = MatMul(x, w1) r = Relu(g) z = MatMul(r, w1) y = Add(z, x)")
    after, recorder = smoothed(model, samples_of(model))
    assert len(recorder.rewrites) == 1
    assert_same_outputs(model, after, next(iter(samples_of(model))), tolerance=2e-5)


def test_made_up_samples_tell_nothing() -> None:
    """Without real samples nothing is scaled."""
    model = model_of(RELU)
    with ledger.recording(ledger.Recorder()) as recorder:
        assert not Smooth().run(model, Context(Samples.synthetic(model), "cpu"))
    assert "outliers" in recorder.notes[0]


def test_channels_of_a_class_get_one_scale() -> None:
    """The solver keeps the channels of a class together, and the largest of them decides."""
    reach = np.where(np.arange(32) == 1, 100.0, 1.0)
    inputs = Inputs(np.tile(-reach, (50, 1)), np.tile(reach, (50, 1)), reach**2 / 3)
    scales = best_threshold(np.random.default_rng(0).normal(size=(16, 32)), inputs, np.arange(32) // 2)
    assert scales[0] == scales[1] > 2
    np.testing.assert_array_equal(scales[2:], 1.0)


@pytest.mark.parametrize(
    ("served", "anchors"),
    [
        (Dynamic(min_size=0), {"node_2", "node_3"}),
        (Dynamic(min_size=0, exclude=("node_3",)), {"node_2"}),
        (Dynamic(min_size=0, include=("node_3",)), {"node_3"}),
        (Dynamic(), set()),
        (Static(exclude=("node_2",)), {"node_3"}),
        (Weights(min_size=0), set()),
    ],
)
def test_scales_serve_what_follows(served: GuidedPass, anchors: set[str]) -> None:
    """Only inputs of layers whose data the following pass quantizes, by its own options, are scaled."""
    model = model_of("n = LayerNormalization(x, s, b) m = LayerNormalization(x, s, b) p = MatMul(n, w1) q = MatMul(m, w2) y = Add(p, q)")
    after, recorder = smoothed(model, samples_of(model), served=served)
    assert {rewrite.key.anchor for rewrite in recorder.rewrites} == anchors, recorder.misses
    assert_same_outputs(model, after, next(iter(samples_of(model))), tolerance=2e-5)


def test_stages_tell_preparations_what_follows() -> None:
    """The context of a stage names its passes, also where the preparations are run by themselves."""
    context = Context(Samples.open([{"x": np.zeros((1, 1, WIDTH), np.float32)}], signature_of(model_of(RELU))), "cpu")
    first, second = stages_of([Smooth(), Dynamic(min_size=7), Smooth(), Weights()], lambda: context)
    assert first.context is not None
    assert first.context.passes == (Smooth(), Dynamic(min_size=7))
    assert first.of_role("prepare").context is first.context
    assert second.context is not None
    assert second.context.passes == (Smooth(), Weights())


def test_scales_that_hurt_on_samples_kept_out_are_not_made() -> None:
    """Where the samples kept out have their outliers elsewhere, so that weights of outliers would grow for nothing, nothing changes."""
    model = model_of("n = Mul(x, even) y = MatMul(n, w3)")
    [even] = [value for name, value in model.graph.initializers.items() if name == "even"]
    even.const_value = ir.tensor(np.ones(WIDTH, np.float32), name="even")
    generator = np.random.default_rng(0)
    feeds = [{"x": generator.normal(size=(2, 8, WIDTH)).astype(np.float32)} for _ in range(8)]
    for number, feed in enumerate(feeds):
        feed["x"][..., [1, 2, 3, 4] if number % 4 != 3 else [5, 6, 7, 8]] *= 30
    usual = [{"x": feed["x"]} for number, feed in enumerate(feeds) if number % 4 != 3]
    _, recorder = smoothed(model, Samples.open(usual, signature_of(model)))
    assert len(recorder.rewrites) == 1
    after, recorder = smoothed(model, Samples.open(feeds, signature_of(model)))
    assert not recorder.rewrites
    assert any("kept out" in reason for reason in recorder.misses.values()), recorder.misses
    assert_same_outputs(model, after, feeds[0])

"""Static quantization: islands, shared grids, forms that run as planned, layers that stay float."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from graphopt import ledger
from graphopt.graph.edits import name_nodes
from graphopt.graph.signature import signature_of
from graphopt.graph.structure import verify_structure
from graphopt.graph.view import View
from graphopt.passes.base import Context
from graphopt.passes.quantize.bias import BiasCorrection
from graphopt.passes.quantize.static import Static, prefix, rule
from graphopt.passes.quantize.static.closeness import decibels
from graphopt.passes.quantize.static.islands import Plan, plan_of
from graphopt.passes.quantize.static.kernels import Ground
from graphopt.runtime.kernels import executed_kernels
from graphopt.runtime.session import open_session
from graphopt.samples import Samples
from graphopt.targets import TARGETS
from tests.helpers import parse

Array = np.ndarray[Any, Any]

CHANNELS = 16
WEIGHTS: Mapping[str, tuple[int, ...]] = {
    "w1": (CHANNELS, CHANNELS, 3, 3),
    "w2": (CHANNELS, CHANNELS, 3, 3),
    "w3": (CHANNELS, CHANNELS, 1, 1),
    "deep": (CHANNELS, 1, 3, 3),
    "line": (CHANNELS, CHANNELS, 3),
    "up": (CHANNELS, CHANNELS, 2, 2),
    "matrix": (CHANNELS, CHANNELS),
    "b": (CHANNELS,),
}
CONSTANTS: Mapping[str, Array] = {
    "zero": np.array(0, np.float32),
    "six": np.array(6, np.float32),
    "less": np.array(-0.3, np.float32),
    "rows": np.array([0, CHANNELS], np.int64),
    "picture": np.array([1, CHANNELS, 16, 4], np.int64),
    "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64),
    "starts": np.array([0], np.int64),
    "ends": np.array([4], np.int64),
    "axes": np.array([2], np.int64),
    "scales": np.array([1, 1, 2, 2], np.float32),
}
CONV1 = "c1 = Conv<pads = [1, 1, 1, 1]>(x, w1, b)"


def model_of(nodes: str, shape: str = "1, 16, 8, 8", output: str = "N, C, H, W", opset: int = 17) -> ir.Model:
    """A model of nodes over ``x`` with random weights and the constants above."""
    model = parse(f"(float[{shape}] x) => (float[{output}] y) {{ {nodes} }}", opset)
    generator = np.random.default_rng(0)
    free = {value.name: value for node in model.graph for value in node.inputs if value is not None and value.producer() is None}
    for name in (*WEIGHTS, *CONSTANTS):
        if name in free:
            array = CONSTANTS[name] if name in CONSTANTS else generator.normal(size=WEIGHTS[name]).astype(np.float32) / 8
            value, tensor = free[name], ir.tensor(array, name=name)
            value.const_value, value.type, value.shape = tensor, ir.TensorType(tensor.dtype), ir.Shape(array.shape)
            model.graph.register_initializer(value)
    name_nodes(model)
    return model


def samples_of(model: ir.Model, count: int = 4) -> Samples:
    """Real samples, as far as a pass can tell."""
    generator = np.random.default_rng(1)
    shape = [dim if isinstance(dim, int) else 4 for dim in model.graph.inputs[0].shape or ()]
    return Samples.open([{"x": generator.normal(size=shape).astype(np.float32)} for _ in range(count)], signature_of(model))


def plan(model: ir.Model) -> Plan:
    """The islands of a model on the CPU."""
    return plan_of(model, Ground(View(model), TARGETS["cpu"]), lambda _: True)


def quantized(model: ir.Model, chosen: Static = Static(), denied: frozenset[ledger.Key] = frozenset()) -> ledger.Recorder:  # noqa: B008
    """Quantizes a model in place, and checks that it is sound, close to what it was, and runs as planned."""
    samples, before = samples_of(model), model.clone()
    with ledger.recording(ledger.Recorder(denied)) as recorder:
        assert chosen.run(model, Context(samples, "cpu", measures=False))
    verify_structure(model)
    counts = executed_kernels(model).counts
    for rewrite in recorder.rewrites:
        for kernel in rewrite.kernels:
            domain, _, operator = kernel.rpartition("::")
            assert counts[domain, operator], f"{kernel} does not run: {counts}"
    for feed in samples:
        expected, found = (open_session(one).run(feed)["y"] for one in (before, model))
        plain = open_session(model, "none").run(feed)["y"]
        assert found.shape == plain.shape == expected.shape
        for one in (found, plain):
            assert np.square(one - expected).sum() < 1e-2 * np.square(expected).sum()
    return recorder


def runs(model: ir.Model) -> str:
    """The kernels that run, sorted, those that only convert or reorder left out."""
    passed = ("QuantizeLinear", "DequantizeLinear", "Transpose", "ReorderInput", "ReorderOutput")
    return " ".join(sorted(node.op_type for node in executed_kernels(model).nodes if node.op_type not in passed))


def conversions(model: ir.Model) -> tuple[int, int]:
    """How many values are quantized and dequantized when the model runs."""
    counts = executed_kernels(model).counts
    return counts["", "QuantizeLinear"], counts["", "DequantizeLinear"]


CONV2 = "y = Conv<pads = [1, 1, 1, 1]>({}, w2, b)"


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        (f"{CONV1} {CONV2.format('c1')}", "QLinearConv QLinearConv"),
        (f"{CONV1} r = Relu(c1) {CONV2.format('r')}", "QLinearConv QLinearConv"),
        (f"{CONV1} r = Clip(c1, zero, six) {CONV2.format('r')}", "QLinearConv QLinearConv"),
        (f"{CONV1} s = Add(c1, x) r = Relu(s) {CONV2.format('r')}", "QLinearAdd QLinearConv QLinearConv"),
        (f"{CONV1} g = Sigmoid(c1) m = Mul(c1, g) {CONV2.format('m')}", "QLinearConv QLinearConv QLinearMul QLinearSigmoid"),
        (f"{CONV1} g = LeakyRelu<alpha = 0.1>(c1) {CONV2.format('g')}", "QLinearConv QLinearConv QLinearLeakyRelu"),
        (
            f"{CONV1} g = HardSigmoid<alpha = 0.16666667, beta = 0.5>(c1) m = Mul(c1, g) {CONV2.format('m')}",
            "QLinearAdd QLinearConv QLinearConv QLinearMul",
        ),
        (f"{CONV1} p = MaxPool<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(c1) {CONV2.format('p')}", "NhwcMaxPool QLinearConv QLinearConv"),
        (f"{CONV1} p = AveragePool<kernel_shape = [2, 2]>(c1) {CONV2.format('p')}", "QLinearAveragePool QLinearConv QLinearConv"),
        (f"{CONV1} p = GlobalAveragePool(c1) {CONV2.format('p')}", "QLinearConv QLinearConv QLinearGlobalAveragePool"),
        (f"{CONV1} p = Pad(c1, pads, zero) {CONV2.format('p')}", "Pad QLinearConv QLinearConv"),
        (f"{CONV1} p = Slice(c1, starts, ends, axes) {CONV2.format('p')}", "QLinearConv QLinearConv Slice"),
        (f"{CONV1} p = Reshape(c1, picture) {CONV2.format('p')}", "QLinearConv QLinearConv Reshape"),
        (f'{CONV1} p = Resize<mode = "nearest">(c1, , scales) {CONV2.format("p")}', "QLinearConv QLinearConv Resize"),
        (f"{CONV1} d = Conv<group = 16>(c1, deep) y = Conv(d, w3, b)", "QLinearConv QLinearConv QLinearConv"),
        (f"{CONV1} p = DepthToSpace<blocksize = 2>(c1) y = SpaceToDepth<blocksize = 2>(p)", "DepthToSpace QLinearConv SpaceToDepth"),
        (f"{CONV1} c2 = Conv(x, w3) c = Concat<axis = 2>(c1, c2) {CONV2.format('c')}", "Concat QLinearConv QLinearConv QLinearConv"),
        (
            f"{CONV1} r = Relu(c1) c2 = Conv(x, w3) c = Concat<axis = 2>(r, c2) {CONV2.format('c')}",
            "QLinearConcat QLinearConv QLinearConv QLinearConv",
        ),
    ],
)
def test_islands_run_as_planned(nodes: str, expected: str) -> None:
    """All that stands between two convolutions runs on codes; they are made once at the entry and left once at the exit."""
    model = model_of(nodes)
    quantized(model)
    assert runs(model) == expected
    assert conversions(model) == (1, 1)


def test_a_layer_that_is_denied_stays_float() -> None:
    """Between codes on both sides the runtime would quantize a float convolution by itself, coarsely; here it does not."""
    nodes = f"{CONV1} r = Relu(c1) c2 = Conv(r, w3, b) r2 = Relu(c2) {CONV2.format('r2')}"
    model = model_of(nodes)
    [name] = [node.name for node in model.graph if node.outputs[0].name == "c2"]
    recorder = quantized(model, denied=frozenset({ledger.Key("static", "", name or "")}))
    assert len(recorder.rewrites) == 2
    assert runs(model) == "Conv QLinearConv QLinearConv"
    assert conversions(model) == (2, 2)
    model = model_of(nodes)
    quantized(model, Static(exclude=("w3",)))
    assert runs(model) == "Conv QLinearConv QLinearConv"


@pytest.mark.parametrize(
    ("layer", "kernel", "chosen"),
    [
        ("t = ConvTranspose<strides = [2, 2]>(c1, up, b)", "ConvTranspose", Static()),
        ("m = MatMul(c1, matrix) t = Relu(m)", "MatMul", Static(exclude=("matrix",))),
        ("m = MatMul(c1, matrix) t = Add(m, b)", "MatMul", Static(exclude=("matrix",))),
    ],
)
def test_other_layers_between_codes_stay_float(layer: str, kernel: str, chosen: Static) -> None:
    """What has no integer kernel in its place, or must not, keeps its float one."""
    model = model_of(f"{CONV1} {layer} {CONV2.format('t')}", shape="1, 16, 8, 8" if kernel == "ConvTranspose" else "1, 16, 8, 16")
    quantized(model, chosen)
    assert {kernel, "Gemm"} & set(runs(model).split())
    assert conversions(model) == (2, 2)


def test_products_run_within_islands() -> None:
    """A MatMul with its bias and a Gemm run in integers where codes come in and go out."""
    nodes = "c1 = Conv(x, w3, b) f = Flatten(c1) h = MatMul(f, matrix) i = Add(h, b)"
    nodes += " g = Gemm<transB = 1>(i, matrix, b) r = Relu(g) u = Unsqueeze(r, axes)"
    nodes += " v = Unsqueeze(u, axes) y = Conv(v, w3, b)"
    model = model_of(nodes, shape="1, 16, 1, 1")
    quantized(model)
    assert runs(model).count("QGemm") == 2
    assert runs(model).count("QLinearConv") == 2
    assert conversions(model) == (1, 1)
    alone = model_of("y = Gemm<transB = 1>(x, matrix, b)", shape="4, 16", output="N, C")
    assert not Static().run(alone, Context(samples_of(alone), "cpu", measures=False))


def test_biases_in_units_of_the_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    """For runtimes that make no integer kernel with a float bias: 32-bit codes, their scale that of the data times that of the weight."""
    monkeypatch.setattr("graphopt.targets.provider.fuses_float_biases", lambda: False)
    nodes = "c1 = Conv(x, w3) f = Flatten(c1) h = MatMul(f, matrix) i = Add(h, b)"
    model = model_of(
        f"{nodes} g = Gemm<transB = 1>(i, matrix, b) u = Unsqueeze(g, axes) v = Unsqueeze(u, axes) y = Conv(v, w3, b)", "1, 16, 1, 1"
    )
    original, context = model.clone(), Context(samples_of(model), "cpu", measures=False)
    quantized(model)
    with ledger.recording(ledger.Recorder()) as recorder:
        assert BiasCorrection().run(model, dataclasses.replace(context, original=original))  # gives the first layer a bias too
    view = View(model)
    layers = [node for node in model.graph if node.op_type in ("Conv", "MatMul", "Gemm")]
    for layer in layers:
        adder, slot = (layer.outputs[0].consumers()[0], 1) if layer.op_type == "MatMul" else (layer, 2)
        makers = [view.producer(value, "DequantizeLinear") for value in (*layer.inputs[:2], adder.inputs[slot])]
        scales = [np.asarray(view.constant(maker.inputs[1])) for maker in makers if maker is not None]
        np.testing.assert_array_equal(scales[2], scales[0] * scales[1])
        assert view.dtype(makers[2].inputs[0] if makers[2] else None) == ir.DataType.INT32
    assert len(layers) == len(recorder.rewrites) == 4
    assert conversions(model) == (1, 1)


def test_values_cut_off_start_at_zero_and_end_where_they_are_cut() -> None:
    """A Relu's codes have the zero point 0; a Clip's end no later than the Clip."""
    model = model_of(f"{CONV1} r = Clip(c1, zero, six) {CONV2.format('r')}")
    found = plan(model)
    ceilings = {value.name: grid.ceiling for grid in found.grids for value in grid.values}
    assert ceilings == {"x": None, "r": 6.0, "y": None}
    wide = samples_of(model)
    big = Samples.open([{"x": 100 * feed["x"]} for feed in wide], signature_of(model))
    Static().run(model, Context(big, "cpu", measures=False))
    [quantize] = [node for node in model.graph if node.op_type == "QuantizeLinear" and node.inputs[0].name == "r"]  # type: ignore[union-attr]
    scale, zero_point = (value.const_value.numpy() for value in quantize.inputs[1:])  # type: ignore[union-attr]
    assert zero_point == 0
    assert 5.99 < float(scale) * 255 <= 6.0
    assert runs(model) == "QLinearConv QLinearConv"


def test_values_that_are_moved_share_a_grid() -> None:
    """Pass-through operators and joined parts have one grid; a part that others need, or that is cut off otherwise, its own."""
    moved = "p = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(c1) c2 = Conv<strides = [2, 2]>(x, w3)"
    moved += " q = Slice(c2, starts, ends, axes)"
    model = model_of(f"{CONV1} {moved} c = Concat<axis = 2>(p, q) {CONV2.format('c')}")
    groups = [{value.name for value in grid.values} for grid in plan(model).grids]
    assert {"c1", "p", "c2", "q", "c"} in groups
    model = model_of(
        f"{CONV1} c2 = Conv(x, w3) c = Concat<axis = 2>(c1, c2) d = Conv(c1, w3) s = Add(d, c2) {CONV2.format('c')} z = Conv(s, w3)"
    )
    assert all(len(grid.values) == 1 for grid in plan(model).grids)


@pytest.mark.parametrize(
    "nodes",
    [
        "a = Add(x, x) y = Mul(a, x)",
        "a = Sigmoid(x) y = Mul(a, x)",
        "y = MaxPool<kernel_shape = [2, 2]>(x)",
    ],
)
def test_islands_without_layers_are_given_up(nodes: str) -> None:
    """Arithmetic and movement alone gain nothing from codes."""
    assert not plan(model_of(nodes)).kernels


def test_arithmetic_after_the_last_layer_stays_float() -> None:
    """It would round once more and save nothing; what only moves goes in codes."""
    model = model_of(f"{CONV1} t = Transpose<perm = [0, 2, 3, 1]>(c1) y = Add(t, t)")
    assert [node.op_type for node in plan(model).kernels] == ["Conv", "Transpose"]


def test_older_models_are_raised() -> None:
    """Scales per channel need opset 13: the ledger tells that the model was raised."""
    model = model_of(f"{CONV1} r = Relu(c1) {CONV2.format('r')}", opset=11)
    recorder = quantized(model)
    assert recorder.rewrites[0].key == ledger.Key("opset", "raise-opset", "11 to 13")
    assert runs(model) == "QLinearConv QLinearConv"


def test_without_real_samples_nothing_happens() -> None:
    """Made-up samples tell no ranges: the ledger says what to give."""
    model = model_of(CONV2.format("x"))
    with ledger.recording(ledger.Recorder()) as recorder:
        assert not Static().run(model, Context(Samples.synthetic(model), "cpu", measures=False))
    assert "--data" in recorder.notes[0]


def test_a_switched_off_channel_keeps_its_bias() -> None:
    """A channel of next to no weight has a bias of more than 2**31 of its own steps: its scale is made coarser."""
    model = model_of(f"{CONV1} {CONV2.format('c1')}")
    weight = np.array(model.graph.initializers["w1"].const_value.numpy())  # type: ignore[union-attr]
    weight[3] *= 1e-12
    model.graph.initializers["w1"].const_value = ir.tensor(weight, name="w1")
    quantized(model)


def test_seven_bits_fit_into_sixteen() -> None:
    """Weights of 7 bits are stored in 8, within 64 steps of zero."""
    model = model_of(f"{CONV1} {CONV2.format('c1')}")
    quantized(model, Static(weight_bits=7))
    codes = [value.const_value.numpy() for value in model.graph.initializers.values() if value.dtype == ir.DataType.INT8]  # type: ignore[union-attr]
    assert len(codes) == 2
    assert all(array.min() >= -64 and array.max() <= 63 for array in codes)


@pytest.mark.parametrize("rule", ["minmax", "percentile", "entropy", "mse"])
def test_ranges_by_all_rules(rule: Any) -> None:
    """All rules give grids, and the same kernels run."""
    model = model_of(f"{CONV1} r = Relu(c1) {CONV2.format('r')}")
    assert Static(ranges=rule).run(model, Context(samples_of(model), "cpu", measures=False))
    assert runs(model) == "QLinearConv QLinearConv"


@pytest.mark.parametrize(
    ("nodes", "low"),
    [
        ("h = HardSigmoid(c1) o = Mul(c1, h)", 2.5),
        ("h = HardSigmoid(c1) o = Mul(h, c1)", 2.5),
        ("o = HardSigmoid(c1)", 2.5),
        ("h = HardSigmoid(c1) m = Mul(c1, h) o = Add(m, c1)", None),
        ("h = HardSigmoid(c1) m = Mul(c1, h) o = Add(m, h)", None),
        ("h = HardSigmoid(c1) o = Mul(c1, less)", None),
    ],
)
def test_ranges_end_where_an_activation_is_flat(nodes: str, low: float | None) -> None:
    """What HardSigmoid takes to 0 needs no codes, unless something else needs the numbers themselves."""
    model = model_of(f"{CONV1} {nodes} {CONV2.format('o')}")
    weight = model.graph.initializers["w1"]
    weight.const_value = ir.tensor(4 * weight.const_value.numpy(), name="w1")  # type: ignore[union-attr]
    quantized(model)
    conv = next(node for node in model.graph if node.op_type == "Conv")
    quantize = next(use.node for use in conv.outputs[0].uses() if use.node.op_type == "QuantizeLinear")
    scale, zero_point = (float(value.const_value.numpy()) for value in quantize.inputs[1:])  # type: ignore[union-attr]
    below = scale * zero_point
    assert below > 4 if low is None else below == pytest.approx(low, abs=0.2)


def test_layers_are_asked_for_one_by_one() -> None:
    """With leave for one rewrite the most harmless layer is quantized, and that one alone."""
    model = model_of(f"{CONV1} {CONV2.format('c1')}")
    with ledger.recording(ledger.Recorder(limit=1)) as recorder:
        assert Static().run(model, Context(samples_of(model), "cpu", measures=False))
    assert len(recorder.rewrites) == 1
    assert runs(model) == "Conv QLinearConv"


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        (f"{CONV1} m = Mul(c1, six) s = Add(m, six) {CONV2.format('s')}", "QLinearConv QLinearConv"),
        (f"{CONV1} r = Relu(c1) m = Mul(r, six) s = Add(m, less) {CONV2.format('s')}", "QLinearConv QLinearConv"),
        (f"{CONV1} r = Relu(c1) m = Mul(r, six) s = Add(m, six) {CONV2.format('s')}", "QLinearAdd QLinearConv QLinearConv"),
        (f"{CONV1} s = Add(c1, six) m = Mul(s, six) t = Add(m, c1) {CONV2.format('t')}", "QLinearAdd QLinearAdd QLinearConv QLinearConv"),
    ],
)
def test_one_number_moves_the_grid(nodes: str, expected: str) -> None:
    """A product with a number, or a sum with one, changes what codes mean and costs nothing, where 0 has a code before and after."""
    model = model_of(nodes)
    quantized(model)
    assert runs(model) == expected
    assert conversions(model) == (1, 1)


TIMED = [1.0, 0.8, 0.7, 0.72, 1.2]


@pytest.mark.parametrize(
    ("levels", "chosen", "figures"),
    [
        ([30.0, 30.0, 30.0, 30.0, 30.0], 2, "0.70 of the time and is 0.0 dB closer"),
        ([30.0, 30.0, 30.0, 32.0, 30.0], 4, "0.72 of the time and is 2.0 dB closer"),
        ([30.0, 30.0, 30.0, 30.0, 90.0], 2, "0.70 of the time"),
        ([30.0, 30.0, 30.0, 30.5, 30.0], 2, "0.70 of the time"),
        ([14.0, 14.0, 14.0, 14.5, 14.0], 4, "0.72 of the time and is 0.5 dB closer"),
    ],
)
def test_first_layers_stay_in_float_where_that_pays(
    levels: list[float], chosen: int, figures: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Time and noise decide together, no variant that is far slower is taken however close it is, and the ledger has the figures."""
    keys = [ledger.Key("static", "", f"layer{number}") for number in range(16)]
    tried: list[int] = []

    def variant(in_float: Sequence[ledger.Key]) -> ir.Model:
        tried.append(len(in_float))
        return model

    model = parse("(float[N, 4] x) => (float[N, 4] y) { y = Relu(x) }")
    monkeypatch.setattr(prefix, "seconds_of", lambda models, feed, options: TIMED)
    monkeypatch.setattr(prefix, "decibels", lambda model, variants, context: levels)
    samples = Samples(lambda: iter([{"x": np.zeros((3, 4), np.float32)}]), 1, "one sample")
    with ledger.recording(ledger.Recorder()) as recorder:
        assert prefix.float_prefix(model, keys, variant, Context(samples, "cpu")) == keys[:chosen]
    assert tried == [0, 1, 2, 4, 8]
    assert [drop.key for drop in recorder.declined] == keys[:chosen]
    assert figures in recorder.declined[0].reason
    assert prefix.float_prefix(model, keys, variant, Context(samples, "cpu", measures=False)) == []


@pytest.mark.parametrize(("levels", "chosen"), [([30.0, 30.5], "mse"), ([30.0, 32.0], "percentile")])
def test_the_rule_of_ranges_is_measured(levels: list[float], chosen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another rule is taken where it is clearly closer; a replay, to which the first one is denied, takes it without measuring."""
    model = parse("(float[N, 4] x) => (float[N, 4] y) { y = Relu(x) }")
    monkeypatch.setattr(rule, "decibels", lambda model, variants, context: levels)
    context = Context(samples_of(model), "cpu")
    with ledger.recording(ledger.Recorder()) as recorder:
        assert rule.fitting_rule(model, "static", lambda _: model, "all", context) == chosen
    declined = frozenset(drop.key for drop in recorder.declined)
    assert declined == ({ledger.Key("static", "mse")} if chosen == "percentile" else set())
    with ledger.recording(ledger.Recorder(declined)):
        assert rule.fitting_rule(model, "static", lambda _: model, "all", Context(context.samples, "cpu", measures=False)) == chosen


def test_closeness_is_that_of_the_worst_output() -> None:
    """The noise of a variant is that of the output that has the most, relative to its own power."""
    model = parse("(float[N, 16] x) => (float[N, 16] y, float[N, 16] z) { y = Identity(x) z = Neg(x) }")
    variant = parse("(float[N, 16] x) => (float[N, 16] y, float[N, 16] z) { h = Add(x, x) y = Identity(x) z = Neg(h) }")
    assert decibels(model, [model, variant], Context(samples_of(model), "cpu")) == pytest.approx([200.0, 0.0], abs=1e-6)

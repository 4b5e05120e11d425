"""Cross-layer equalization: the same function, equal ranges on both sides, refusals where factors do not pass."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from graphopt import ledger
from graphopt.graph.structure import verify_structure
from graphopt.passes.base import Context
from graphopt.passes.quantize.equalize import Equalize
from graphopt.runtime.session import open_session
from graphopt.samples import Samples
from graphopt.solve.grid import Scheme, fit_extremes, round_to_nearest
from tests.helpers import assert_same_outputs, operators, parse

CHAIN = "a = Conv(x, w1, b1) r = Relu(a) y = Conv(r, w2)"
DEPTHWISE = "a = Conv(x, w1, b1) r = Relu(a) d = Conv<group = 8, pads = [1, 1, 1, 1]>(r, dw, b1) l = LeakyRelu(d) y = Conv(l, w2)"
TWO_READERS = "a = Conv(x, w1) r = Relu(a) p = Conv(r, w2) q = Conv(r, w2) y = Add(p, q)"
SHAPES = {"w1": (8, 3, 1, 1), "b1": (8,), "dw": (8, 1, 3, 3), "w2": (4, 8, 1, 1), "w3": (8, 8, 1, 1), "grouped": (8, 2, 1, 1)}

Array = np.ndarray[Any, Any]


def model_of(nodes: str) -> ir.Model:
    """A model over ``x [N, 3, 8, M]`` with random constants, whose first convolution's channels differ by a factor of a hundred."""
    model = parse(f"(float[N, 3, 8, M] x) => (float[N, C, 8, M] y) {{ {nodes} }}")
    generator = np.random.default_rng(0)
    for value in [value for node in model.graph for value in node.inputs if value is not None]:
        name = value.name or ""
        if name not in SHAPES or value.is_initializer():
            continue
        array = generator.normal(size=SHAPES[name]).astype(np.float32)
        if name == "w1":
            array *= np.geomspace(0.1, 10, 8, dtype=np.float32).reshape(-1, 1, 1, 1)
        value.const_value = ir.tensor(array, name=name)
        value.type, value.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(array.shape)
        model.graph.register_initializer(value)
    for index, node in enumerate(model.graph):
        node.name = f"node_{index}"
    return model


def equalized(model: ir.Model) -> tuple[ir.Model, ledger.Recorder]:
    """A clone after the pass, which is sound."""
    after = model.clone()
    with ledger.recording(ledger.Recorder()) as recorder:
        Equalize().run(after, Context(Samples.synthetic(model), "cpu"))
    verify_structure(after)
    return after, recorder


def weight_of(model: ir.Model, node: str, slot: int = 1) -> Array:
    """The weight of a convolution, or its bias."""
    value = model.graph.node(node).inputs[slot]
    assert value is not None
    assert value.const_value is not None
    return value.const_value.numpy()


@pytest.mark.parametrize(("nodes", "count"), [(CHAIN, 1), (DEPTHWISE, 2), (TWO_READERS, 1)])
def test_the_function_stays(nodes: str, count: int) -> None:
    """Chains of convolutions, depthwise ones and several readers included, compute what they computed; a second run finds nothing."""
    model = model_of(nodes)
    after, recorder = equalized(model)
    assert len(recorder.rewrites) == count, recorder.misses
    assert operators(after) == operators(model)
    assert_same_outputs(model, after, tolerance=1e-5)
    assert not equalized(after)[1].rewrites


def test_ranges_are_equal_on_both_sides() -> None:
    """Each channel has the same largest weight where it is made and where it is read."""
    after, _ = equalized(model_of(CHAIN))
    made, read = weight_of(after, "node_0"), weight_of(after, "node_2")
    np.testing.assert_allclose(np.abs(made).max(axis=(1, 2, 3)), np.abs(read).max(axis=(0, 2, 3)), rtol=0.02)


def test_weights_of_8_bits_come_closer() -> None:
    """With one scale a tensor the weights' rounding costs less than half of what it did."""
    model = model_of(CHAIN)
    feed = {"x": np.random.default_rng(2).normal(size=(2, 3, 8, 8)).astype(np.float32)}
    reference = open_session(model).run(feed)["y"]
    found = []
    for each in (model, equalized(model)[0]):
        rounded = each.clone()
        for node in ("node_0", "node_2"):
            weight = weight_of(rounded, node)
            flat = weight.reshape(1, 1, -1)
            value = rounded.graph.node(node).inputs[1]
            assert value is not None
            value.const_value = ir.tensor(round_to_nearest(flat, fit_extremes(flat, Scheme(8))).weight.reshape(weight.shape))
        found.append(float(np.square(open_session(rounded).run(feed)["y"] - reference).mean()))
    assert found[1] < 0.5 * found[0]


@pytest.mark.parametrize(
    ("nodes", "reason"),
    [
        ("a = Conv(x, w1) r = Clip(a, zero, six) y = Conv(r, w2)", "takes no factors"),
        ("a = Conv(x, w1) r = Sigmoid(a) y = Conv(r, w2)", "takes no factors"),
        ("a = Conv(x, w1) r = Relu(a) c = Conv(r, w3) y = Add(c, r)", "used elsewhere"),
        ("a = Conv(x, w1) c = Conv(a, w3) s = Add(a, c) y = Conv(s, w2)", "adds values"),
        ("a = Conv(x, w1) y = Conv<group = 4>(a, grouped)", "groups of several channels"),
    ],
)
def test_what_does_not_pass_factors_is_left(nodes: str, reason: str) -> None:
    """Bounded activations, sums, other readers and wide groups: nothing changes, and the ledger says why."""
    model = model_of(nodes)
    for name, content in (("zero", 0.0), ("six", 6.0)):
        value = next((value for node in model.graph for value in node.inputs if value is not None and value.name == name), None)
        if value is not None:
            value.const_value = ir.tensor(np.float32(content), name=name)
            value.type, value.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(())
            model.graph.register_initializer(value)
    _, recorder = equalized(model)
    assert not recorder.rewrites
    assert any(reason in text for text in recorder.misses.values()), recorder.misses


def test_a_channel_that_is_its_bias_is_not_blown_up() -> None:
    """Next to no weights and a bias, as a dead normalization leaves them, make no outlier."""
    model = model_of(CHAIN)
    value = model.graph.node("node_0").inputs[1]
    assert value is not None
    assert value.const_value is not None
    array = value.const_value.numpy().copy()
    array[5] = 1e-9
    value.const_value = ir.tensor(array, name="w1")
    after, _ = equalized(model)
    assert np.abs(weight_of(after, "node_0", 2)).max() < 30
    assert_same_outputs(model, after, tolerance=1e-5)


def test_dead_channels_stay() -> None:
    """A channel that one side does not use gets no factor."""
    model = model_of(CHAIN)
    value = model.graph.node("node_2").inputs[1]
    assert value is not None
    assert value.const_value is not None
    array = value.const_value.numpy().copy()
    array[:, 5] = 0
    value.const_value = ir.tensor(array, name="w2")
    after, _ = equalized(model)
    np.testing.assert_array_equal(weight_of(after, "node_0")[5], weight_of(model, "node_0")[5])
    assert_same_outputs(model, after, tolerance=1e-5)

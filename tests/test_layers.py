"""Layers: one view of all linear operators, and what their weights multiply."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphopt.errors import RecipeError
from graphopt.graph.edits import Names
from graphopt.graph.layers import Layer, layers_of, select
from graphopt.graph.unfold import unfold
from graphopt.runtime.session import open_session

Array = np.ndarray[Any, Any]


def model_of(operator: str, inputs: Sequence[Array | None], constants: Sequence[int], domain: str = "", **attributes: Any) -> ir.Model:
    """A model of one node named ``layer``, whose inputs are called ``in0``, ``in1`` and so on."""
    values: list[ir.Value | None] = [None] * len(inputs)
    feeds, weights = [], []
    for index, array in enumerate(inputs):
        name = f"in{index}"
        if array is not None and index in constants:
            weights.append(ir.val(name, const_value=ir.tensor(array, name=name)))
            values[index] = weights[-1]
        elif array is not None:
            feeds.append(ir.val(name, ir.DataType.FLOAT, array.shape))
            values[index] = feeds[-1]
    node = ir.node(operator, values, attributes, domain=domain, name="layer")
    node.outputs[0].name, node.outputs[0].type = "y", ir.TensorType(ir.DataType.FLOAT)
    opsets = {"": 20, "com.microsoft": 1}
    return ir.Model(ir.Graph(feeds, node.outputs, nodes=[node], initializers=weights, opset_imports=opsets, name="g"), ir_version=10)


def random(shape: Sequence[int], seed: int = 0) -> Array:
    """Small whole numbers: sums of products are exact, so that nothing but equality need be asked."""
    return np.random.default_rng(seed).integers(-4, 5, tuple(shape)).astype(np.float32)


def product(layer: Layer, x: Array) -> Array:
    """The layer's outputs without bias: ``[groups, out, positions]``."""
    found: Array = np.float32(layer.scale) * (layer.weight() @ unfold(layer, x))
    assert layer.weight().shape == layer.shape
    return found


def check_convolution(model: ir.Model, x: Array, bias: Array) -> None:
    """Compares ``W X + b``, put back into the operator's output shape, with the runtime."""
    expected = open_session(model, "none").run({"in0": x})["y"]
    (layer,) = layers_of(model)
    found = product(layer, x).reshape(bias.size, x.shape[0], *expected.shape[2:]).swapaxes(0, 1)
    np.testing.assert_array_equal(found + bias.reshape(1, -1, *(1,) * (x.ndim - 2)), expected)
    check_inverse(layer)


def check_inverse(layer: Layer) -> None:
    """Checks that restore undoes weight."""
    stored = layer.value.const_value
    assert stored is not None
    np.testing.assert_array_equal(layer.restore(layer.weight()), stored.numpy())
    halved = layer.weight()[:, :1]
    assert layer.restore(halved).size == halved.size


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[int, int, int, int, dict[str, Any], tuple[int, ...]]:
    """Groups, channels in and out of a group, batch, attributes, places."""
    rank = draw(st.integers(1, 3))
    groups, channels, out, batch = (draw(st.integers(1, 3)) for _ in range(4))

    def each(low: int, high: int, count: int) -> list[int]:
        return draw(st.lists(st.integers(low, high), min_size=count, max_size=count))

    attributes: dict[str, Any] = {"group": groups, "kernel_shape": each(1, 3, rank), "strides": each(1, 3, rank)}
    attributes["dilations"] = each(1, 2, rank)
    mode = draw(st.sampled_from(["NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"]))
    if mode == "NOTSET":
        attributes["pads"] = each(0, 1, 2 * rank)
    else:
        attributes["auto_pad"] = mode
        attributes["dilations"] = [1] * rank
    return groups, channels, out, batch, attributes, tuple(each(5, 8, rank))


@given(convolutions())
def test_convolution_is_a_product(case: tuple[int, int, int, int, dict[str, Any], tuple[int, ...]]) -> None:
    """Conv of any rank, grouping, stride, dilation and padding equals W X + b."""
    groups, channels, out, batch, attributes, places = case
    x, bias = random((batch, groups * channels, *places)), random((groups * out,), 1)
    w = random((groups * out, channels, *attributes["kernel_shape"]), 2)
    check_convolution(model_of("Conv", [x, w, bias], [1, 2], **attributes), x, bias)


@given(convolutions(), st.integers(0, 1))
def test_transposed_convolution_is_a_product(case: tuple[int, int, int, int, dict[str, Any], tuple[int, ...]], extra: int) -> None:
    """ConvTranspose of any rank, grouping, stride, dilation and padding equals W X + b."""
    groups, channels, out, batch, attributes, places = case
    attributes["output_padding"] = [extra if s > 1 else 0 for s in attributes["strides"]]
    if attributes.get("auto_pad") == "VALID":
        attributes["output_padding"] = [0] * len(places)
    attributes["pads"] = [
        min(p, 1) if k > 1 else 0 for p, k in zip(attributes.get("pads", ()), 2 * attributes["kernel_shape"], strict=False)
    ]
    if not attributes["pads"]:
        del attributes["pads"]
    x, bias = random((batch, groups * channels, *places)), random((groups * out,), 1)
    w = random((groups * channels, out, *attributes["kernel_shape"]), 2)
    check_convolution(model_of("ConvTranspose", [x, w, bias], [1, 2], **attributes), x, bias)


@pytest.mark.parametrize("mode", ["NOTSET", "SAME_UPPER", "SAME_LOWER"])
def test_transposed_convolution_to_a_given_size(mode: str) -> None:
    """A ConvTranspose whose output_shape decides the padding equals W X + b."""
    x, bias, w = random((1, 2, 5, 5)), random((3,), 1), random((2, 3, 4, 4), 2)
    attributes: dict[str, Any] = {"strides": [2, 2], "output_shape": [9, 11]} | ({} if mode == "NOTSET" else {"auto_pad": mode})
    check_convolution(model_of("ConvTranspose", [x, w, bias], [1, 2], **attributes), x, bias)


@given(st.booleans(), st.booleans(), st.booleans(), st.sampled_from(["Gemm", "FusedGemm"]), st.sampled_from(["channel", "scalar", "none"]))
def test_gemm_is_a_product(turn_a: bool, turn_b: bool, right: bool, operator: str, kind: str) -> None:
    """Gemm with a constant on either side, transposed or not, equals alpha W X + beta b."""
    a, b = random((5, 3) if turn_a else (3, 5)), random((4, 5) if turn_b else (5, 4), 1)
    channel = (4,) if right else (3, 1)
    bias = None if kind == "none" else random(channel if kind == "channel" else (1,), 2)
    attributes: dict[str, Any] = {"transA": int(turn_a), "transB": int(turn_b), "alpha": 0.5, "beta": 2.0}
    domain = ""
    if operator == "FusedGemm":
        domain, attributes["activation"] = "com.microsoft", "Relu"
    model = model_of(operator, [a, b, bias], [int(right), 2], domain, **attributes)
    (layer,) = layers_of(model)
    x = a if right else b
    found = product(layer, x)[0]
    expected = open_session(model, "none").run({layer.input.name or "": x})["y"]
    added = 0.0 if bias is None else layer.bias_scale * (bias.reshape(1, -1) if right else bias.reshape(-1, 1))
    assert (layer.bias is None) == (kind == "none")
    found = (found.T if right else found) + added
    np.testing.assert_array_equal(np.maximum(found, 0) if domain else found, expected)
    check_inverse(layer)


def test_gemm_addend_of_every_row_is_no_bias() -> None:
    """A third input of Gemm that differs from row to row is not taken for a bias."""
    (layer,) = layers_of(model_of("Gemm", [random((3, 5)), random((5, 4)), random((3, 4))], [1, 2]))
    assert layer.bias is None


SHAPES = [
    ((3, 5), (5, 4)),
    ((2, 3, 5), (5, 4)),
    ((6, 2, 3, 5), (2, 5, 4)),
    ((2, 1, 3, 5), (7, 5, 4)),
    ((3, 5), (2, 7, 5, 4)),
    ((6, 2, 3, 5), (6, 1, 5, 4)),
]


@pytest.mark.parametrize(("left", "right"), SHAPES)
@pytest.mark.parametrize("constant", [0, 1])
def test_matmul_is_a_product(left: tuple[int, ...], right: tuple[int, ...], constant: int) -> None:
    """MatMul with a constant on either side, stacked or not, equals W X for each matrix of the constant's stack."""
    arrays = [random(left), random(right, 1)]
    model = model_of("MatMul", arrays, [constant])
    expected = open_session(model, "none").run({f"in{1 - constant}": arrays[1 - constant]})["y"]
    (layer,) = layers_of(model)
    found = product(layer, arrays[1 - constant])
    stack = arrays[constant].shape[:-2]
    assert layer.groups == math.prod(stack)
    lead = expected.shape[:-2]
    aligned = (1,) * (len(lead) - len(stack)) + stack
    grouped = [axis for axis, length in enumerate(aligned) if length > 1]
    free = [axis for axis in range(len(lead)) if axis not in grouped]
    channel, places = (len(lead) + 1, len(lead)) if constant else (len(lead), len(lead) + 1)
    np.testing.assert_array_equal(found, expected.transpose(*grouped, channel, *free, places).reshape(found.shape))
    check_inverse(layer)


@pytest.mark.parametrize(("left", "right", "constant"), [((5,), (5, 4), 1), ((3, 5), (5,), 1), ((5,), (5, 4), 0), ((3, 5), (5,), 0)])
def test_matmul_with_a_vector_is_a_product(left: tuple[int, ...], right: tuple[int, ...], constant: int) -> None:
    """MatMul with a vector on either side equals W X."""
    arrays = [random(left), random(right, 1)]
    model = model_of("MatMul", arrays, [constant])
    expected = open_session(model, "none").run({f"in{1 - constant}": arrays[1 - constant]})["y"]
    (layer,) = layers_of(model)
    np.testing.assert_array_equal(product(layer, arrays[1 - constant]).ravel(), expected.ravel())
    check_inverse(layer)


@pytest.mark.parametrize("turns", [(0, 0), (1, 0), (0, 1), (1, 1)])
@pytest.mark.parametrize("constant", [0, 1])
def test_fused_matmul_is_a_product(turns: tuple[int, int], constant: int) -> None:
    """The runtime's MatMul with its own scale and transposes equals alpha W X."""
    arrays = [random((5, 3) if turns[0] else (3, 5)), random((4, 5) if turns[1] else (5, 4), 1)]
    model = model_of("FusedMatMul", arrays, [constant], "com.microsoft", alpha=0.5, transA=turns[0], transB=turns[1])
    expected = open_session(model, "none").run({f"in{1 - constant}": arrays[1 - constant]})["y"]
    (layer,) = layers_of(model)
    found = product(layer, arrays[1 - constant])[0]
    np.testing.assert_array_equal(found.T if constant else found, expected)
    check_inverse(layer)


def test_fused_convolution_is_a_product() -> None:
    """The runtime's convolution with an activation is a layer like any other."""
    x, w, bias = random((1, 2, 6, 6)), random((3, 2, 3, 3), 1), random((3,), 2)
    model = model_of("FusedConv", [x, w, bias], [1, 2], "com.microsoft", activation="Relu")
    (layer,) = layers_of(model)
    found = product(layer, x).reshape(1, 3, 4, 4) + bias.reshape(1, 3, 1, 1)
    np.testing.assert_array_equal(np.maximum(found, 0), open_session(model, "none").run({"in0": x})["y"])
    assert layer.bias is not None


TWO_LAYERS = """<ir_version: 10, opset_import: ["" : 20]>
g (bool c, float[2, 2] x, float[2, 2] d) => (float[2, 2] y) <float[2, 2] w = {1, 2, 3, 4}, float[2, 2] d = {0, 0, 0, 0}> {
    [first] h = MatMul(x, w)
    [branch] b = If (c) <
        then_branch = t () => (float[2, 2] p) { [inner] p = MatMul(h, w) },
        else_branch = e () => (float[2, 2] q) { [default] q = MatMul(h, d) }
    >
    [last] y = Gemm(b, w)
}"""


def test_layers_of_subgraphs() -> None:
    """Layers inside branches are found; a weight that can be fed is not constant and makes no layer."""
    model = ir.from_onnx_text(TWO_LAYERS)
    assert [layer.name for layer in layers_of(model)] == ["first", "inner", "last"]


def test_assign_leaves_other_users_alone() -> None:
    """A new weight goes to one node only, and the last user of the old one takes it away."""
    model = ir.from_onnx_text(TWO_LAYERS)
    first, inner, last = layers_of(model)
    names = Names(model)
    inner.assign(np.zeros((1, 2, 2)), names)
    np.testing.assert_array_equal(first.weight(), [[[1, 3], [2, 4]]])
    np.testing.assert_array_equal(inner.weight(), np.zeros((1, 2, 2)))
    assert inner.value.dtype == ir.DataType.FLOAT
    x = np.eye(2, dtype=np.float32)
    assert not open_session(model).run({"c": np.array(True), "x": x})["y"].any()
    first.assign(first.weight(), names)
    last.assign(last.weight(), names)
    assert "w" not in model.graph.initializers
    np.testing.assert_array_equal(open_session(model).run({"c": np.array(False), "x": x, "d": x})["y"], [[7, 10], [15, 22]])


def test_select() -> None:
    """Layers are chosen by type, by glob on node or weight, and by size."""
    layers = list(layers_of(ir.from_onnx_text(TWO_LAYERS)))
    assert [layer.name for layer in select(layers, operators=["Gemm"])] == ["last"]
    assert [layer.name for layer in select(layers, names=["f*", "inn??"])] == ["first", "inner"]
    assert select(layers, names=["w"]) == layers
    assert select([], min_size=9) == []


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        ({"operators": ["Conv"]}, "'Conv'.*Gemm, MatMul"),
        ({"names": ["firts"]}, "'firts'.*first, inner"),
        ({"min_size": 5}, "largest has 4"),
    ],
)
def test_select_refuses_what_matches_nothing(wish: dict[str, Any], message: str) -> None:
    """A type, a glob or a size that matches no layer is an error that shows what there is."""
    with pytest.raises(RecipeError, match=message):
        select(layers_of(ir.from_onnx_text(TWO_LAYERS)), **wish)

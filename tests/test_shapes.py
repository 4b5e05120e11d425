"""Symbolic shapes: every length and element that is inferred is the one that a run finds."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphopt.graph.shapes import dims
from graphopt.graph.shapes.dims import Dim, symbol
from graphopt.graph.shapes.inference import Shapes, annotate, shapes_of
from graphopt.graph.signature import signature_of
from graphopt.runtime.trace import trace_shapes, trace_values
from graphopt.samples import Samples

B, S = symbol("b"), symbol("s")


def inferred(text: str, opset: int = 20) -> tuple[Dim, ...] | None:
    """The shape of ``y`` in a graph that is given by its inputs and its body."""
    model = model_of(text, opset)
    return shapes_of(model).of(model.graph.outputs[0])


def model_of(text: str, opset: int = 20) -> ir.Model:
    """A model of a graph ``(inputs) body``; its output is a float ``y`` of unknown rank."""
    inputs, body = text.split("|")
    return ir.from_onnx_text(f'<ir_version: 9, opset_import: ["": {opset}, "com.microsoft": 1]> g ({inputs}) => (float y) {{ {body} }}')


def lengths_in(shapes: Shapes, feed: Mapping[str, np.ndarray[Any, Any]]) -> dict[str, int]:
    """What the symbols stand for when a model is fed."""
    found = {}
    for value in shapes.inputs:
        array = feed.get(value.name or "")
        for dim, length in zip(shapes.of(value) or (), () if array is None else array.shape, strict=False):
            if not isinstance(dim, int):
                found[str(dim)] = length
    return found


def disagreements(model: ir.Model, feed: Mapping[str, np.ndarray[Any, Any]]) -> Iterator[str]:
    """Values whose inferred shape or content is not what a run finds."""
    shapes = shapes_of(model)
    lengths = lengths_in(shapes, feed)
    found = trace_shapes(model, feed)
    values = {value.name or "": value for node in model.graph for value in node.outputs}
    followed = []
    for name, shape in found.items():
        known = shapes.of(values[name]) if name in values else None
        if known is not None and len(known) != len(shape):
            yield f"{name}: {known} is {shape}"
        elif known is not None:
            numbers = [dims.evaluate(dim, lengths) for dim in known]
            if any(number not in (None, length) for number, length in zip(numbers, shape, strict=True)):
                yield f"{name}: {known} is {shape}"
        if name in values and shapes.content(values[name]) is not None:
            followed.append(name)
    for name, array in trace_values(model, feed, followed).items():
        content = shapes.content(values[name])
        assert content is not None
        for element, actual in zip(content.reshape(-1), array.reshape(-1), strict=True):
            number = dims.evaluate(element, lengths) if hasattr(element, "free_symbols") else element
            if number is not None and number != actual:
                yield f"{name}: {content} is {array}"


@pytest.mark.parametrize("name", ["conv.onnx", "conv_torchscript.onnx", "attention.onnx"])
def test_shapes_of_digits_are_those_of_runs(digits: Path, name: str) -> None:
    """Every inferred length of the small trained models evaluates to the actual one at two batch sizes."""
    model = ir.load(digits / name)
    symbols = signature_of(model).symbols
    for feed in Samples.synthetic(model, [dict.fromkeys(symbols, 1), dict.fromkeys(symbols, 3)], count=2):
        assert list(disagreements(model, feed)) == []


_ZOO: dict[str, list[dict[str, int]]] = {
    "cifar_resnet20_ft/model_torchscript.onnx": [{"batch": 1}, {"batch": 3}],
    "llama_shakespeare/model_torchscript.onnx": [{"batch": 1, "sequence": 1}, {"batch": 2, "sequence": 7}],
    "llama_shakespeare/model.onnx": [{"batch": 1, "sequence": 2}, {"batch": 2, "sequence": 7}],
    "ocr_det/model.onnx": [{"p2o.DynamicDimension.0": 1, "p2o.DynamicDimension.1": 64, "p2o.DynamicDimension.2": 96}],
    "superres_espcn/model.onnx": [{"batch": 1, "h": 8, "w": 9}, {"batch": 2, "h": 5, "w": 1}],
    "ultraface/model.onnx": [{}],
}


@pytest.mark.parametrize("name", _ZOO)
def test_shapes_of_trained_models_are_those_of_runs(zoo: Path, name: str) -> None:
    """Every inferred length and element of real models is the actual one at several sizes."""
    model = ir.load(zoo / name)
    for feed in Samples.synthetic(model, _ZOO[name], count=len(_ZOO[name])):
        assert list(disagreements(model, feed)) == []


@pytest.mark.slow
@pytest.mark.parametrize("file", ["model.onnx", "model_torchscript.onnx"])
@pytest.mark.parametrize("name", ["gpt2_6l", "qwen2_05b_4l", "segformer_b0", "swin_tiny", "t5_small_enc"])
def test_shapes_of_architectures_are_those_of_runs_and_complete(arch: Path, name: str, file: str) -> None:
    """Every inferred length of exported architectures is the actual one at two sizes, and none is unknown."""
    model = ir.load(arch / name / file)
    shapes = shapes_of(model)
    assert all(shapes.of(value) is not None for node in model.graph for value in node.outputs)
    sizes = [{"batch": 1, "sequence": 5}, {"batch": 2, "sequence": 9}]
    symbols = signature_of(model).symbols
    for feed in Samples.synthetic(model, [{name: one[name] for name in symbols} for one in sizes], count=2):
        assert list(disagreements(model, feed)) == []


@pytest.mark.parametrize(
    ("text", "shape"),
    [
        ("float[b,s,64] x| y = Relu(x)", (B, S, 64)),
        ("float[b,s,64] x, float[64] z| y = Add(x, z)", (B, S, 64)),
        ("float[b,1] x, float[1,s] z| y = Mul(x, z)", (B, S)),
        ("float[b,s] x| t = Constant<value_ints=[0,4,-1]>() y = Reshape(x, t)", None),
        ("float[b,8] x| t = Constant<value_ints=[0,4,-1]>() y = Reshape(x, t)", (B, 4, 2)),
        ("float[b,s,8] x| t = Constant<value_ints=[-1,8]>() y = Reshape(x, t)", (B * S, 8)),
        ("float[b,s,8] x| y = Flatten<axis=2>(x)", (B * S, 8)),
        ("float[b,s,8] x| y = Transpose<perm=[2,0,1]>(x)", (8, B, S)),
        ("float[b,3,h] x, float[8,3,3] w| y = Conv<strides=[2],pads=[1,1]>(x, w)", (B, 8, "floor(h/2 + 1/2)")),
        ("float[b,3,h] x, float[8,3,4] w| y = Conv<strides=[4]>(x, w)", (B, 8, "floor(h/4)")),
        ("float[b,3,h] x, float[3,8,2] w| y = ConvTranspose<strides=[2]>(x, w)", (B, 8, "2*h")),
        ("float[b,3,h] x| y = GlobalAveragePool(x)", (B, 3, 1)),
        ("float[b,s,8] x, float[b,s,8] z| y = Concat<axis=1>(x, z)", (B, 2 * S, 8)),
        ("float[b,s,8] x, float[8,5] w| y = MatMul(x, w)", (B, S, 5)),
        ("float[b,8] x, float[5,8] w| y = Gemm<transB=1>(x, w)", (B, 5)),
        ("float[b,s,8] x| a = Constant<value_ints=[1]>() y = ReduceMean<keepdims=0>(x, a)", (B, 8)),
        ("float[b,s] x, int64[3] i| y = Gather<axis=1>(x, i)", (B, 3)),
        ("float[b,s] x| d = Shape(x) y = ConstantOfShape(d)", (B, S)),
        ("float[b,8] x| y, z = Split<num_outputs=2,axis=1>(x)", (B, 4)),
        ("float[b,4,h] x| p = Constant<value_ints=[0,0,1,0,0,2]>() y = Pad(x, p)", (B, 4, "h + 3")),
        ("float[b,4,h] x| r = Constant<value_ints=[1,2,3]>() y = Tile(x, r)", (B, 8, "3*h")),
        ('float[b,4,h,w] x| e = Constant<value_floats=[1.,1.,2.,2.]>() y = Resize<mode="nearest">(x, , e)', (B, 4, "2*h", "2*w")),
        ("float[b,s] x| d = Shape<start=1>(x) n = Squeeze(d) o = Constant<value_int=1>() z = Sub(o,o) y = Range(z,n,o)", (S,)),
        (("float[b,12] x| d = Shape<start=1>(x) c = Constant<value_ints=[4]>() e = Div(d,c) m = Constant<value_ints=[-1]>() "
         "t = Concat<axis=0>(m,c,e) y = Reshape(x,t)"), (B, 4, 3)),
        (("float[b,s] x| a = Constant<value_ints=[1]>() z = Constant<value_ints=[0]>() e = Constant<value_ints=[9223372036854775807]>() "
         "y = Slice(x, z, e, a)"), (B, S)),
        (("float[b,9] x| a = Constant<value_ints=[1]>() z = Constant<value_ints=[-5]>() e = Constant<value_ints=[-1]>() "
         "y = Slice(x, z, e, a)"), (B, 4)),
        (("float[1,512] x, float[b,s] i| d = Shape<start=1>(i) a = Constant<value_ints=[1]>() z = Constant<value_ints=[0]>() "
         "p = Slice(x, z, d, a) y = Add(p, i)"), (B, S)),
        ('float[b,s] x, float[s,3] w| y = Einsum<equation="bs,sk->bk">(x, w)', (B, 3)),
        ("float[b,8,h,w] x| y = DepthToSpace<blocksize=2>(x)", (B, 2, "2*h", "2*w")),
        ("float[b,s,8] x, float[b,9,8] k, float[b,9,6] v| y = com.microsoft.MultiHeadAttention<num_heads=2>(x, k, v)", (B, S, 6)),
    ],
)  # fmt: skip
def test_operator(text: str, shape: tuple[Dim | str, ...] | None) -> None:
    """Each operator's output has the expected symbolic shape."""
    found = inferred(text)
    if shape is None:
        assert found is None or any("unknown" in str(dim) for dim in found)
    else:
        assert found is not None
        assert [str(dim) for dim in found] == [str(dim) for dim in shape]


def test_symbols_that_may_differ_do_not_broadcast_to_either() -> None:
    """Two different symbols give a length of its own: one of them may be 1."""
    found = inferred("float[b] x, float[s] z| y = Add(x, z)")
    assert found is not None
    assert found[0] not in (B, S)


def test_a_slice_from_one_may_be_empty() -> None:
    """x[1:] of a length that may be zero is not one shorter."""
    found = inferred("float[s] x| z = Constant<value_ints=[1]>() e = Constant<value_ints=[9223372036854775807]>() y = Slice(x, z, e)")
    assert found is not None
    assert [dims.evaluate(found[0], {"s": length}) for length in (0, 1, 5)] == [0, 0, 4]


def test_a_computed_entry_that_may_be_negative_is_no_length() -> None:
    """A Reshape entry s - 2 might be -1, so the length is unknown."""
    found = inferred(
        "float[s] x| d = Shape(x) c = Constant<value_ints=[2]>() e = Sub(d, c) o = Constant<value_ints=[1]>() "
        "t = Concat<axis=0>(o, e) y = Reshape(x, t)"
    )
    assert found is not None
    assert "unknown" in str(found[1])


@pytest.mark.parametrize(
    "text",
    [
        "float[b] x| y = com.example.Mystery(x)",
        "float[b] x| y = NoSuchOperator(x)",
        "float[b] x| t = Constant<value_ints=[-1,-1]>() y = Reshape(x, t)",
        "float[b,3] x, float[4,5] w| y = Concat<axis=7>(x, w)",
        "float[b] x| y = Gather<axis=3>(x, x)",
    ],
)
def test_what_is_unknown_or_invalid_never_fails(text: str) -> None:
    """Unknown operators and invalid nodes give unknown shapes, never an exception."""
    inferred(text)


def test_value_info_is_not_believed() -> None:
    """A static length that an exporter left on an inner value does not pass for the truth."""
    model = model_of("float[b,4] x| m = Relu(x) y = Neg(m)")
    inner = model.graph[0].outputs[0]
    inner.shape = ir.Shape([2, 4])
    assert shapes_of(model).of(inner) == (B, 4)


def test_nameless_lengths_are_different() -> None:
    """Two unnamed dimensions, or two that an exporter calls "?", are not taken to be equal."""
    model = model_of("float[?,4] x, float[?,4] z| y = Add(x, z)")
    shapes = shapes_of(model)
    first, second = (shapes.of(value) for value in model.graph.inputs)
    assert first is not None
    assert first != second


def test_an_input_with_a_default_is_not_a_constant() -> None:
    """An initializer that is also an input can be fed something else."""
    model = model_of("float[8] x, int64[1] t| y = Reshape(x, t)")
    target = model.graph.inputs[1]
    target.const_value = ir.tensor(np.array([8], np.int64), name="t")
    model.graph.register_initializer(target)
    assert shapes_of(model).content(target) is None


def test_branches_of_an_if_agree_where_they_do() -> None:
    """The output of an If has the lengths in which both branches agree."""
    model = ir.from_onnx_text(
        '<ir_version: 9, opset_import: ["": 20]> g (bool c, float[b,4] x, float[b,5] z) => (float y) { y = If (c) <'
        "then_branch = t () => (float u) { u = Relu(x) }, else_branch = e () => (float v) { v = Neg(z) }> }"
    )
    found = shapes_of(model).of(model.graph.outputs[0])
    assert found is not None
    assert found[0] == B
    assert found[1] not in (4, 5)


def test_values_used_in_any_order_are_inferred_once_all_are_known() -> None:
    """Asking for the last value first gives the same as asking in order, also where paths join."""
    model = model_of("float[b,4] x| p = Relu(x) q = Neg(p) r = Add(p, q) y = Mul(q, r)")
    assert shapes_of(model).of(model.graph.outputs[0]) == (B, 4)


def test_annotate_writes_types_and_shapes() -> None:
    """Inner values get their type and shape, expressions as names; what depends on data stays unknown."""
    model = model_of("float[b,s] x| m = Concat<axis=0>(x, x) n = NonZero(m) y = Cast<to=1>(n)")
    annotate(model, shapes_of(model))
    first, second = model.graph[0].outputs[0], model.graph[1].outputs[0]
    assert first.dtype == ir.DataType.FLOAT
    assert str(first.shape) == "[2*b,s]"
    assert second.dtype == ir.DataType.INT64
    assert second.shape is not None
    assert second.shape[0] == 2
    assert second.shape[1] == ir.SymbolicDim(None)


def test_long_chains_are_quick() -> None:
    """Ten thousand nodes take well under three seconds and no recursion."""
    value = ir.val("x", ir.DataType.FLOAT, ["b", "s", 64])
    start, nodes = value, []
    for index in range(10_000):
        node = ir.node("Add" if index % 2 else "Relu", [value, start] if index % 2 else [value], name=f"n{index}")
        nodes.append(node)
        value = node.outputs[0]
    model = ir.Model(ir.Graph([start], [value], nodes=nodes, opset_imports={"": 20}), ir_version=10)
    begin = time.perf_counter()
    assert shapes_of(model).of(value) == (B, S, 64)
    assert time.perf_counter() - begin < 3


_LENGTHS = st.sampled_from([0, 1, 2, 3, 7, 10, 64])
_LEAVES = st.one_of(st.integers(0, 6), st.sampled_from([B, S]))


@st.composite
def expressions(draw: st.DrawFn) -> Dim:
    """Lengths as convolutions, slices and concatenations produce them."""
    found: Dim = draw(_LEAVES)
    for _ in range(draw(st.integers(0, 4))):
        step, other = draw(st.sampled_from(["add", "multiply", "floor", "minimum", "maximum"])), draw(_LEAVES)
        if step == "floor":
            divided = dims.floor_divide(found, draw(st.integers(1, 4)))
            found = found if divided is None else divided
        else:
            found = getattr(dims, step)(found, other)
    return found


@given(expressions(), expressions(), st.integers(1, 5), _LENGTHS, _LENGTHS)
def test_arithmetic_is_that_of_integers(a: Dim, b: Dim, n: int, length_b: int, length_s: int) -> None:
    """Whatever is computed with expressions evaluates to what integers give; certain answers are right."""
    lengths = {"b": length_b, "s": length_s}

    def number(dim: Dim) -> int:
        found = dims.evaluate(dim, lengths)
        assert found is not None
        return found

    x, y = number(a), number(b)
    assert number(dims.add(a, b)) == x + y
    assert number(dims.subtract(a, b)) == x - y
    assert number(dims.multiply(a, b)) == x * y
    assert number(dims.minimum(a, b)) == min(x, y)
    assert number(dims.maximum(a, b)) == max(x, y)
    quotient = dims.floor_divide(a, n)
    assert quotient is None or number(quotient) == x // n
    exact = dims.divide_exactly(a, b)
    assert exact is None or number(exact) * y == x
    assert not dims.at_most(a, b) or x <= y
    assert not dims.at_least(a, 1) or x >= 1
    broadcast = dims.broadcast(a, b)
    if broadcast is not None and (x == y or 1 in (x, y)):
        assert number(broadcast) == (y if x == 1 else x)

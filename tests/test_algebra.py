"""Each rule of ``algebra`` fires where it may, keeps the outputs, and stays away where it must."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from graphopt.graph.contraction import contraction_of
from graphopt.passes.algebra import Algebra
from graphopt.runtime.kernels import executed_kernels
from tests.helpers import assert_rewritten, assert_same_outputs, misses, operators, parse, random_feeds, rewrite

CPU, PORTABLE = Algebra(), Algebra(target="portable")

X = "(float[n,3,4] x) => (float[a,b,c] y)"
POSITIVE = "a0 = Exp(x)"


@pytest.mark.parametrize(
    ("exponent", "expected"),
    [("2", "Mul"), ("0.5", "Sqrt"), ("-1", "Reciprocal"), ("-0.5", "Sqrt Reciprocal"), ("3", "Pow"), ("1.5", "Pow")],
)
@pytest.mark.parametrize("opset", [7, 13, 18])
def test_powers(exponent: str, expected: str, opset: int) -> None:
    """Powers that have an operator of their own become it."""
    assert_rewritten(f"{X} <float e = {{{exponent}}}> {{ {POSITIVE} y = Pow(a0, e) }}", [CPU], f"Exp {expected}", opset)


def test_powers_keep_away() -> None:
    """A power before a mean, of integers, or by an exponent that widens stays."""
    before_mean = f"{X} <float e = {{2}}, int64[1] last = {{-1}}> {{ p = Pow(x, e) y = ReduceMean(p, last) }}"
    assert "mean" in misses(before_mean, CPU)["expand-power"]
    assert operators(rewrite("(int64[n] x) => (int64[a] y) <int64 e = {2}> { y = Pow(x, e) }", CPU)) == ["Pow"]
    assert "widens" in misses("(float[n] x) => (float[a,b] y) <float[1,1] e = {2}> { y = Pow(x, e) }", CPU)["expand-power"]


@pytest.mark.parametrize("divisor", ["float c = {8}", "float[1] c = {1.7}", "float[4] c = {1, -2, 3, 0.1}"])
def test_division_by_a_constant(divisor: str) -> None:
    """It becomes a multiplication."""
    assert_rewritten(f"{X} <{divisor}> {{ y = Div(x, c) }}", [CPU], "Mul")


def test_division_keeps_away() -> None:
    """Zeros, vanishing reciprocals, integers, half precision where it is inexact, shared vectors and Gelu keep their Div."""
    assert "zero" in misses(f"{X} <float[4] c = {{1, 0, 1, 1}}> {{ y = Div(x, c) }}", CPU)["multiply-by-reciprocal"]
    assert "zero" in misses(f"{X} <float c = {{3.0e38}}> {{ y = Div(x, c) }}", CPU)["multiply-by-reciprocal"]
    assert operators(rewrite("(int64[n] x) => (int64[a] y) <int64 c = {2}> { y = Div(x, c) }", CPU)) == ["Div"]
    assert operators(rewrite(f"{X} <float c = {{1.4142}}> {{ d = Div(x, c) y = Erf(d) }}", CPU)) == ["Div", "Erf"]
    shared = f"{X} <float[4] c = {{1, 2, 3, 4}}> {{ d = Div(x, c) y = Add(d, c) }}"
    assert "elsewhere" in misses(shared, CPU)["multiply-by-reciprocal"]
    for number, expected in ((8.0, "Mul"), (3.0, "Div")):
        half = _half(number)
        CPU(half)
        assert operators(half) == [expected]


def _half(number: float) -> ir.Model:
    """x / number in half precision, for which the text form has no constants."""
    model = parse("(float16[n] x, float16 c) => (float16[a] y) { y = Div(x, c) }")
    value = model.graph.inputs.pop()
    value.const_value = ir.tensor(np.array(number, dtype=np.float16), name=value.name)
    model.graph.register_initializer(value)
    return model


EQUATIONS = {
    "scores": ("bhid,bhjd->bhij", "2,3,4,5", "2,3,6,5", "Transpose MatMul"),
    "values": ("bhij,bhjd->bhid", "2,3,4,6", "2,3,6,5", "MatMul"),
    "scores, heads inside": ("bihd,bjhd->bhij", "2,4,3,5", "2,6,3,5", "Transpose Transpose MatMul"),
    "values, heads inside": ("bhij,bjhd->bihd", "2,3,4,6", "2,6,3,5", "Transpose MatMul Transpose"),
    "batches": ("bnd,bmd->bnm", "2,3,4", "2,5,4", "Transpose MatMul"),
    "other order": ("bmd,bnd->bnm", "2,3,4", "2,5,4", "Transpose MatMul"),
    "matrices": ("ij,jk->ik", "3,4", "4,5", "MatMul"),
    "spaces": ("i j, j k -> k i", "3,4", "4,5", "Transpose Transpose MatMul"),
}


@pytest.mark.parametrize(("equation", "first", "second", "expected"), EQUATIONS.values(), ids=EQUATIONS)
def test_contraction_of_two_inputs(equation: str, first: str, second: str, expected: str) -> None:
    """An Einsum that is a product of matrices up to the order of indices becomes one."""
    rank = len(equation.partition("->")[2].strip())
    text = f"(float[{first}] x, float[{second}] z) => (float[{','.join('abcd'[:rank])}] y)"
    assert_rewritten(f'{text} {{ y = Einsum<equation = "{equation}">(x, z) }}', [CPU], expected)


WEIGHTED = {
    "linear": ("bnd,de->bne", "n,3,4", (4, 5), "MatMul"),
    "transposed": ("bnd,ed->bne", "n,3,4", (5, 4), "MatMul"),
    "into heads": ("bnd,hde->bnhe", "n,3,4", (2, 4, 5), "MatMul Reshape"),
    "into outer heads": ("bnd,hde->bhne", "n,3,4", (2, 4, 5), "MatMul Reshape Transpose"),
    "out of heads": ("bnhd,hde->bne", "n,3,2,4", (2, 4, 5), "Reshape MatMul"),
    "vector": ("bnd,d->bn", "n,3,4", (4,), "MatMul Reshape"),
}


@pytest.mark.parametrize(("equation", "shape", "weight", "expected"), WEIGHTED.values(), ids=WEIGHTED)
@pytest.mark.parametrize("weight_first", [False, True])
def test_contraction_with_a_weight(equation: str, shape: str, weight: tuple[int, ...], expected: str, weight_first: bool) -> None:
    """The weight becomes a matrix at compile time, whatever the order of its indices."""
    data, inner = equation.partition("->")[0].split(",")
    result = equation.partition("->")[2]
    numbers = ", ".join(str(index % 7 - 3) for index in range(int(np.prod(weight))))
    written, operands = (f"{inner},{data}->{result}", "w, x") if weight_first else (equation, "x, w")
    text = f"(float[{shape}] x) => (float[{','.join('abcd'[: len(result)])}] y) <float[{','.join(map(str, weight))}] w = {{{numbers}}}>"
    assert_rewritten(f'{text} {{ y = Einsum<equation = "{written}">({operands}) }}', [CPU], expected)


@pytest.mark.parametrize(
    ("equation", "first", "second"),
    [
        ("i,j->ij", "3", "4"),
        ("bhid,bhjd->bij", "2,3,4,5", "2,3,6,5"),
        ("ii,ij->j", "3,3", "3,4"),
        ("...i,ij->...j", "2,3", "3,4"),
        ("ij,jk", "3,4", "4,5"),
    ],
)
def test_contraction_keeps_away(equation: str, first: str, second: str) -> None:
    """Outer products, several sums, diagonals, ellipses and implicit results stay."""
    text = f'(float[{first}] x, float[{second}] z) => (float y) {{ y = Einsum<equation = "{equation}">(x, z) }}'
    assert "contract-with-matmul" in misses(text, CPU)
    assert operators(rewrite(text, CPU)) == ["Einsum"]


def test_contraction_of_one_operand_and_of_repeated_rows() -> None:
    """One operand, and an index of length 1 in one operand that is repeated, stay."""
    assert "two operands" in misses('(float[3,4] x) => (float[a,b] y) { y = Einsum<equation = "ij->ji">(x) }', CPU)["contract-with-matmul"]
    text = '(float[3,1] x, float[4,5] z) => (float[a,b] y) { y = Einsum<equation = "ij,jk->ik">(x, z) }'
    assert "length 1" in misses(text, CPU)["contract-with-matmul"]


def test_equations() -> None:
    """Indices are sorted by where they occur."""
    found = contraction_of("bhid,bhjd->bhij")
    assert found is not None
    assert (found.batch, found.left, found.right, found.summed) == ("bh", "i", "j", "d")
    assert contraction_of("bd,bd->b") is not None
    assert contraction_of("ab,c->a") is None


def _depthwise(channels: int, attributes: str, opset: int = 18) -> ir.Model:
    numbers = ", ".join(str((index % 5 - 2) / 4) for index in range(3 * channels))
    bias = ", ".join(str(index % 3) for index in range(channels))
    text = f"(float[n,{channels},l] x) => (float[a,b,c] y) <float[{channels},1,3] w = {{{numbers}}}, float[{channels}] v = {{{bias}}}>"
    return parse(f"{text} {{ y = Conv<group = {channels}, {attributes}>(x, w, v) }}", opset)


@pytest.mark.parametrize(
    "attributes", ["kernel_shape = [3]", "pads = [1, 2], strides = [2]", "dilations = [2], pads = [2, 2]", 'auto_pad = "SAME_UPPER"']
)
@pytest.mark.parametrize("opset", [11, 18])
def test_depthwise_convolution(attributes: str, opset: int) -> None:
    """A depthwise convolution along one axis becomes one along two, and its blocked kernel runs."""
    before, after = _depthwise(32, attributes, opset), _depthwise(32, attributes, opset)
    CPU(after)
    assert operators(after) == ["Unsqueeze", "Conv", "Squeeze"]
    assert_same_outputs(before, after, random_feeds(before, length=9))
    assert executed_kernels(after).counts["com.microsoft.nchwc", "Conv"] == 1


def test_depthwise_convolution_keeps_away() -> None:
    """Few or odd channels, several filters a channel and other targets keep the convolution."""
    for channels in (16, 33):
        model = _depthwise(channels, "kernel_shape = [3]")
        CPU(model)
        assert operators(model) == ["Conv"]
    model = _depthwise(32, "kernel_shape = [3]")
    PORTABLE(model)
    assert operators(model) == ["Conv"]


def test_algebra_in_a_subgraph() -> None:
    """The rules look into branches."""
    text = """
    (bool t, float[n] x) => (float[a] y) <float e = {2}, float c = {3}> {
        y = If (t) < then_branch = g1 () => (float[a] p) { p = Pow(x, e) }, else_branch = g2 () => (float[a] q) { q = Div(x, c) } >
    }
    """
    after = rewrite(text, CPU)
    assert operators(after) == ["If", "Mul", "Mul"]
    for branch in (True, False):
        assert_same_outputs(parse(text), after, {"t": np.array(branch), "x": np.arange(3, dtype=np.float32)})

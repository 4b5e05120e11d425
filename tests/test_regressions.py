"""Rewrites that once were wrong: each with the smallest model that showed it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphopt.graph.opset import convert_opset, opset_of
from graphopt.graph.signature import signature_of
from graphopt.passes.activations import Activations
from graphopt.passes.affine import Affine
from graphopt.passes.algebra import Algebra
from graphopt.passes.attention import Attention
from graphopt.passes.simplify import Simplify
from graphopt.runtime.session import open_session
from tests.helpers import assert_same_outputs, needs_opset, operators, parse, rewrite


def test_views_around_an_operator_on_a_scalar_stay() -> None:
    """Without the Unsqueeze, an operand of shape [1] would make a vector of the scalar."""
    text = "(float x) => (float y) <float[1] k = {2}, int64[1] z = {0}> { a = Unsqueeze(x, z) b = Mul(a, k) y = Squeeze(b, z) }"
    after = rewrite(text, Simplify())
    assert operators(after) == ["Unsqueeze", "Mul", "Squeeze"]
    assert_same_outputs(parse(text), after)


def test_pads_as_wide_as_the_window_stay() -> None:
    """The runtime does not load an AveragePool whose pads are as wide as its window."""
    text = (
        "(float[1,1,6,6] x) => (float[a,b,c,d] y) <int64[8] p = {0, 0, 2, 2, 0, 0, 2, 2}> "
        "{ a = Pad(x, p) y = AveragePool<kernel_shape = [2, 2]>(a) }"
    )
    after = rewrite(text, Simplify())
    assert operators(after) == ["Pad", "AveragePool"]
    feed = {"x": np.ones((1, 1, 6, 6), np.float32)}
    # The runtime's own optimizations make the same mistake, so that neither model loads with them.
    np.testing.assert_array_equal(open_session(after, "none").run(feed)["y"], open_session(parse(text), "none").run(feed)["y"])


def test_a_large_number_that_is_added_and_taken_away_rounds() -> None:
    """(x + 1.5 * 2**23) - 1.5 * 2**23 rounds x to an integer, and is not x."""
    text = "(float[n] x) => (float[n] y) <float k = {12582912}> { a = Add(x, k) y = Sub(a, k) }"
    after = rewrite(text, Simplify())
    assert operators(after) == ["Add", "Sub"]
    assert_same_outputs(parse(text), after, {"x": np.array([0.4, 0.6, -2.7], np.float32)})


def test_a_small_constant_is_not_lost_in_a_large_one() -> None:
    """(x + 0.5) + k with a large k rounds after 0.5 was added; 0.5 + k rounds before."""
    text = "(float[n] x) => (float[n] y) <float h = {0.3}, float k = {12582912}> { a = Add(x, h) b = Add(a, k) y = Sub(b, k) }"
    after = rewrite(text, Simplify())
    assert operators(after) == ["Add", "Add", "Sub"]
    assert_same_outputs(parse(text), after, {"x": np.array([0.4, 0.6, -2.7], np.float32)})


def test_a_large_shift_is_not_folded_into_a_bias() -> None:
    """x - 1e6 is exact where x is near 1e6; x @ W - 1e6 @ W is not."""
    text = (
        "(float[n,2] x) => (float[n,2] y) <float k = {1000000}, float[2,2] w = {0.3, 0.2, -0.7, 0.1}, float[2] b = {0.5, 0.25}> "
        "{ a = Sub(x, k) y = Gemm(a, w, b) }"
    )
    after = rewrite(text, Affine())
    assert operators(after) == ["Sub", "Gemm"]
    assert_same_outputs(parse(text), after, {"x": np.array([[1000000.5, 1000001]], np.float32)})


def test_gelu_of_a_scalar_stays_where_its_kernel_takes_none() -> None:
    """The runtime's FastGelu wants at least one axis."""
    text = (
        "(float x) => (float y) <float h = {0.5}, float three = {3}, float one = {1}, float k = {0.044715}, float r = {0.7978846}> "
        "{ c = Pow(x, three) d = Mul(c, k) e = Add(x, d) f = Mul(e, r) t = Tanh(f) g = Add(one, t) m = Mul(g, x) y = Mul(h, m) }"
    )
    after = rewrite(text, Activations(), opset=17)
    assert "FastGelu" not in operators(after)
    assert_same_outputs(parse(text, 17), after)


def test_rows_in_half_precision_are_guarded_where_infinity_is_known() -> None:
    """Below opset 20, IsInf takes no float16; neither does the standard, so that portable models want none either."""
    layers = " ".join(
        f"s{i} = MatMul(x{i}, kt) t{i} = Add(s{i}, m) p{i} = Softmax<axis = -1>(t{i}) n{i} = IsNaN(p{i}) "
        f"w{i} = Where(n{i}, zero, p{i}) x{i + 1} = MatMul(w{i}, k)"
        for i in range(4)
    )
    text = f"""(float16[B,2,S,4] x0, float16[B,2,S,4] k, bool[B,1,S,S] c, float16 zero, float16 hidden) => (float16[B,2,S,4] x4) {{
        kt = Transpose<perm = [0, 1, 3, 2]>(k) m = Where(c, zero, hidden) {layers} }}"""
    for opset, fires in ((18, False), (20, True)):
        for target in (Attention(), Attention(target="portable")):
            model = parse(text, opset)
            for number in (-np.inf, 0.0):
                value = model.graph.inputs.pop()
                value.const_value = ir.tensor(np.array(number, np.float16), name=value.name)
                model.graph.register_initializer(value)
            before = model.clone()
            target(model)
            assert ("IsInf" in operators(model)) == fires
            assert_same_outputs(before, model, tolerance=1e-2)


def test_a_contraction_over_lengths_that_may_differ_stays() -> None:
    """Einsum repeats an operand whose summed index turns out to have length 1; MatMul refuses it."""
    text = '(float[n,k] x, float[7,3] z) => (float[a,b] y) { y = Einsum<equation = "ij,jd->id">(x, z) }'
    after = rewrite(text, Algebra())
    assert operators(after) == ["Einsum"]
    assert operators(rewrite(text.replace("[n,k]", "[n,7]"), Algebra())) == ["MatMul"]


MASKED = """({shape} m, float[B,2,3,4] q, float[B,2,T,4] k, float[B,2,T,4] v) => (float[B,2,3,4] y)
    <float zero = {{0.0}}, float low = {{{low}}}> {{
    kt = Transpose<perm = [0, 1, 3, 2]>(k) s = MatMul(q, kt) n = Where(m, zero, low) t = Add(s, n)
    p = Softmax<axis = -1>(t) y = MatMul(p, v) }}"""


@needs_opset(23)
def test_masks_that_broadcast_along_queries_stay_outside_of_the_operator() -> None:
    """The standard allows it, the runtime's kernel does not."""
    text = MASKED.format(shape="bool[B,1,1,T]", low="-1.0e9")
    after = rewrite(text, Attention(target="portable"), opset=23)
    assert "Attention" not in operators(after)
    assert_same_outputs(parse(text, 23), after)
    assert "Attention" in operators(rewrite(text.replace("1,1,T", "1,3,T"), Attention(target="portable"), opset=23))


@needs_opset(23)
def test_rows_that_are_hidden_whole_stay_outside_of_the_operator() -> None:
    """Their probabilities are NaN, of which the operator's kernel makes other numbers."""
    text = MASKED.format(shape="bool[B,1,3,T]", low="-inf")
    after = rewrite(text, Attention(target="portable"), opset=23)
    assert "Attention" not in operators(after)
    feeds = {name: np.ones((1, 2, 3, 4), np.float32) for name in ("q", "k", "v")} | {"m": np.zeros((1, 1, 3, 3), bool)}
    assert_same_outputs(parse(text, 23), after, feeds)


def test_a_rounding_before_a_hard_sigmoid_stays() -> None:
    """clip(round(x), 0, 6) / 6 is no HardSigmoid where the rounding is written x + k - k."""
    text = (
        "(float[n] x) => (float[n] y) <float k = {12582912}, float z = {0}, float six = {6}> "
        "{ a = Add(x, k) b = Sub(a, k) c = Clip(b, z, six) y = Div(c, six) }"
    )
    after = rewrite(text, Activations())
    assert operators(after)[:2] == ["Add", "Sub"]
    assert_same_outputs(parse(text), after, {"x": np.array([0.4, 0.6, 2.7], np.float32)})


def test_the_root_in_the_norm_of_a_vector_stays_a_power() -> None:
    """With Sqrt, the runtime takes the normalized vector for the scale, and does not load the model it makes."""
    text = (
        "(float[6] x, float[6] w) => (float[6] y) <float two = {2}, float half = {0.5}, float epsilon = {0.001}> "
        "{ s = Pow(x, two) m = ReduceMean<axes = [-1], keepdims = 1>(s) e = Add(m, epsilon) r = Pow(e, half) d = Div(x, r) y = Mul(w, d) }"
    )
    after = rewrite(text, Algebra(), opset=13)
    assert operators(after).count("Pow") == 2
    assert_same_outputs(parse(text, 13), after)


def test_the_root_in_a_norm_with_its_epsilon_first_stays_a_power() -> None:
    """With Sqrt, the runtime makes a LayerNormalization whose epsilon is 1e-5, whatever this one is."""
    text = (
        "(float[2,2] x) => (float[2,2] y) <float two = {2}, float half = {0.5}, float epsilon = {0.001}, float[2] w = {2, 1}, "
        "float[2] b = {1, 0}> { m = ReduceMean<axes = [-1], keepdims = 1>(x) d = Sub(x, m) s = Pow(d, two) "
        "v = ReduceMean<axes = [-1], keepdims = 1>(s) e = Add(epsilon, v) r = Pow(e, half) q = Div(d, r) g = Mul(w, q) y = Add(g, b) }"
    )
    after = rewrite(text, Algebra(), opset=17)
    assert operators(after).count("Pow") == 2
    assert_same_outputs(parse(text, 17), after, {"x": np.array([[0.01, 0.05], [0.2, 0.1]], np.float32)})


def test_a_signature_outlives_a_conversion() -> None:
    """Converters infer lengths that the outputs did not tell; what a caller sees stays as it was."""
    weight = "{" + ", ".join(["0.5"] * 36) + "}"
    text = f"(float[n,1,8,8] x) => (float[n,rows,columns,c] y) <float[4,1,3,3] w = {weight}> {{ h = Conv(x, w) y = Relu(h) }}"
    model = parse(text, 11)
    before = signature_of(model)
    convert_opset(model, 13)
    assert opset_of(model) == 13
    assert signature_of(model) == before
    assert_same_outputs(parse(text, 11), model, {"x": np.ones((2, 1, 8, 8), np.float32)})

"""Rewrites that once were wrong: each with the smallest model that showed it."""

from __future__ import annotations

import numpy as np

from graphopt.passes.activations import Activations
from graphopt.passes.affine import Affine
from graphopt.passes.simplify import Simplify
from graphopt.runtime.session import open_session
from tests.helpers import assert_same_outputs, operators, parse, rewrite


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

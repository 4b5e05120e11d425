"""Of what only a part is taken, only that part is computed."""

from __future__ import annotations

import pytest

from graphopt.passes.simplify import Simplify
from tests.helpers import assert_rewritten, misses, operators, parse, rewrite

FIRST = "int64 first = {0}"
PART = "int64[1] i = {0}, int64[1] j = {2}, int64[1] k = {1}"


def wide(body: str, result: str = "float[a,b] y") -> str:
    """A graph whose rows have so many numbers that parts of several values may be taken."""
    return f"(float[B,40,1024] x, float[B,40,1024] z) => ({result}, float[c,d,e] u, float[f,g,h] v) <{FIRST}, {PART}> {{ {body} }}"


FIRES = {
    "one activation": ("(float[n,9,4] x) => (float[a,b,c] y) <" + PART + "> { t = Relu(x) y = Slice(t, i, j, k) }", "Slice Relu"),
    "one index that keeps its axis": (
        "(float[n,9,4] x) => (float[a,b,c] y) <int64[1] i = {-1}> { t = Relu(x) y = Gather<axis = 1>(t, i) }",
        "Slice Relu",
    ),
    "residual": (
        wide("a = Tanh(x) b = Sigmoid(z) u = Abs(a) v = Abs(b) s = Add(a, b) t = Relu(s) y = Gather<axis = 1>(t, first)"),
        "Tanh Sigmoid Abs Abs Slice Slice Add Relu Squeeze",
    ),
    "normalization, heads and views": (
        (
            "(float[B,S,64] x) => (float[a,b,c] y) <int64[1] i = {-1}, int64[1] j = {9223372036854775807}, int64[1] k = {1},"
            " int64[4] heads = {0, 0, 4, 16}, int64[3] flat = {0, -1, 64}> {"
            " h = Reshape(x, heads) t = Transpose<perm = [0, 2, 1, 3]>(h) s = Softmax(t) r = Transpose<perm = [0, 2, 1, 3]>(s)"
            " f = Reshape(r, flat) y = Slice(f, i, j, k) }"
        ),
        "Slice Reshape Transpose Softmax Transpose Reshape",
    ),
}


@pytest.mark.parametrize("name", FIRES)
def test_only_the_part_is_computed(name: str) -> None:
    """Same outputs, and nothing is left for a second run."""
    text, expected = FIRES[name]
    assert_rewritten(text, [Simplify()], expected)


STAYS = {
    "another use": "(float[n,9,4] x) => (float[a,b,c] y, float[d,e,f] z) <" + PART + "> { t = Relu(x) y = Slice(t, i, j, k) z = Abs(t) }",
    "an output": "(float[n,9,4] x) => (float[a,b,c] y, float[d,e,f] t) <" + PART + "> { t = Relu(x) y = Slice(t, i, j, k) }",
    "the axis that is normalized": "(float[n,9,4] x) => (float[a,b,c] y) <" + PART + "> { t = Softmax<axis = 1>(x) y = Slice(t, i, j, k) }",
    "views alone": "(float[n,9,4] x) => (float[a,b,c] y) <" + PART + "> { t = Transpose<perm = [2, 1, 0]>(x) y = Slice(t, i, j, k) }",
    "an axis that is merged": (
        "(float[n,9,4] x) => (float[a,b] y) <"
        + PART
        + ", int64[2] flat = {0, 36}> { r = Relu(x) t = Reshape(r, flat) y = Slice(t, i, j, k) }"
    ),
    "nothing may be left": (
        "(float[n,S,4] x) => (float[a,b,c] y) <int64[1] i = {3}, int64[1] j = {5}, int64[1] k = {1}> { t = Relu(x) y = Slice(t, i, j, k) }"
    ),
}


@pytest.mark.parametrize("name", STAYS)
def test_what_is_needed_whole_stays(name: str) -> None:
    """Operators stand in their order."""
    text = STAYS[name]
    assert operators(rewrite(text, Simplify())) == operators(parse(text))


def test_small_gains_do_not_pay_for_more_operators() -> None:
    """The near miss says why."""
    text = wide("a = Tanh(x) b = Sigmoid(z) u = Abs(a) v = Abs(b) t = Add(a, b) y = Gather<axis = 1>(t, first)").replace("1024", "4")
    assert misses(text, Simplify())["compute-taken-rows-only"] == "too little is computed in vain"


def test_what_the_runtime_fuses_into_a_layer_stays_behind_it() -> None:
    """A Relu right behind a convolution costs nothing."""
    text = (
        "(float[n,2,5,5] x, float[3,2,1,1] w) => (float[a,b,c,d] y) <int64[1] i = {0}, int64[1] j = {2}, int64[1] k = {2}>"
        " { t = Conv(x, w) r = Relu(t) y = Slice(r, i, j, k) }"
    )
    assert "fuse" in misses(text, Simplify())["compute-taken-rows-only"]

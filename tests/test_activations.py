"""Each rule of ``activations`` fires on what exporters write, keeps the outputs, and stays away where it must."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest

from graphopt.passes.activations import Activations
from graphopt.runtime.kernels import executed_kernels
from graphopt.runtime.session import open_session
from tests.helpers import assert_rewritten, assert_same_outputs, misses, operators, parse, rewrite

CPU, PORTABLE = Activations(), Activations(target="portable")
Target = Literal["cpu", "portable"]

SMALL = "(float[n,3,4] x) => (float[a,b,c] y)"
LARGE = "(float[n,64,128] x) => (float[a,b,c] y)"
NUMBERS = """
    <float s2 = {1.4142135}, float r2 = {0.70710677}, float half = {0.5}, float one = {1}, float two = {2}, float three = {3},
    float k = {0.044715}, float c = {0.7978846}, float[1] z = {0}, float six = {6}, float sixth = {0.16666667}, float zero = {0}>
"""

ERF_GELUS = {
    "torch": "a = Div(x, s2) b = Erf(a) d = Add(b, one) e = Mul(x, d) y = Mul(e, half)",
    "half first": "h = Mul(half, x) a = Mul(x, r2) b = Erf(a) d = Add(one, b) y = Mul(h, d)",
    "half on the error function": "a = Mul(r2, x) b = Erf(a) d = Add(b, one) e = Mul(d, half) y = Mul(x, e)",
    "half inside": "a = Div(x, s2) b = Erf(a) d = Mul(b, half) e = Add(half, d) y = Mul(e, x)",
    "divided by two": "a = Div(x, s2) b = Erf(a) d = Add(b, one) e = Mul(d, x) y = Div(e, two)",
}
TANH_GELUS = {
    "power": "p = Pow(x, three) q = Mul(p, k) r = Add(x, q) t = Mul(r, c) u = Tanh(t) v = Add(u, one) h = Mul(x, half) y = Mul(h, v)",
    "products": """
        o = Mul(x, x) p = Mul(o, x) q = Mul(k, p) r = Add(q, x) t = Mul(c, r) u = Tanh(t) v = Add(one, u) h = Mul(half, v) y = Mul(x, h)
    """,
    "factored": """
        o = Mul(x, x) q = Mul(o, k) r = Add(q, one) s = Mul(x, c) t = Mul(s, r) u = Tanh(t) v = Add(u, one) h = Mul(v, x) y = Mul(h, half)
    """,
}


@pytest.mark.parametrize("body", ERF_GELUS.values(), ids=ERF_GELUS)
@pytest.mark.parametrize(("opset", "target", "expected"), [(13, "cpu", "Gelu"), (20, "cpu", "Gelu"), (20, "portable", "Gelu")])
def test_gelu_by_the_error_function(body: str, opset: int, target: Target, expected: str) -> None:
    """Every spelling of Gelu becomes one operator, of the standard from opset 20 on."""
    after = assert_rewritten(f"{SMALL} {NUMBERS} {{ {body} }}", [Activations(target=target)], expected, opset)
    assert [node.domain for node in after.graph] == ["" if opset == 20 else "com.microsoft"]


@pytest.mark.parametrize("body", TANH_GELUS.values(), ids=TANH_GELUS)
@pytest.mark.parametrize(("opset", "expected"), [(13, "FastGelu"), (20, "Gelu")])
def test_gelu_by_tanh(body: str, opset: int, expected: str) -> None:
    """Every spelling of the approximation by tanh becomes the operator that computes just that, and its kernel runs."""
    after = assert_rewritten(f"{SMALL} {NUMBERS} {{ {body} }}", [CPU], expected, opset)
    assert [kernel.op_type for kernel in executed_kernels(after).nodes] == [expected]


def test_gelu_keeps_away() -> None:
    """Nothing is done for other constants, results that are used elsewhere, or runtimes that do not have the operator."""
    torch = ERF_GELUS["torch"]
    wrong = torch.replace("s2", "two")
    assert "constants" in misses(f"{SMALL} {NUMBERS} {{ {wrong} }}", CPU)["recognize-gelu"]
    shared = f"(float[n,3,4] x) => (float[a,b,c] y, float[d,e,f] b) {NUMBERS} {{ {torch} }}"
    assert "elsewhere" in misses(shared, CPU)["recognize-gelu"]
    assert "no kernel" in misses(f"{SMALL} {NUMBERS} {{ {torch} }}", PORTABLE)["recognize-gelu"]
    half = torch.replace("Mul(e, half)", "Mul(e, three)")
    assert operators(rewrite(f"{SMALL} {NUMBERS} {{ {half} }}", CPU)) == ["Div", "Erf", "Add", "Mul", "Mul"]


def test_gelu_of_double_has_no_kernel() -> None:
    """A double model keeps its primitives on CPU."""
    text = "(double[n] x) => (double[a] y) <double s2 = {1.4142135623730951}, double one = {1}, double half = {0.5}>"
    assert "no kernel" in misses(f"{text} {{ {ERF_GELUS['torch']} }}", CPU)["recognize-gelu"]


MISHES = {
    "operator": "y = Mish(x)",
    "softplus": "a = Softplus(x) b = Tanh(a) y = Mul(x, b)",
    "logarithm": "a = Exp(x) b = Add(one, a) d = Log(b) e = Tanh(d) y = Mul(e, x)",
}


@pytest.mark.parametrize("body", MISHES.values(), ids=MISHES)
def test_mish(body: str) -> None:
    """Mish becomes a quotient on CPU and one operator elsewhere."""
    text = f"{LARGE} {NUMBERS} {{ {body} }}"
    assert_rewritten(text, [CPU], "Min Exp Add Mul Add Div Mul")
    assert_rewritten(text, [PORTABLE], "Mish")
    planned = executed_kernels(rewrite(text, CPU)).counts
    assert planned["", "Exp"] == 1
    assert planned["", "Softplus"] == 0


def test_mish_keeps_away() -> None:
    """Small tensors, chains used elsewhere and old opsets keep what they have."""
    chain = MISHES["softplus"]
    assert "256" in misses(f"(float[2,3] x) => (float[a,b] y) {{ {chain} }}", CPU)["expand-mish"]
    shared = "(float[n,64,128] x) => (float[a,b,c] y, float[d,e,f] b) { a = Softplus(x) b = Tanh(a) y = Mul(x, b) }"
    assert "elsewhere" in misses(shared, CPU)["expand-mish"]
    assert "no kernel" in misses(f"{LARGE} {{ {chain} }}", PORTABLE, opset=17)["recognize-mish"]
    assert operators(rewrite(f"{LARGE} {{ a = Softplus(x) b = Tanh(a) z = Neg(x) y = Mul(z, b) }}", CPU))[-1] == "Mul"


def test_mish_over_the_range_of_floats() -> None:
    """The quotient is right to rounding at every magnitude, and is NaN or infinite where Mish is."""
    text = f"(float[n,64] x) => (float[a,b] y) <float z = {{0}}> {{ {MISHES['softplus']} }}".replace("[n,64]", "[1024,64]")
    magnitudes = np.concatenate([2.0 ** np.linspace(-126, 127, 32768 - 4), [0, 20, np.inf, np.nan]])
    x = np.concatenate([-magnitudes, magnitudes]).astype(np.float32).reshape(1024, 64)
    wide = x.astype(np.float64)
    with np.errstate(all="ignore"):
        expected = wide * np.tanh(np.logaddexp(0, wide))
    found = open_session(rewrite(text, CPU)).run({"x": x})["y"]
    assert np.array_equal(np.isfinite(found), np.isfinite(expected))
    finite = np.isfinite(expected)
    assert np.max(np.abs(found[finite] - expected[finite]) / np.maximum(1, np.abs(wide[finite]))) < 3e-7


ELUS = {
    "elu": ("Elu(x)", "Min Exp Sub Max"),
    "elu with alpha": ("Elu<alpha = 0.5>(x)", "Min Exp Sub Mul Max"),
    "steep elu": ("Elu<alpha = 1.5>(x)", "Min Exp Sub Mul Relu Add"),
    "celu": ("Celu<alpha = 2.0>(x)", "Min Mul Exp Sub Mul Max"),
    "selu": ("Selu(x)", "Min Exp Sub Mul Relu Mul Add"),
}


@pytest.mark.parametrize(("body", "expected"), ELUS.values(), ids=ELUS)
def test_exponential_units(body: str, expected: str) -> None:
    """Elu and its kin become vectorized arithmetic on CPU, and stay elsewhere."""
    text = f"{LARGE} {{ y = {body} }}"
    after = assert_rewritten(text, [CPU], expected)
    assert executed_kernels(after).counts["", "Exp"] == 1
    assert len(operators(rewrite(text, PORTABLE))) == 1


def test_exponential_units_keep_away() -> None:
    """Small tensors and negative factors keep the operator."""
    assert "4096" in misses(f"{SMALL} {{ y = Elu(x) }}", CPU)["expand-elu"]
    assert "positive" in misses(f"{LARGE} {{ y = Elu<alpha = -1.0>(x) }}", CPU)["expand-elu"]


def test_prelu() -> None:
    """Equal slopes make a LeakyRelu; slopes of at most 1 a maximum on CPU; others stay."""
    assert_rewritten(f"{LARGE} <float[1] s = {{0.25}}> {{ y = PRelu(x, s) }}", [CPU], "LeakyRelu")
    assert_rewritten(f"{LARGE} <float[2,1] s = {{3, 3}}> {{ y = PRelu(x, s) }}".replace("64", "2"), [PORTABLE], "LeakyRelu")
    slopes = "(float[n,3,40,40] x) => (float[a,b,c,d] y) <float[3,1,1] s = {0.25, -2, 1}> { y = PRelu(x, s) }"
    after = assert_rewritten(slopes, [CPU], "Mul Max")
    assert executed_kernels(after).counts["", "Max"] == 1
    assert_rewritten(slopes, [PORTABLE], "PRelu")
    assert "more than 1" in misses(slopes.replace("-2", "2"), CPU)["expand-prelu"]
    assert "more than 1" in misses(slopes.replace("-2", "0"), CPU)["expand-prelu"]
    assert "512" in misses("(float[3,2] x) => (float[a,b] y) <float[2] s = {0.1, 0.2}> { y = PRelu(x, s) }", CPU)["expand-prelu"]
    assert "not constant" in misses("(float[n,4] x, float[4] s) => (float[a,b] y) { y = PRelu(x, s) }", CPU)["use-leaky-relu"]


HARD_SWISHES = {
    "divided last": "a = Add(x, three) b = Clip(a, zero, six) d = Mul(x, b) y = Div(d, six)",
    "divided first": "a = Add(three, x) b = Clip(a, zero, six) d = Mul(b, sixth) y = Mul(d, x)",
    "within 0 and 1": "a = Div(x, six) b = Add(a, half) d = Clip(b, zero, one) y = Mul(x, d)",
}


@pytest.mark.parametrize("body", HARD_SWISHES.values(), ids=HARD_SWISHES)
def test_hard_swish(body: str) -> None:
    """Every spelling of HardSwish becomes a HardSigmoid that a convolution can take in, or the operator itself."""
    text = f"{SMALL} {NUMBERS} {{ {body} }}"
    assert_rewritten(text, [CPU], "HardSigmoid Mul")
    assert_rewritten(text, [PORTABLE], "HardSwish")
    assert_rewritten(text, [PORTABLE], "HardSigmoid Mul", opset=13)


def test_hard_swish_with_a_factor() -> None:
    """A constant that was merged into the division by six stays as a factor."""
    body = "a = Add(x, three) b = Clip(a, zero, six) d = Mul(x, b) y = Mul(d, half)"
    assert_rewritten(f"{SMALL} {NUMBERS} {{ {body} }}", [CPU], "HardSigmoid Mul Mul")
    unscaled = "a = Add(x, three) b = Clip(a, zero, six) y = Mul(x, b)"
    assert_rewritten(f"{SMALL} {NUMBERS} {{ {unscaled} }}", [CPU], "Add Clip Mul")


def test_hard_swish_keeps_away() -> None:
    """Other lower bounds and results that are used elsewhere keep what they have."""
    body = HARD_SWISHES["divided last"]
    assert operators(rewrite(f"{SMALL} {NUMBERS} {{ {body.replace('zero', 'one')} }}", CPU)) == ["Add", "Clip", "Mul", "Div"]
    shared = f"(float[n,3,4] x) => (float[a,b,c] y, float[d,e,f] b) {NUMBERS} {{ {body} }}"
    assert "elsewhere" in misses(shared, CPU)["recognize-hard-swish"]


def test_hard_sigmoid() -> None:
    """A clipped line becomes HardSigmoid, with bounds as inputs and as attributes."""
    assert_rewritten(f"{SMALL} {NUMBERS} {{ a = Add(x, three) b = Clip(a, zero, six) y = Div(b, six) }}", [CPU], "HardSigmoid")
    assert_rewritten(
        f"{SMALL} {NUMBERS} {{ a = Mul(x, sixth) b = Add(a, half) y = Clip<min = 0.0, max = 1.0>(b) }}", [CPU], "HardSigmoid", 9
    )
    assert_rewritten(f"{SMALL} {NUMBERS} {{ y = Clip(x, zero, one) }}", [CPU], "Clip")
    assert_rewritten(f"{SMALL} {NUMBERS} {{ a = Add(x, three) b = Clip(a, zero, six) y = Div(b, three) }}", [CPU], "Add Clip Div")


def test_softsign() -> None:
    """x / (1 + |x|) becomes Softsign; other divisors stay."""
    assert_rewritten(f"{SMALL} {NUMBERS} {{ a = Abs(x) b = Add(one, a) y = Div(x, b) }}", [CPU], "Softsign")
    assert_rewritten(f"{SMALL} {NUMBERS} {{ a = Abs(x) b = Add(two, a) y = Div(x, b) }}", [CPU], "Abs Add Div")
    shared = "(float[n] x) => (float[a] y, float[b] t) <float one = {1}> { t = Abs(x) s = Add(one, t) y = Div(x, s) }"
    assert "elsewhere" in misses(shared, CPU)["recognize-softsign"]


def test_softplus_threshold() -> None:
    """A threshold from which on softplus is linear goes; a lower one stays."""
    body = "{ a = Softplus(x) b = Greater(x, t) y = Where(b, x, a) }"
    assert_rewritten(f"{SMALL} <float t = {{20}}> {body}", [PORTABLE], "Softplus")
    assert "low" in misses(f"{SMALL} <float t = {{2}}> {body}", CPU)["drop-softplus-threshold"]


def test_constants_that_widen_the_shape() -> None:
    """A constant of higher rank than its operand keeps the rules away."""
    text = "(float[n] x) => (float[a,b] y) <float[1,1] half = {0.5}, float one = {1}, float s2 = {1.4142135}>"
    assert "widens" in misses(f"{text} {{ {ERF_GELUS['torch']} }}", CPU)["recognize-gelu"]


def test_activations_in_a_subgraph() -> None:
    """The rules look into branches, and the new domain is imported by the model."""
    text = """
    (bool t, float[n,64,128] x) => (float[a,b,c] y) <float s2 = {1.4142135}, float one = {1}, float half = {0.5}> {
        y = If (t) <
            then_branch = g1 () => (float[a,b,c] p) { a1 = Div(x, s2) b1 = Erf(a1) d1 = Add(b1, one) e1 = Mul(x, d1) p = Mul(e1, half) },
            else_branch = g2 () => (float[a,b,c] q) { q = Elu(x) }
        >
    }
    """
    after = rewrite(text, CPU)
    assert operators(after) == ["If", "Gelu", "Min", "Exp", "Sub", "Max"] or operators(after) == ["If", "Min", "Exp", "Sub", "Max", "Gelu"]
    for branch in (True, False):
        x = np.random.default_rng(0).normal(size=(2, 64, 128)).astype(np.float32)
        assert_same_outputs(parse(text), after, {"t": np.array(branch), "x": x})

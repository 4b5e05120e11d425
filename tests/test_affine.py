"""Each rule of ``affine`` folds what it may, keeps the outputs, and stays away where it must."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx_ir as ir
import pytest

from graphopt.passes.affine import Affine
from tests.helpers import assert_rewritten, assert_same_outputs, misses, operators, parse, rewrite


def numbers(count: int, seed: int = 0, low: float = 0.5) -> str:
    """Constants for a text, all positive."""
    return "{" + ", ".join(f"{value:.4f}" for value in np.random.default_rng(seed).uniform(low, 2, count)) + "}"


def vectors(names: Iterable[str], length: int) -> str:
    """Declarations of constant vectors."""
    return ", ".join(f"float[{length}] {name} = {numbers(length, seed)}" for seed, name in enumerate(names))


IMAGE = "(float[n,2,5,5] x) => (float[a,b,c,d] y)"
CONV = f"float[4,2,3,3] w = {numbers(72)}"
GROUPED = f"float[4,1,3,3] w = {numbers(36)}"
TRANSPOSED = f"float[2,4,3,3] w = {numbers(72)}"
TRANSPOSED_GROUPS = f"float[2,2,3,3] w = {numbers(36)}"
ROWS = "(float[n,3] x) => (float[a,b] y)"
MATRIX = f"float[3,4] w = {numbers(12)}"
NORM4, NORM2 = vectors("abcd", 4), vectors("abcd", 2)
SAME = '"SAME_UPPER"'
CHANNELS = f"float[4,1,1] s = {numbers(4)}"

CASES = {
    "norm behind conv": (f"{IMAGE} <{CONV}, {NORM4}> {{ t = Conv(x, w) y = BatchNormalization(t, a, b, c, d) }}", "Conv", 18),
    "norm behind padded conv with bias": (
        (
            f"{IMAGE} <{CONV}, {NORM4}, float[4] e = {numbers(4)}> "
            f"{{ t = Conv<pads = [1, 1, 1, 1]>(x, w, e) y = BatchNormalization(t, a, b, c, d) }}"
        ),
        "Conv",
        18,
    ),
    "norm of opset 7": (f"{IMAGE} <{CONV}, {NORM4}> {{ t = Conv(x, w) y = BatchNormalization(t, a, b, c, d) }}", "Conv", 7),
    "norm behind grouped conv": (
        f"{IMAGE} <{GROUPED}, {NORM4}> {{ t = Conv<group = 2>(x, w) y = BatchNormalization(t, a, b, c, d) }}",
        "Conv",
        18,
    ),
    "norm behind transposed conv": (
        f"{IMAGE} <{TRANSPOSED}, {NORM4}> {{ t = ConvTranspose<strides = [2, 2]>(x, w) y = BatchNormalization(t, a, b, c, d) }}",
        "ConvTranspose",
        18,
    ),
    "norm behind grouped transposed conv": (
        f"{IMAGE} <{TRANSPOSED_GROUPS}, {NORM4}> {{ t = ConvTranspose<group = 2>(x, w) y = BatchNormalization(t, a, b, c, d) }}",
        "ConvTranspose",
        18,
    ),
    "norm behind gemm": (f"{ROWS} <{MATRIX}, {NORM4}> {{ t = Gemm<alpha = 0.5>(x, w) y = BatchNormalization(t, a, b, c, d) }}", "Gemm", 18),
    "norm behind transposed gemm": (
        (
            f"(float[n,4] x) => (float[a,b] y) <float[4,4] w = {numbers(16)}, {NORM4}> "
            "{ t = Gemm<transB = 1, beta = 2.0>(x, w, d) y = BatchNormalization(t, a, b, c, d) }"
        ),
        "Gemm",
        18,
    ),
    "norm behind matmul": (f"{ROWS} <{MATRIX}, {NORM4}> {{ t = MatMul(x, w) y = BatchNormalization(t, a, b, c, d) }}", "MatMul Add", 18),
    "norm behind matmul and bias": (
        f"{ROWS} <{MATRIX}, {NORM4}, float[4] e = {numbers(4)}> {{ s = MatMul(x, w) t = Add(e, s) y = BatchNormalization(t, a, b, c, d) }}",
        "MatMul Add",
        18,
    ),
    "norm in a conv that is an output": (
        (
            f"(float[n,2,5,5] x) => (float[a,b,c,d] t, float[e,f,g,h] y) <{CONV}, {NORM4}> "
            f"{{ t = Conv(x, w) y = BatchNormalization(t, a, b, c, d) }}"
        ),
        "Conv BatchNormalization",
        18,
    ),
    "scale behind conv": (f"{IMAGE} <{CONV}, {CHANNELS}> {{ t = Conv(x, w) y = Mul(s, t) }}", "Conv", 18),
    "division behind conv": (f"{IMAGE} <{CONV}, {CHANNELS}> {{ t = Conv(x, w) y = Div(t, s) }}", "Conv", 18),
    "division by conv": (f"{IMAGE} <{CONV}, {CHANNELS}> {{ t = Conv(x, w) y = Div(s, t) }}", "Conv Div", 18),
    "shift behind conv": (f"{IMAGE} <{CONV}, {CHANNELS}> {{ t = Conv(x, w) y = Add(t, s) }}", "Conv", 18),
    "difference behind conv": (f"{IMAGE} <{CONV}, {CHANNELS}> {{ t = Conv(x, w) y = Sub(s, t) }}", "Conv", 18),
    "scale along another axis": (f"{IMAGE} <{CONV}, float[3] s = {{1, 2, 3}}> {{ t = Conv(x, w) y = Mul(t, s) }}", "Conv Mul", 18),
    "scale that widens": (f"{IMAGE} <float[1,2,3,3] w = {numbers(18)}, {CHANNELS}> {{ t = Conv(x, w) y = Mul(t, s) }}", "Conv Mul", 18),
    "scale behind matmul": (f"{ROWS} <{MATRIX}, float[4] s = {numbers(4)}> {{ t = MatMul(x, w) y = Mul(t, s) }}", "MatMul", 18),
    "shift behind matmul": (f"{ROWS} <{MATRIX}, float[4] s = {numbers(4)}> {{ t = MatMul(x, w) y = Add(t, s) }}", "MatMul Add", 18),
    "scale by number behind batched matmul": (
        f"(float[n,5,3] x) => (float[a,b,c] y) <{MATRIX}, float s = {{0.5}}> {{ t = MatMul(x, w) y = Mul(t, s) }}",
        "MatMul",
        18,
    ),
    "scale per row": (f"{ROWS} <{MATRIX}, float[3,1] s = {{1, 2, 3}}> {{ t = MatMul(x, w) y = Mul(t, s) }}", "MatMul Mul", 18),
    "scale through views": (
        (
            f"(float[n,5,3] x) => (float[a,b,c,d] y) <{MATRIX}, float[4] e = {numbers(4)}, float s = {{2}}, int64[4] v = {{0, 5, 2, 2}}> "
            "{ p = MatMul(x, w) q = Add(p, e) r = Reshape(q, v) t = Transpose<perm = [0, 2, 1, 3]>(r) y = Div(t, s) }"
        ),
        "MatMul Add Reshape Transpose",
        18,
    ),
    "scale through views by a vector": (
        (
            f"(float[n,5,3] x) => (float[a,b,c,d] y) <{MATRIX}, float[2] s = {{2, 3}}, int64[4] v = {{0, 5, 2, 2}}> "
            "{ p = MatMul(x, w) r = Reshape(p, v) y = Mul(r, s) }"
        ),
        "MatMul Reshape Mul",
        18,
    ),
    "norm before conv": (f"{IMAGE} <{CONV}, {NORM2}> {{ t = BatchNormalization(x, a, b, c, d) y = Conv(t, w) }}", "Conv", 18),
    "norm before padded conv": (
        f"{IMAGE} <{CONV}, {NORM2}> {{ t = BatchNormalization(x, a, b, c, d) y = Conv<pads = [0, 0, 1, 1]>(t, w) }}",
        "BatchNormalization Conv",
        18,
    ),
    "norm before automatically padded conv": (
        f"{IMAGE} <{CONV}, {NORM2}> {{ t = BatchNormalization(x, a, b, c, d) y = Conv<auto_pad = {SAME}>(t, w) }}",
        "BatchNormalization Conv",
        18,
    ),
    "scale before padded conv": (
        f"{IMAGE} <{GROUPED}, float[2,1,1] s = {{2, 3}}> {{ t = Mul(x, s) y = Conv<group = 2, pads = [1, 1, 1, 1]>(t, w) }}",
        "Conv",
        18,
    ),
    "shift before grouped conv": (
        f"{IMAGE} <{GROUPED}, float[2,1,1] s = {{2, 3}}> {{ t = Sub(x, s) y = Conv<group = 2>(t, w) }}",
        "Conv",
        18,
    ),
    "scale before transposed conv": (
        f"{IMAGE} <{TRANSPOSED_GROUPS}, float[2,1,1] s = {{2, 3}}> {{ t = Mul(x, s) y = ConvTranspose<group = 2>(t, w) }}",
        "ConvTranspose",
        18,
    ),
    "shift before transposed conv": (
        f"{IMAGE} <{TRANSPOSED}, float[2,1,1] s = {{2, 3}}> {{ t = Add(x, s) y = ConvTranspose(t, w) }}",
        "Add ConvTranspose",
        18,
    ),
    "scale and shift before gemm": (
        f"{ROWS} <{MATRIX}, float[3] s = {{2, 3, 4}}> {{ r = Mul(x, s) t = Add(r, s) y = Gemm<alpha = 0.5>(t, w) }}",
        "Gemm",
        18,
    ),
    "scale before transposed data": (
        f"(float[3,n] x) => (float[a,b] y) <{MATRIX}, float[3] s = {{2, 3, 4}}> {{ r = Mul(x, s) y = Gemm<transA = 1>(r, w) }}",
        "Mul Gemm",
        18,
    ),
    "scale before matmul": (f"{ROWS} <{MATRIX}, float[3] s = {{2, 3, 4}}> {{ r = Mul(x, s) y = MatMul(r, w) }}", "MatMul", 18),
    "shift before matmul": (f"{ROWS} <{MATRIX}, float[3] s = {{2, 3, 4}}> {{ r = Add(x, s) y = MatMul(r, w) }}", "Add MatMul", 18),
    "shift before matmul and bias": (
        f"{ROWS} <{MATRIX}, float[3] s = {{2, 3, 4}}, float[4] e = {numbers(4)}> {{ r = Add(x, s) t = MatMul(r, w) y = Add(t, e) }}",
        "MatMul Add",
        18,
    ),
    "scale that is used twice": (
        (
            f"{ROWS} <{MATRIX}, float[3,4] v = {numbers(12, 1)}, float[3] s = {{2, 3, 4}}> "
            "{ r = Mul(x, s) p = MatMul(r, w) q = MatMul(r, v) y = Sub(p, q) }"
        ),
        "Mul MatMul MatMul Sub",
        18,
    ),
    "two norms": (
        (
            f"(float[n,2,5,5] x) => (float[a,b,c,d] y) <{NORM2}> "
            f"{{ t = BatchNormalization(x, a, b, c, d) y = BatchNormalization(t, d, c, b, a) }}"
        ),
        "BatchNormalization",
        18,
    ),
    "norm and scale": (
        f"{IMAGE} <{NORM2}, float[2,1,1] s = {{2, 3}}> {{ t = BatchNormalization(x, a, b, c, d) u = Mul(t, s) y = Add(u, s) }}",
        "BatchNormalization",
        18,
    ),
    "shift and norm": (
        f"{IMAGE} <{NORM2}, float[2,1,1] s = {{2, 3}}> {{ t = Sub(x, s) y = BatchNormalization(t, a, b, c, d) }}",
        "BatchNormalization",
        18,
    ),
    "narrowing matmuls": (f"{ROWS} <{MATRIX}, float[4,2] v = {numbers(8)}> {{ t = MatMul(x, w) y = MatMul(t, v) }}", "MatMul", 18),
    "factorized matmuls": (
        (
            f"(float[n,4] x) => (float[a,b] y) <float[4,1] w = {numbers(4)}, float[1,4] v = {numbers(4)}> "
            f"{{ t = MatMul(x, w) y = MatMul(t, v) }}"
        ),
        "MatMul MatMul",
        18,
    ),
    "gemm's factors": (f"{ROWS} <{MATRIX}, float[4] e = {numbers(4)}> {{ y = Gemm<alpha = 0.5, beta = 3.0>(x, w, e) }}", "Gemm", 18),
}


@pytest.mark.parametrize(("text", "expected", "opset"), CASES.values(), ids=CASES.keys())
def test_rule(text: str, expected: str, opset: int) -> None:
    """A rule folds, or stays away, and the outputs stay the same."""
    assert_rewritten(text, [Affine()], expected, opset)


def test_gemm_factors_are_gone() -> None:
    """Folded factors leave the attributes' defaults."""
    after = rewrite(f"{ROWS} <{MATRIX}, float[4] e = {numbers(4)}> {{ y = Gemm<alpha = 0.5, beta = 3.0>(x, w, e) }}", Affine())
    assert not after.graph[0].attributes


def test_shared_weight_stays() -> None:
    """A weight that another node uses too is not copied, and the ledger says so."""
    text = f"{ROWS} <{MATRIX}, {NORM4}> {{ t = Gemm(x, w) u = BatchNormalization(t, a, b, c, d) v = Gemm(x, w) y = Sub(u, v) }}"
    assert operators(rewrite(text, Affine())) == ["Gemm", "BatchNormalization", "Gemm", "Sub"]
    assert misses(text, Affine())["fold-scaling-into-weight"] == "the weight w is shared"


def test_training_norm_stays() -> None:
    """A BatchNormalization that trains uses the batch's statistics."""
    text = f"{IMAGE} <{CONV}, {NORM4}> {{ t = Conv(x, w) y = BatchNormalization<training_mode = 1>(t, a, b, c, d) }}"
    assert misses(text, Affine())["fold-scaling-into-weight"] == "it trains"


def test_zero_variance() -> None:
    """A variance that is not positive is left to the runtime; a zero with an epsilon is folded."""
    text = f"{IMAGE} <{CONV}, {NORM4}> {{ t = Conv(x, w) y = BatchNormalization<epsilon = EPS>(t, a, b, c, d) }}"
    text = text.replace(f"float[4] d = {numbers(4, 3)}", "float[4] d = {0, 1, 2, 3}")
    assert "variance" in misses(text.replace("EPS", "0.0"), Affine())["fold-scaling-into-weight"]
    assert_rewritten(text.replace("EPS", "0.001"), [Affine()], "Conv", tolerance=1e-4)


def test_norm_inside_a_branch() -> None:
    """Weights inside subgraphs are folded in their own graph."""
    text = f"""(float[n,2,5,5] x, bool c) => (float[a,b,e,d] y) {{ y = If(c) <
        then_branch = g () => (o) <{CONV}, {NORM4}> {{ t = Conv(x, w) o = BatchNormalization(t, a, b, c0, d) }},
        else_branch = h () => (p) <float[4,2,3,3] v = {numbers(72, 5)}> {{ p = Conv(x, v) }}
    > }}""".replace("] c = ", "] c0 = ")
    after = rewrite(text, Affine())
    assert operators(after) == ["If", "Conv", "Conv"]
    assert_same_outputs(parse(text), after)


def test_half_precision() -> None:
    """Weights of half precision are computed wider and stored as they were; one that would overflow stays."""
    model = _halved(f"{ROWS} <{MATRIX}, {NORM4}> {{ t = Gemm(x, w) y = BatchNormalization(t, a, b, c, d) }}")
    before = model.clone()
    Affine()(model)
    assert operators(model) == ["Gemm"]
    assert {value.dtype for value in model.graph.initializers.values()} == {ir.DataType.FLOAT16}
    assert_same_outputs(before, model, tolerance=4e-3)
    assert not Affine()(_halved(f"{ROWS} <{MATRIX}, float s = {{60000}}> {{ t = MatMul(x, w) y = Mul(t, s) }}")).modified


def _halved(text: str) -> ir.Model:
    """A model of a text with all floats in half precision."""
    model = parse(text)
    for value in (*model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values()):
        value.type = ir.TensorType(ir.DataType.FLOAT16)
        if value.const_value is not None:
            value.const_value = ir.tensor(value.const_value.numpy().astype(np.float16), name=value.name)
    return model

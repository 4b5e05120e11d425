"""Each rule of ``normalize`` fires on what exporters write, keeps the outputs, and stays away where it must."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import onnx_ir as ir
import pytest

from graphopt.ledger import Recorder, recording
from graphopt.passes.normalize import Normalize
from graphopt.proof import Prover
from graphopt.runtime.kernels import executed_kernels
from graphopt.runtime.session import SessionOptions
from tests.helpers import assert_rewritten, assert_same_outputs, misses, needs_opset, operators, parse, random_feeds, rewrite

CPU, PORTABLE = Normalize(), Normalize(target="portable")
Target = Literal["cpu", "portable"]

X = "(float[n,s,4] x) => (float[a,b,c] y)"
NUMBERS = """
    <float two = {2}, float half = {0.5}, float minus = {-0.5}, float[1] eps = {0.00001}, float one = {1}, int64[1] last = {-1},
    int64[1] second = {1}, float[4] g = {1, 2, 0.5, -1}, float[4] h = {0.5, 0.25, 0, 1}, float[1,1,4] w = {1, 2, 0.5, -1}>
"""

CENTERED = "m = ReduceMean(x, last) d = Sub(x, m)"
LAYER_NORMS = {
    "torch": "p = Pow(d, two) v = ReduceMean(p, last) e = Add(v, eps) r = Sqrt(e) q = Div(d, r) t = Mul(q, g) y = Add(t, h)",
    "products": "p = Mul(d, d) v = ReduceMean(p, last) e = Add(eps, v) r = Sqrt(e) q = Div(d, r) t = Mul(g, q) y = Add(h, t)",
    "reciprocal": """
        p = Mul(d, d) v = ReduceMean(p, last) e = Add(v, eps) r = Sqrt(e) i = Reciprocal(r) q = Mul(d, i) t = Mul(q, g) y = Add(t, h)
    """,
    "scaled root": """
        p = Mul(d, d) v = ReduceMean(p, last) e = Add(v, eps) r = Sqrt(e) i = Reciprocal(r) j = Mul(i, g) t = Mul(d, j) y = Add(t, h)
    """,
    "without epsilon": "p = Pow(d, two) v = ReduceMean(p, last) r = Sqrt(v) q = Div(d, r) t = Mul(q, g) y = Add(t, h)",
    "without shift": "p = Pow(d, two) v = ReduceMean(p, last) e = Add(v, eps) r = Sqrt(e) q = Div(d, r) y = Mul(q, g)",
    "without both": "p = Pow(d, two) v = ReduceMean(p, last) e = Add(v, eps) r = Pow(e, half) y = Div(d, r)",
    "scale of rank 3": "p = Pow(d, two) v = ReduceMean(p, last) e = Add(v, eps) r = Sqrt(e) q = Div(d, r) t = Mul(q, w) y = Add(t, h)",
}
RMS_NORMS = {
    "root and division": "p = Pow(x, two) v = ReduceMean(p, last) e = Add(v, eps) r = Sqrt(e) q = Div(x, r) y = Mul(q, g)",
    "product": "p = Mul(x, x) v = ReduceMean(p, last) e = Add(v, eps) r = Sqrt(e) q = Div(x, r) y = Mul(g, q)",
    "reciprocal": "p = Pow(x, two) v = ReduceMean(p, last) e = Add(v, eps) r = Sqrt(e) i = Reciprocal(r) q = Mul(x, i) y = Mul(g, q)",
    "one by root": "p = Pow(x, two) v = ReduceMean(p, last) e = Add(v, eps) r = Sqrt(e) i = Div(one, r) q = Mul(i, x) y = Mul(q, g)",
    "negative power": "p = Pow(x, two) v = ReduceMean(p, last) e = Add(v, eps) i = Pow(e, minus) q = Mul(x, i) y = Mul(q, g)",
    "scale first": "p = Pow(x, two) v = ReduceMean(p, last) e = Add(v, eps) r = Sqrt(e) i = Reciprocal(r) j = Mul(g, i) y = Mul(x, j)",
    "without scale": "p = Pow(x, two) v = ReduceMean(p, last) e = Add(v, eps) r = Sqrt(e) y = Div(x, r)",
}


@pytest.mark.parametrize("body", LAYER_NORMS.values(), ids=LAYER_NORMS)
@pytest.mark.parametrize("target", ["cpu", "portable"])
def test_layer_normalization(body: str, target: Target) -> None:
    """Every spelling becomes one operator, scale and shift included."""
    after = assert_rewritten(f"{X} {NUMBERS} {{ {CENTERED} {body} }}", [Normalize(target=target)], "LayerNormalization")
    assert [kernel.op_type for kernel in executed_kernels(after).nodes] == ["LayerNormalization"]


def test_layer_normalization_of_old_opsets() -> None:
    """Below opset 17 the runtime has the operator, the standard has not."""
    text = f"{X} {NUMBERS} {{ {CENTERED} {LAYER_NORMS['torch']} }}".replace("(x, last)", "<axes = [-1]>(x)").replace(
        "(p, last)", "<axes = [2]>(p)"
    )
    assert_rewritten(text, [CPU], "LayerNormalization", opset=11)
    assert "no kernel" in misses(text, PORTABLE, opset=11)["recognize-normalization"]


@pytest.mark.parametrize("body", RMS_NORMS.values(), ids=RMS_NORMS)
@pytest.mark.parametrize(
    ("target", "opset", "expected"),
    [
        ("cpu", 18, "SimplifiedLayerNormalization"),
        pytest.param("cpu", 23, "RMSNormalization", marks=needs_opset(23)),
        pytest.param("portable", 23, "RMSNormalization", marks=needs_opset(23)),
    ],
)
def test_rms_normalization(body: str, target: Target, opset: int, expected: str) -> None:
    """Every spelling becomes one operator: the standard's from opset 23 on, the runtime's before."""
    after = assert_rewritten(f"{X} {NUMBERS} {{ {body} }}", [Normalize(target=target)], expected, opset)
    assert len(executed_kernels(after).nodes) == 1


def test_rms_normalization_of_doubles() -> None:
    """A double model has a kernel too."""
    text = f"{X} {NUMBERS} {{ {RMS_NORMS['reciprocal']} }}".replace("float", "double")
    assert_rewritten(text, [CPU], "SimplifiedLayerNormalization")


def test_rms_normalization_within_casts() -> None:
    """Casts to float32 around it go, for the kernel computes so anyway."""
    text = """
    (float16[n,s,4] x) => (float16[a,b,c] y)
    <float two = {2}, float eps = {0.00001}, int64[1] last = {-1}, float[4] g32 = {1, 2, 0.5, -1}> {
        g = Cast<to = 10>(g32)
        f = Cast<to = 1>(x) p = Pow(f, two) v = ReduceMean(p, last) e = Add(v, eps) r = Sqrt(e) i = Reciprocal(r) q = Mul(f, i)
        k = Cast<to = 10>(q) y = Mul(g, k)
    }
    """
    assert_rewritten(text, [CPU], "Cast SimplifiedLayerNormalization", tolerance=2e-3)


def test_rms_normalization_with_a_computed_scale() -> None:
    """A scale of 1 + w need not be constant."""
    body = RMS_NORMS["root and division"].replace("g)", "u)")
    assert_rewritten(
        f"(float[n,s,4] x, float[4] k) => (float[a,b,c] y) {NUMBERS} {{ u = Add(k, one) {body} }}",
        [CPU],
        "Add SimplifiedLayerNormalization",
    )


def test_normalizations_keep_away() -> None:
    """Other axes, results used elsewhere, old opsets and what only looks alike keep what they have."""
    torch = LAYER_NORMS["torch"]
    wrong = f"(float[n,4,4] x) => (float[a,b,c] y) {NUMBERS} {{ {CENTERED} {torch} }}".replace("(p, last)", "(p, second)")
    assert "Sqrt" in operators(rewrite(wrong, CPU))
    shared = f"(float[n,s,4] x) => (float[a,b,c] y, float[d1,d2,d3] r) {NUMBERS} {{ {CENTERED} {torch} }}"
    assert "elsewhere" in misses(shared, CPU)["recognize-normalization"]
    rms = f"{X} {NUMBERS} {{ {RMS_NORMS['product']} }}"
    assert "no kernel" in misses(rms, PORTABLE)["recognize-normalization"]
    other = rms.replace("Mul(x, x)", "Mul(x, g)")
    assert "Sqrt" in operators(rewrite(other, CPU))
    assert "Sqrt" in operators(
        rewrite(rms.replace("(p, last)", "<keepdims = 0>(p, last)").replace("float[n,s,4] x", "float[4,4,4] x"), CPU)
    )


LARGE = "(float[n,s,128] x, float[n,s,128] z) => (float[a,b,c] y)"


def layer_norm_model(body: str, width: int = 128) -> ir.Model:
    """A model over x and z with a scale g and a shift h."""
    generator = np.random.default_rng(0)
    numbers = (", ".join(f"{number:.3f}" for number in generator.normal(size=width)) for _ in range(2))
    scale, shift = numbers
    return parse(f"{LARGE} <float[{width}] g = {{{scale}}}, float[{width}] h = {{{shift}}}> {{ {body} }}", opset=17)


def test_sum_before_layer_normalization() -> None:
    """The runtime fuses Add, not Sum, into its slow kernel."""
    before, after = (layer_norm_model("t = Add(x, z) y = LayerNormalization<axis = -1>(t, g, h)") for _ in range(2))
    assert executed_kernels(before).counts["com.microsoft", "SkipLayerNormalization"] == 1
    CPU(after)
    assert operators(after) == ["Sum", "LayerNormalization"]
    assert executed_kernels(after).counts == {("", "Sum"): 1, ("", "LayerNormalization"): 1}
    assert_same_outputs(before, after)


def test_sum_passes_the_proof(tmp_path: Path) -> None:
    """One kernel more than before is what was planned."""
    before = layer_norm_model("t = Add(x, z) y = LayerNormalization<axis = -1>(t, g, h)")
    after = before.clone()
    with recording(Recorder()) as recorder:
        CPU(after)
    paths = [tmp_path / "before.onnx", tmp_path / "after.onnx"]
    for model, path in zip((before, after), paths, strict=True):
        ir.save(model, path)
    prover = Prover(paths[0], paths[0], [random_feeds(before)], SessionOptions(), 5.0, ("kernels",))
    assert prover.first_fault(paths[1], recorder.rewrites) is None


def test_sum_keeps_away() -> None:
    """Small tensors, biases, other targets and other consumers keep their Add."""
    text = "(float[2,4] x, float[2,4] z) => (float[a,b] y) <float[4] g = {1, 2, 3, 4}> { t = Add(x, z) y = LayerNormalization(t, g) }"
    assert "256" in misses(text, CPU)["sum-before-normalization"]
    assert operators(rewrite(text, PORTABLE)) == ["Add", "LayerNormalization"]
    biased = layer_norm_model("t = Add(x, h) y = LayerNormalization<axis = -1>(t, g, h)")
    CPU(biased)
    assert operators(biased) == ["Add", "LayerNormalization"]


SKIPS = {
    "plain": ("y = com.microsoft.SkipLayerNormalization<epsilon = 0.00001>(x, z, g, h)", ["Sum", "LayerNormalization"]),
    "bias": ("y = com.microsoft.SkipLayerNormalization(x, z, g, h, g)", ["Add", "Sum", "LayerNormalization"]),
    "without shift": ("y = com.microsoft.SkipLayerNormalization(x, z, g)", ["Sum", "LayerNormalization"]),
    "sum used": ("u, , , v = com.microsoft.SkipLayerNormalization(x, z, g, h) y = Add(u, v)", ["Sum", "LayerNormalization", "Add"]),
    "rms": ("y = com.microsoft.SkipSimplifiedLayerNormalization(x, z, g)", ["Add", "SimplifiedLayerNormalization"]),
}


@pytest.mark.parametrize(("body", "expected"), SKIPS.values(), ids=SKIPS)
def test_skip_normalizations(body: str, expected: list[str]) -> None:
    """The fused operators are taken apart on CPU."""
    before, after = layer_norm_model(body), layer_norm_model(body)
    after.graph.inputs[0].shape = before.graph.inputs[0].shape = ir.Shape((2, 16, 128))
    after.graph.inputs[1].shape = before.graph.inputs[1].shape = ir.Shape((2, 16, 128))
    CPU(after)
    assert operators(after) == expected
    assert_same_outputs(before, after)


def test_skip_normalizations_keep_away() -> None:
    """Small tensors and other targets keep the fused operator."""
    text = "(float[1,2,4] x, float[1,2,4] z) => (float[a,b,c] y) <float[4] g = {1, 2, 3, 4}>"
    body = "{ y = com.microsoft.SkipSimplifiedLayerNormalization(x, z, g) }"
    assert "2048" in misses(f"{text} {body}", CPU)["split-skip-normalization"]
    assert operators(rewrite(f"{text} {body}", PORTABLE)) == ["SkipSimplifiedLayerNormalization"]


@pytest.mark.parametrize("shape", ["n,4,6,5", "n,4,h,5", "n,4,h,w", "n,4,7"])
def test_group_normalization(shape: str) -> None:
    """GroupNormalization, for which the runtime has no kernel, becomes InstanceNormalization of a view."""
    outputs = ",".join(f"o{index}" for index in range(len(shape.split(","))))
    text = f"(float[{shape}] x) => (float[{outputs}] y) <float[4] g = {{1, 2, 3, 4}}, float[4] h = {{1, -1, 0, 1}}>"
    text += " { y = GroupNormalization<num_groups = 2>(x, g, h) }"
    ending = "Shape" if shape.count("h") + shape.count("w") > 1 else ""
    expected = f"{ending} Reshape InstanceNormalization Reshape Mul Add".strip()
    assert_rewritten(text, [CPU], expected, opset=21)
    assert operators(rewrite(text, PORTABLE, opset=21)) == ["GroupNormalization"]

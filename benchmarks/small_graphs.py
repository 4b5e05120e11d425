"""A few operators each, at sizes that occur in networks: what a rule gains where no measured model asks for it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from inputs import Feed
from onnx import numpy_helper, parser

_OPSET = 18
_MAP = "float[1,64,56,56]"
_TEXT = "float[1,128,768]"


@dataclass(frozen=True)
class SmallGraph:
    """A graph that one rule rewrites.

    Attributes:
        rule: its name.
        label: what the graph is, in words.
        text: ``(inputs) => (outputs) { nodes }`` in ONNX's text form.
        weights: names and shapes of further random initializers, which the text need not declare.
        opset: version of the standard domain.
    """

    rule: str
    label: str
    text: str
    weights: tuple[tuple[str, tuple[int, ...]], ...] = ()
    opset: int = _OPSET

    def write(self, path: Path) -> Feed:
        """Writes the model and returns random inputs for it."""
        generator = np.random.default_rng(0)
        imports = f'<ir_version: 8, opset_import: ["": {self.opset}, "com.microsoft": 1]>'
        model = parser.parse_model(f"{imports} graph {self.text}")
        for name, shape in self.weights:
            array = generator.standard_normal(shape, np.float32) * np.float32(0.1)
            model.graph.initializer.append(numpy_helper.from_array(array, name))
        onnx.save(model, path)
        return {value.name: generator.standard_normal(_shape(value), np.float32) for value in model.graph.input}


def _shape(value: onnx.ValueInfoProto) -> tuple[int, ...]:
    return tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)


def _unary(rule: str, label: str, nodes: str, constants: str = "", shape: str = _MAP, opset: int = _OPSET) -> SmallGraph:
    return SmallGraph(rule, label, f"({shape} x) => ({shape} y) {constants and f'<{constants}>'} {{ {nodes} }}", opset=opset)


def small_graphs() -> Iterator[SmallGraph]:
    """All of them."""
    yield _unary("expand-mish", "Mish, 64 channels of 56 x 56", "y = Mish(x)")
    yield _unary("expand-mish", "x tanh(softplus(x)), 64 channels of 56 x 56", "s = Softplus(x) t = Tanh(s) y = Mul(x, t)")
    yield _unary("expand-elu", "Elu, 64 channels of 56 x 56", "y = Elu(x)")
    yield _unary("use-leaky-relu", "PRelu, one slope, 64 channels of 56 x 56", "y = PRelu(x, a)", "float[1] a = {0.25}")
    yield SmallGraph(
        "expand-prelu", "PRelu, 64 slopes and channels of 56 x 56", f"({_MAP} x) => ({_MAP} y) {{ y = PRelu(x, a) }}", (("a", (64, 1, 1)),)
    )
    yield _unary(
        "recognize-hard-sigmoid",
        "clip(x + 3, 0, 6) / 6, 64 channels of 56 x 56",
        "a = Add(x, three) c = Clip(a, zero, six) y = Div(c, six)",
        "float three = {3.0}, float zero = {0.0}, float six = {6.0}",
    )
    yield _unary(
        "recognize-softsign", "x / (1 + |x|), 64 channels of 56 x 56", "a = Abs(x) b = Add(a, one) y = Div(x, b)", "float one = {1.0}"
    )
    yield _unary(
        "drop-softplus-threshold",
        "Where(x > 20, x, softplus(x)), 64 channels of 56 x 56",
        "c = Greater(x, t) s = Softplus(x) y = Where(c, x, s)",
        "float t = {20.0}",
    )
    yield _unary(
        "recognize-gelu",
        "Gelu with tanh, 128 rows of 3072",
        "p = Pow(x, three) m = Mul(p, a) s = Add(x, m) i = Mul(s, b) t = Tanh(i) u = Add(t, one) h = Mul(x, half) y = Mul(h, u)",
        "float three = {3.0}, float a = {0.044715}, float b = {0.7978845608}, float one = {1.0}, float half = {0.5}",
        "float[1,128,3072]",
    )
    yield _unary("expand-power", "Pow(x, 2), 128 rows of 3072", "y = Pow(x, two)", "float two = {2.0}", "float[1,128,3072]")
    yield _unary("expand-power", "Pow(x, 0.5), 128 rows of 3072", "a = Abs(x) y = Pow(a, e)", "float e = {0.5}", "float[1,128,3072]")
    yield _unary("multiply-by-reciprocal", "x / c, 128 rows of 3072", "y = Div(x, c)", "float c = {3.0}", "float[1,128,3072]")
    yield from _normalizations()
    yield from _products()


def _normalizations() -> Iterator[SmallGraph]:
    scale_shift = (("w", (768,)), ("b", (768,)))
    for rows in (1, 128):
        shape = f"float[1,{rows},768]"
        inputs = f"({shape} x, {shape} r) => ({shape} y)"
        label = f"{rows} row{'s' if rows > 1 else ''} of 768"
        yield SmallGraph(
            "sum-before-normalization",
            f"Add, LayerNormalization, {label}",
            f"{inputs} {{ s = Add(x, r) y = LayerNormalization(s, w, b) }}",
            scale_shift,
        )
        yield SmallGraph(
            "split-skip-normalization",
            f"SkipLayerNormalization, {label}",
            f"{inputs} {{ y = com.microsoft.SkipLayerNormalization(x, r, w, b) }}",
            scale_shift,
        )
    yield SmallGraph(
        "split-skip-normalization",
        "SkipSimplifiedLayerNormalization, 128 rows of 768",
        f"({_TEXT} x, {_TEXT} r) => ({_TEXT} y) {{ y = com.microsoft.SkipSimplifiedLayerNormalization(x, r, w) }}",
        (("w", (768,)),),
    )
    yield SmallGraph(
        "recognize-normalization",
        "x · reciprocal(sqrt(mean(x · x) + e)), 128 rows of 768",
        f"({_TEXT} x) => ({_TEXT} y) <int64[1] axes = {{-1}}, float e = {{0.00001}}> {{ q = Mul(x, x) m = ReduceMean(q, axes) a = Add(m, e)"
        " s = Sqrt(a) r = Reciprocal(s) n = Mul(x, r) y = Mul(n, w) }",
        (("w", (768,)),),
    )
    yield SmallGraph(
        "split-group-normalization",
        "GroupNormalization, 32 groups of 64 channels of 56 x 56",
        f"({_MAP} x) => ({_MAP} y) {{ y = GroupNormalization<num_groups = 32>(x, w, b) }}",
        (("w", (64,)), ("b", (64,))),
        opset=21,
    )


def _products() -> Iterator[SmallGraph]:
    yield SmallGraph(
        "contract-with-matmul",
        "Einsum bsd,df->bsf, 128 rows",
        '(float[1,128,768] x) => (float[1,128,768] y) { y = Einsum<equation = "bsd,df->bsf">(x, w) }',
        (("w", (768, 768)),),
    )
    yield SmallGraph(
        "contract-with-matmul",
        "Einsum bsd,hdk->bshk, 16 rows, 12 heads",
        '(float[1,16,768] x) => (float[1,16,12,64] y) { y = Einsum<equation = "bsd,hdk->bshk">(x, w) }',
        (("w", (12, 768, 64)),),
    )
    yield SmallGraph(
        "widen-depthwise-convolution",
        "depthwise Conv, kernel 31, 256 channels of 200",
        "(float[1,256,200] x) => (float[1,256,200] y) { y = Conv<group = 256, pads = [15, 15]>(x, w) }",
        (("w", (256, 1, 31)),),
    )
    yield SmallGraph(
        "merge-matmuls",
        "(x A) B, 128 rows, ranks 768, 768, 768",
        "(float[1,128,768] x) => (float[1,128,768] y) { a = MatMul(x, A) y = MatMul(a, B) }",
        (("A", (768, 768)), ("B", (768, 768))),
    )
    yield SmallGraph(
        "merge-scaling-into-batchnorm",
        "BatchNormalization, Mul by 64 factors, 56 x 56",
        f"({_MAP} x) => ({_MAP} y) <float[64] m = {{{','.join(['0.0'] * 64)}}}, float[64] v = {{{','.join(['1.0'] * 64)}}}>"
        " { r = Relu(x) n = BatchNormalization(r, w, b, m, v) y = Mul(n, f) }",
        (("w", (64,)), ("b", (64,)), ("f", (64, 1, 1))),
    )
    yield SmallGraph(
        "fold-gemm-factors",
        "Gemm with alpha 0.5 and beta 2, 128 rows of 768",
        "(float[128,768] x) => (float[128,768] y) { y = Gemm<alpha = 0.5, beta = 2.0>(x, w, b) }",
        (("w", (768, 768)), ("b", (768,))),
    )

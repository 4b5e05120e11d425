"""Tests of the recognition of attention and of the attention pass."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from graphopt.files import load
from graphopt.graph.attention import attentions_of
from graphopt.graph.edits import all_nodes
from graphopt.graph.masks import bounds, causal_offset, why_row_may_vanish
from graphopt.graph.view import View
from graphopt.passes.attention import Attention
from graphopt.passes.shapes import ShapesPass
from graphopt.passes.simplify import Simplify
from graphopt.runtime.kernels import executed_kernels
from graphopt.runtime.session import open_session
from tests.helpers import assert_rewritten, assert_same_outputs, misses, needs_opset, operators, parse, rewrite

CPU = Attention(target="cpu")
PORTABLE = Attention(target="portable")
on_opset_23 = needs_opset(23)

CORE = """(float[B,4,S,8] q, float[B,4,T,8] k, float[B,4,T,8] v {inputs}) => (float[B,4,S,8] y)
    <float zero = {{0.0}}, float lowest = {{-3.0e38}}, float hidden = {{-inf}}, float two = {{2.0}} {constants}> {{
    kt = Transpose<perm = [0, 1, 3, 2]>(k)
    s = MatMul(q, kt)
    {mask}
    p = Softmax<axis = -1>(t)
    nan = IsNaN(p)
    w = Where(nan, zero, p)
    y = MatMul(w, v) }}"""


def core(mask: str, inputs: str = "", constants: str = "") -> str:
    """An attention with a guard against rows that are hidden whole."""
    return CORE.format(mask=mask, inputs=inputs and f", {inputs}", constants=constants and f", {constants}")


CAUSAL = """start = Constant<value_int = 0>() step = Constant<value_int = 1>() {past}
    shape = Shape(q) third = Constant<value_int = 2>() s_len = Gather(shape, third)
    kshape = Shape(k) t_len = Gather(kshape, third)
    qs0 = Range(start, s_len, step) {shift} ks = Range(start, t_len, step)
    qaxes = Constant<value_ints = [0, 1, 3]>() kaxes = Constant<value_ints = [0, 1, 2]>()
    q4 = Unsqueeze(qs, qaxes) k4 = Unsqueeze(ks, kaxes)
    c = {test}
    m = Where(c, zero, hidden) t = Add(s, m)"""
NO_PAST = {"past": "", "shift": "qs = Identity(qs0)"}


@pytest.mark.parametrize(
    "mask",
    [
        "t = Identity(s)",
        "b = Cast<to = 9>(m) n = Where(b, zero, lowest) t = Add(s, n)",
        CAUSAL.format(test="LessOrEqual(k4, q4)", **NO_PAST),
        CAUSAL.format(test="GreaterOrEqual(q4, k4)", **NO_PAST),
        CAUSAL.format(test="LessOrEqual(k4, q4)", past="", shift="d = Sub(t_len, s_len) z = Max(d, start) qs = Add(qs0, t_len)"),
    ],
)
def test_a_guard_goes_where_no_row_can_be_hidden_whole(mask: str) -> None:
    """No mask, a finite mask and causal masks leave no row without a key."""
    text = core(mask, inputs="int64[B,1,S,T] m" if "(m)" in mask else "")
    assert "IsNaN" not in operators(rewrite(text, CPU))
    assert_same_outputs(parse(text), rewrite(text, CPU))


@pytest.mark.parametrize(
    ("mask", "reason"),
    [
        ("b = Cast<to = 9>(m) n = Where(b, zero, hidden) t = Add(s, n)", "depends on the data"),
        ("b = Cast<to = 1>(m) t = Add(s, b)", "not understood"),
        ("b = Cast<to = 9>(m) n = Where(b, zero, lowest) u = Add(s, n) t = Add(u, n)", "several masks"),
        ("b = Cast<to = 9>(m) t = Where(b, s, hidden)", "condition"),
        ("b = Cast<to = 9>(m) n = Where(b, zero, lowest) u = Add(s, n) t = Mul(u, two)", "after they were masked"),
        (CAUSAL.format(test="GreaterOrEqual(k4, q4)", **NO_PAST) + " mm = Identity(m0)", "depends on the data"),
        (CAUSAL.format(test="Less(k4, q4)", **NO_PAST) + " mm = Identity(m0)", "depends on the data"),
    ],
)
def test_a_guard_stays_where_a_row_may_be_hidden_whole(mask: str, reason: str) -> None:
    """The near miss says why."""
    name = "m0" if "(m0)" in mask else "m"
    text = core(mask, inputs=f"int64[B,1,S,T] {name}")
    assert reason in misses(text, CPU)["drop-row-guard"]


def test_a_guard_needs_a_zero_and_the_softmax_of_the_last_axis() -> None:
    """Where(IsNaN(p), 1, p) and a Softmax along another axis are no guards."""
    text = core("t = Identity(s)")
    assert "IsNaN" in operators(rewrite(text.replace("{0.0}", "{1.0}"), CPU))
    assert "IsNaN" in operators(rewrite(text.replace("axis = -1", "axis = 2"), CPU))


def layers(count: int) -> str:
    """Several attentions with one mask that may hide whole rows."""
    body = " ".join(
        f"s{i} = MatMul(x{i}, kt) t{i} = Add(s{i}, m) p{i} = Softmax<axis = -1>(t{i}) n{i} = IsNaN(p{i}) "
        f"w{i} = Where(n{i}, zero, p{i}) x{i + 1} = MatMul(w{i}, v)"
        for i in range(count)
    )
    return f"""(float[B,4,S,8] x0, float[B,4,T,8] k, float[B,4,T,8] v, bool[B,1,S,T] c) => (float[B,4,S,8] x{count})
        <float zero = {{0.0}}, float hidden = {{-inf}}> {{
        kt = Transpose<perm = [0, 1, 3, 2]>(k) m = Where(c, zero, hidden) {body} }}"""


def test_few_known_queries_are_guarded_one_by_one() -> None:
    """Looking at the mask takes as long as looking at the probabilities."""
    assert "queries" in misses(layers(4).replace(",S,", ",8,"), CPU)["guard-rows-once"]
    assert "guard-rows-once" not in misses(layers(4).replace(",S,", ",128,"), CPU)


@pytest.mark.parametrize("opset", [13, 18])
def test_guards_of_many_attentions_become_one_look_at_their_mask(opset: int) -> None:
    """Rows that are hidden whole still give zeros."""
    before, after = parse(layers(4), opset), rewrite(layers(4), CPU, opset=opset)
    assert "IsNaN" not in operators(after)
    generator = np.random.default_rng(0)
    feeds: dict[str, Any] = {name: generator.normal(size=(2, 4, 5, 8)).astype(np.float32) for name in ("x0", "k", "v")}
    feeds["c"] = generator.random((2, 1, 5, 5)) < 0.4
    feeds["c"][0, 0, 2] = False
    feeds["c"][1] = False
    assert_same_outputs(before, after, feeds)
    assert "fewer than 4" in misses(layers(3), CPU)["guard-rows-once"]


GROUPED = """(float[B,4,S,8] q, float[B,2,T,8] k, float[B,2,T,8] v) => (float[B,4,S,8] y {outputs})
    <int64[1] two = {{2}}, int64[1] b0 = {{0}}, int64[1] b1 = {{1}}, int64[1] t0 = {{2}}, int64[1] t1 = {{3}}, float a = {{0.5}},
     int64[2] head = {{2, 2}}, int64[1] all = {{4}}, int64[1] size = {{8}}> {{
    shape = Shape(k) batch = Slice(shape, b0, b1) length = Slice(shape, t0, t1)
    wide = Concat<axis = 0>(batch, head, length, size) flat = Concat<axis = 0>(batch, all, length, size)
    ku = Unsqueeze(k, two) ke = Expand(ku, wide) kr = Reshape(ke, flat)
    vu = Unsqueeze(v, two) ve = Expand(vu, wide) vr = Reshape(ve, flat)
    kt = Transpose<perm = [0, 1, 3, 2]>(kr) qa = Mul(q, a) ka = Mul(kt, a)
    s = MatMul(qa, ka) p = Softmax<axis = -1>(s) y = MatMul(p, vr) }}"""


def test_repeated_keys_and_values_are_read_once() -> None:
    """The heads of a group become rows of one matrix, and both factors one."""
    text = GROUPED.format(outputs="")
    counting = "Shape Mul Concat Reshape"
    expected = f"{counting} Mul Transpose MatMul Concat Reshape Softmax {counting} MatMul Concat Reshape"
    after = assert_rewritten(text, (CPU,), expected)
    for batch, rows, length in ((1, 1, 7), (3, 1, 1), (2, 5, 9)):
        generator = np.random.default_rng(1)
        feeds = {"q": generator.normal(size=(batch, 4, rows, 8)).astype(np.float32)}
        feeds |= {name: generator.normal(size=(batch, 2, length, 8)).astype(np.float32) for name in ("k", "v")}
        assert_same_outputs(parse(text), after, feeds)


@pytest.mark.parametrize("opset", [13, 18])
@pytest.mark.parametrize(("batch", "rows"), [(0, 5), (2, 0)])
def test_shared_heads_of_nothing(opset: int, batch: int, rows: int) -> None:
    """An empty batch and no queries give outputs without elements; the runtime's own fusions of shapes are off, which refuse them."""
    text = GROUPED.format(outputs="")
    session = open_session(rewrite(text, CPU, opset=opset), "none")
    shapes = {"q": (batch, 4, rows, 8), "k": (batch, 2, 9, 8), "v": (batch, 2, 9, 8)}
    found = session.run({name: np.zeros(shape, np.float32) for name, shape in shapes.items()})
    assert found["y"].shape == shapes["q"]


@pytest.mark.parametrize("kept", ["kr", "ve", "ka"])
def test_repeated_heads_that_are_used_elsewhere_stay(kept: str) -> None:
    """An output of the graph between the copies and the product keeps that product as it is."""
    rank = "float[B,2,2,T,8]" if kept == "ve" else "float[B,4,T,8]" if kept == "kr" else "float[B,4,8,T]"
    text = GROUPED.format(outputs=f", {rank} {kept}")
    after = rewrite(text, CPU)
    assert operators(after).count("Expand") == 1
    assert_same_outputs(parse(text), after)


def test_a_repetition_in_another_order_is_none() -> None:
    """Heads h, h + 2 that share keys (a tiled order) are no groups of neighbours."""
    text = GROUPED.format(outputs="").replace("head = {{2, 2}}", "head = {{2, 2}}").replace("{2}, int64[1] b0", "{1}, int64[1] b0")
    after = rewrite(text, CPU)
    assert operators(after).count("Expand") == 2
    assert_same_outputs(parse(text), after)


ROTARY = """({inputs} float[B,H,S,8] x0) => (float[B,H,S,8] y {outputs})
    <int64[1] zero = {{0}}, int64[1] half = {{4}}, int64[1] far = {{9223372036854775807}}, int64[1] last = {{3}}, int64[1] one = {{1}},
     float[4] frequencies = {{1.0, 0.5, 0.1, 0.01}}> {{
    x = Relu(x0) {angles}
    emb = Concat<axis = -1>(f, {second}) c3 = Cos(emb) s3 = Sin(emb) c = Unsqueeze(c3, one) s = Unsqueeze(s3, one)
    {halves} n = Neg(x2) r = Concat<axis = -1>(n, x1)
    a = Mul(x, c) b = Mul(r, s) y = Add(a, b) }}"""
SLICES = "x1 = Slice(x, zero, half, last, one) x2 = Slice(x, half, far, last, one)"
SPLIT = "x1, x2 = Split<axis = -1, num_outputs = 2>(x)"
COUNTED = """shape = Shape(x) i2 = Constant<value_int = 2>() n0 = Gather(shape, i2)
    i0 = Constant<value_int = 0>() i1 = Constant<value_int = 1>()
    at = Range(i0, n0, i1) axes = Constant<value_ints = [0, 2]>() at3 = Unsqueeze(at, axes)
    atf = Cast<to = 1>(at3) f = Mul(atf, frequencies)"""
GIVEN = "last2 = Constant<value_ints = [2]>() at3 = Unsqueeze(at, last2) atf = Cast<to = 1>(at3) f = Mul(atf, frequencies)"


def rotary(angles: str = COUNTED, halves: str = SLICES, second: str = "f", inputs: str = "", outputs: str = "") -> str:
    """A rotation of the halves of x."""
    return ROTARY.format(angles=angles, halves=halves, second=second, inputs=inputs and f"{inputs},", outputs=outputs and f", {outputs}")


@pytest.mark.parametrize("opset", [18, pytest.param(23, marks=on_opset_23)])
@pytest.mark.parametrize("halves", [SLICES, SPLIT])
@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("target", [CPU, PORTABLE])
def test_a_rotation_becomes_one_operator(halves: str, opset: int, given: bool, target: Attention) -> None:
    """Whether positions are counted or given for each sample, on the target's own terms."""
    text = rotary(GIVEN if given else COUNTED, halves, inputs="int64[B,S] at" if given else "")
    before, after = parse(text, opset), rewrite(text, target, opset=opset)
    assert ("RotaryEmbedding" in operators(after)) == (target is CPU or opset >= 23)
    for batch, heads, length in ((1, 1, 1), (2, 3, 5), (3, 2, 64)):
        generator = np.random.default_rng(0)
        feeds: dict[str, Any] = {"x0": generator.normal(size=(batch, heads, length, 8)).astype(np.float32)}
        if given:
            feeds["at"] = generator.integers(0, 100, (batch, length))
        assert_same_outputs(before, after, feeds)
    if target is CPU:
        assert executed_kernels(after).counts["com.microsoft", "RotaryEmbedding"] == 1


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (rotary(second="g", angles=f"{COUNTED} g = Neg(f)"), "two equal halves"),
        (rotary(outputs="float[B,H,S,8] b"), "used elsewhere"),
        (rotary(inputs="float[B,H,S,8] z").replace("a = Mul(x, c)", "a = Mul(z, c)"), "not of the same value"),
        (
            rotary()
            .replace("c = Unsqueeze(c3, one)", "c = Unsqueeze(c3, two)")
            .replace("int64[1] one", "int64[1] two = {2}, int64[1] one"),
            "last axis but one",
        ),
    ],
)
def test_a_rotation_that_is_not_sure_stays(text: str, reason: str) -> None:
    """Halves that differ, results that are needed, other values and other axes are near misses."""
    assert reason in misses(text, CPU)["fuse-rotary-embedding"]


@pytest.mark.parametrize(("first", "second"), [("0", "3"), ("1", "4")])
def test_uneven_halves_are_no_rotation(first: str, second: str) -> None:
    """Only a cut in the middle swaps halves."""
    text = rotary().replace("zero = {0}", f"zero = {{{first}}}").replace("half = {4}", f"half = {{{second}}}")
    assert "Neg" in operators(rewrite(text, CPU))


@on_opset_23
def test_the_standard_operator_is_for_portable_results_from_opset_23() -> None:
    """Below, and for the CPU, the parts stay parts."""
    text = GROUPED.format(outputs="")
    after = rewrite(text, PORTABLE, Simplify(), opset=23)
    assert operators(after) == ["Attention"]
    assert_same_outputs(parse(text, 23), after)
    assert "Attention" not in operators(rewrite(text, PORTABLE, opset=18))
    assert "Attention" not in operators(rewrite(text, CPU, opset=23))


@on_opset_23
def test_the_standard_operator_takes_masks() -> None:
    """A finite mask goes in; a guarded row, or one that may be hidden whole, does not."""
    text = core("m = Where(c, zero, lowest) t = Add(s, m)", inputs="bool[B,1,S,T] c")
    assert "Attention" not in operators(rewrite(text.replace("t = Add(s, m)", "n = ReduceMax(m) t = Add(s, n)"), PORTABLE, opset=23))
    plain = text.replace("nan = IsNaN(p)", "").replace("w = Where(nan, zero, p)", "").replace("MatMul(w, v)", "MatMul(p, v)")
    after = rewrite(plain, PORTABLE, opset=23)
    assert "Attention" in operators(after)
    assert_same_outputs(parse(plain, 23), after)
    assert "Attention" not in operators(rewrite(plain.replace("lowest)", "hidden)"), PORTABLE, opset=23))


def test_scores_that_are_scaled_with_their_mask_stay() -> None:
    """The standard operator adds the mask after the factor."""
    text = core("u = Add(s, m) t = Mul(u, two)", inputs="float[B,1,S,T] m").replace("nan = IsNaN(p)", "")
    text = text.replace("w = Where(nan, zero, p)", "").replace("MatMul(w, v)", "MatMul(p, v)")
    assert "after they were masked" in misses(text, PORTABLE, opset=23)["fuse-attention"]


@on_opset_23
def test_masks_that_hide_nothing_go() -> None:
    """Constant zeros and all true, where they surely reach all keys."""
    text = """(float[1,2,3,8] q, float[1,2,3,8] k, float[1,2,3,8] v) => (float[1,2,3,8] y)
        <bool[3,3] m = {1, 1, 1, 1, 1, 1, 1, 1, 1}> { y = Attention(q, k, v, m) }"""
    after = rewrite(text, CPU, opset=23)
    assert [len(node.inputs) for node in all_nodes(after)] == [3]
    assert_same_outputs(parse(text, 23), after)
    assert "hides something" in misses(text.replace("{1, 1", "{1, 0"), CPU, opset=23)["drop-empty-mask"]
    short = text.replace("bool[3,3] m = {1, 1, 1, 1, 1, 1, 1, 1, 1}", "bool[3,1] m = {1, 1, 1}")
    assert "shorter" in misses(short, CPU, opset=23)["drop-empty-mask"]


def test_bounds_follow_conditions_types_and_arithmetic() -> None:
    """(1 - mask) * lowest lies between lowest and 0 only where the mask is a truth value."""
    text = """(bool[2] b, int64[2] i) => (float[2] x, float[2] y) <float one = {1.0}, float low = {-10.0}> {
        f = Cast<to = 1>(b) g = Sub(one, f) x = Mul(g, low)
        h = Cast<to = 1>(i) j = Sub(one, h) y = Mul(j, low) }"""
    model = parse(text)
    view = View(model)
    assert bounds(model.graph.outputs[0], view) == (-10.0, 0.0)
    assert bounds(model.graph.outputs[1], view) is None


def test_half_precision_reaches_minus_infinity_sooner() -> None:
    """The lowest float32 is minus infinity in float16, and the lowest float16 is so as soon as a score is added."""
    text = """(bool[2] c) => (float16[2] x, float16[2] y, float16[2] z)
        <float zero = {0.0}, float low = {-3.0e38}, float less = {-65000.0}, float fine = {-1.0e4}> {
        a = Where(c, zero, low) x = Cast<to = 10>(a) b = Where(c, zero, less) y = Cast<to = 10>(b)
        d = Where(c, zero, fine) z = Cast<to = 10>(d) }"""
    model = parse(text)
    view = View(model)
    assert [why_row_may_vanish((value,), view) == "" for value in model.graph.outputs] == [False, False, True]


def test_a_constant_mask_is_read() -> None:
    """Minus infinity in a constant is harmless until it fills a row."""
    text = """(float[2,2] s) => (float[2,2] a, float[2,2] b)
        <float[2,2] m = {0.0, -inf, 0.0, 0.0}, float[2,2] n = {-inf, -inf, 0.0, 0.0}> { a = Add(s, m) b = Add(s, n) }"""
    model = parse(text)
    view, values = View(model), model.graph.initializers
    assert why_row_may_vanish((values["m"],), view) == ""
    assert "hides a whole row" in why_row_may_vanish((values["n"],), view)


def test_causal_conditions_have_an_offset() -> None:
    """Positions that start after a cache of some length are that length away."""
    text = """(int64[1] i, float[p, t] past, float[s] x) => (bool[s, n] c)
        <int64 z = {0}, int64 o = {1}, int64[1] e = {1}, int64[1] f = {0}> {
        xs = Shape(x) ns = Squeeze(xs) ps = Shape<start = 0, end = 1>(past) np = Squeeze(ps) nt = Add(ns, np)
        q = Range(z, ns, o) qq = Add(q, np) k = Range(z, nt, o) q2 = Unsqueeze(qq, e) k2 = Unsqueeze(k, f) c = LessOrEqual(k2, q2) }"""
    model = parse(text)
    assert str(causal_offset(model.graph.outputs[0], View(model))) == "p"


def test_attention_is_described() -> None:
    """Factors on both sides, masks, heads and their groups are found around a Softmax."""
    (found,) = attentions_of(parse(GROUPED.format(outputs="")))
    assert (found.heads, found.kv_heads, found.scale, found.masks) == (4, 2, 0.25, ())
    assert (found.query.name, found.key.name, found.value.name, found.output.name) == ("q", "k", "v", "y")
    (grouped,) = attentions_of(rewrite(GROUPED.format(outputs=""), CPU))
    assert (grouped.heads, grouped.kv_heads, grouped.scale) == (4, 2, 0.25)
    (masked,) = attentions_of(parse(core(CAUSAL.format(test="LessOrEqual(k4, q4)", **NO_PAST))))
    assert masked.is_causal
    assert len(masked.masks) == 1


def test_fused_attention_is_described() -> None:
    """The standard operator and ONNX Runtime's own name their heads in attributes or shapes."""
    text = """(float[B,S,16] q, float[B,S,8] k, float[B,2,P,4] pk, int32[B] n, int32 t, float[B,4,S,4] q4, float[B,2,S,4] k4,
         float[16,48] w) => (float[B,S,16] y, float[B,2,T,4] a, float[B,2,T,4] b, float[B,S,16] z, float[B,4,S,4] u, float[B,S,16] x) {
        y, a, b = com.microsoft.GroupQueryAttention<num_heads = 4, kv_num_heads = 2>(q, k, k, pk, pk, n, t)
        z = com.microsoft.MultiHeadAttention<num_heads = 4>(q, q, q)
        x = com.microsoft.Attention<num_heads = 4, unidirectional = 1>(q, w)
        u = Attention<scale = 0.5>(q4, k4, k4) }"""
    found = attentions_of(parse(text, 23))
    assert [(view.heads, view.kv_heads, view.is_causal, view.scale) for view in found] == [
        (4, 2, True, None),
        (4, 4, False, None),
        (4, 4, True, None),
        (4, 2, False, 0.5),
    ]
    assert [len(view.past) for view in found] == [2, 0, 0, 0]


def test_a_softmax_elsewhere_is_no_attention() -> None:
    """Constant matrices before and behind a Softmax are a classifier, not attention."""
    text = """(float[B,4] x) => (float[B,2] y) <float[4,3] a = {1,2,3,4,5,6,7,8,9,1,2,3}, float[3,2] b = {1,2,3,4,5,6}> {
        s = MatMul(x, a) p = Softmax(s) y = MatMul(p, b) }"""
    assert attentions_of(parse(text)) == []


COUNTS = {
    "bert_6l": 6, "gpt2_6l": 6, "qwen2_05b_4l": 4, "vit_base": 12, "t5_small_enc": 6, "whisper_tiny_enc": 4, "swin_tiny": 12,
    "segformer_b0": 8, "yolos_tiny": 12, "resnet50": 0,
}  # fmt: skip


@pytest.mark.skipif("GRAPHOPT_ARCH" not in os.environ, reason="GRAPHOPT_ARCH is unset")
@pytest.mark.parametrize("name", COUNTS)
def test_both_exporters_have_as_many_attentions(name: str) -> None:
    """Graphs of the older and of the newer exporter are understood alike."""
    folder = Path(os.environ["GRAPHOPT_ARCH"]) / name
    for file in ("model.onnx", "model_torchscript.onnx"):
        found = attentions_of(load(folder / file))
        assert len(found) == COUNTS[name]
        assert all(view.heads is not None for view in found)


@pytest.mark.skipif("GRAPHOPT_ZOO" not in os.environ, reason="GRAPHOPT_ZOO is unset")
def test_a_decoder_with_a_cache_is_described() -> None:
    """Grouped heads, a causal mask and past keys and values of a trained decoder."""
    model = load(Path(os.environ["GRAPHOPT_ZOO"]) / "llama_shakespeare_past" / "model.onnx")
    found = attentions_of(model)
    assert [(view.heads, view.kv_heads, view.is_causal) for view in found] == [(4, 2, True)] * 4
    for step in (ShapesPass(), Simplify(), CPU):
        step(model)
    found = attentions_of(model)
    assert [(view.heads, view.kv_heads, len(view.past)) for view in found] == [(4, 2, 2)] * 4
    assert isinstance(found[0].present[0], ir.Value)

"""The shapes pass: shape arithmetic goes, and what is computed stays the same, for empty inputs too."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx_ir.passes import common

from graphopt import ledger
from graphopt.graph.structure import verify_structure
from graphopt.graph.view import View
from graphopt.passes.shapes import ShapesPass
from graphopt.runtime.session import open_session
from graphopt.samples import Samples

Array = np.ndarray[Any, Any]
LENGTHS = ({"b": 1, "s": 1}, {"b": 3, "s": 7}, {"b": 0, "s": 5}, {"b": 2, "s": 0})


def model_of(inputs: str, body: str, output: str = "float[?] y", opset: int = 18) -> ir.Model:
    """A model in ONNX text; its constants become initializers, as the driver has them."""
    text = f'<ir_version: 8, opset_import: ["": {opset}]> g ({inputs}) => ({output}) {{ {body} }}'
    model = ir.from_onnx_text(text.replace("[?]", ""))
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    common.RemoveUnusedNodesPass()(model)
    common.NameFixPass()(model)
    for index, node in enumerate(model.graph):
        node.name = node.name or f"n{index}"
    return model


def optimized(model: ir.Model) -> tuple[ir.Model, ledger.Recorder]:
    """A copy after the pass, which must find nothing more to do, and what it did."""
    result = model.clone()
    recorder = ledger.Recorder()
    with ledger.recording(recorder):
        ShapesPass()(result)
    verify_structure(result)
    assert not ShapesPass()(result).modified
    return result, recorder


def operators(model: ir.Model) -> list[str]:
    """Operators of the main graph in order."""
    return [node.op_type for node in model.graph]


def fired(recorder: ledger.Recorder) -> Counter[str]:
    """How often each rule fired."""
    return Counter(rewrite.key.rule for rewrite in recorder.rewrites)


def feed_of(model: ir.Model, lengths: Mapping[str, int]) -> dict[str, Array]:
    """Reproducible inputs of given symbolic lengths."""
    generator = np.random.default_rng(0)
    feed = {}
    for value in model.graph.inputs:
        shape = [d if isinstance(d, int) else lengths[d.value or ""] for d in value.shape or ()]
        assert value.dtype is not None
        feed[value.name or ""] = generator.integers(0, 4, shape).astype(value.dtype.numpy())
    return feed


def assert_same(before: ir.Model, after: ir.Model) -> None:
    """Wherever the original runs, the result does and agrees, with and without the runtime's own optimizations."""
    original = open_session(before, "none")
    results = [open_session(after, "none"), open_session(after, "all")]
    for lengths in LENGTHS:
        feed = feed_of(before, lengths)
        try:
            expected = original.run(feed)
        except Exception:  # noqa: S112
            continue  # not a size that the original takes
        for session in results:
            found = session.run(feed)
            for name, array in expected.items():
                assert found[name].shape == array.shape
                np.testing.assert_array_equal(found[name], array)


HEADS = """
    d = Shape(x) zero = Constant<value_int=0>() one = Constant<value_int=1>() axis = Constant<value_ints=[0]>()
    b0 = Gather(d, zero) s0 = Gather(d, one) b1 = Unsqueeze(b0, axis) s1 = Unsqueeze(s0, axis)
    heads = Constant<value_ints=[2]>() size = Constant<value_ints=[4]>()
"""


def test_a_computed_reshape_target_becomes_a_constant() -> None:
    """Shape, Gather, Unsqueeze, Concat, Reshape become one Reshape that copies both open lengths."""
    model = model_of("float[b,s,8] x", HEADS + "t = Concat<axis=0>(b1, s1, heads, size) y = Reshape(x, t)")
    result, recorder = optimized(model)
    assert operators(result) == ["Reshape"]
    target = result.graph[0].inputs[1]
    assert target is not None
    assert target.const_value is not None
    assert target.const_value.numpy().tolist() == [0, 0, 2, 4]
    assert fired(recorder)["make-reshape-target-constant"] == 1
    assert_same(model, result)


def test_text_to_text() -> None:
    """The whole result, as text."""
    model = model_of("float[b,8] x", "d = Shape<end=1>(x) r = Constant<value_ints=[2,4]>() t = Concat<axis=0>(d, r) y = Reshape(x, t)")
    result, _ = optimized(model)
    text = ir.to_onnx_text(result, exclude_initializers=True)
    assert "Reshape (x, " in text
    assert "Shape<" not in text.replace("Reshape", "")
    assert_same(model, result)


def test_minus_one_is_used_only_beside_lengths_that_are_never_zero() -> None:
    """[b, heads, s, size] from [b, s, heads * size] has no constant target: b or s may be zero."""
    model = model_of("float[b,2,2,s,4] x", "d = Shape<start=3,end=4>(x) e = Shape<end=1>(x) f = Constant<value_ints=[4]>() "
                     "t = Concat<axis=0>(e, f, d, f) y = Reshape(x, t)")  # fmt: skip
    result, recorder = optimized(model)
    assert "Concat" in operators(result)
    assert any("zero" in reason for reason in recorder.misses.values())
    assert_same(model, result)


def test_a_minus_one_of_the_model_itself_stays() -> None:
    """Where the original target has a -1 beside lengths that may be zero, so may the constant."""
    model = model_of("float[b,2,2,s,4] x", "e = Shape<end=1>(x) f = Constant<value_ints=[4]>() m = Constant<value_ints=[-1]>() "
                     "t = Concat<axis=0>(e, f, m, f) y = Reshape(x, t)")  # fmt: skip
    result, _ = optimized(model)
    assert operators(result) == ["Reshape"]
    assert_same(model, result)


def test_a_minus_one_beside_a_length_stays_where_a_number_would_do() -> None:
    """It refuses empty tensors, and so tells that there are none."""
    model = model_of("float[b,s,12] x", "e = Shape<end=2>(x) m = Constant<value_ints=[-1,4]>() t = Concat<axis=0>(e, m) y = Reshape(x, t)")
    result, _ = optimized(model)
    (node,) = result.graph
    assert View(result).integers(node.inputs[1]) == (0, 0, -1, 4)
    assert_same(model, result)


def test_a_minus_one_that_is_solved_beside_zero_does_not_stay() -> None:
    """With allowzero the runtime takes empty tensors, and so must the result."""
    body = "e = Shape<end=2>(x) m = Constant<value_ints=[-1,4]>() t = Concat<axis=0>(e, m) y = Reshape<allowzero=1>(x, t)"
    model = model_of("float[b,s,12] x", body)
    result, _ = optimized(model)
    assert operators(result) == ["Reshape"]
    for shape in ((0, 5, 12), (2, 0, 12), (2, 5, 12)):
        feed = {"x": np.zeros(shape, np.float32)}
        assert open_session(result).run(feed)["y"].shape == open_session(model).run(feed)["y"].shape == (*shape[:2], 3, 4)


def test_merged_axes_use_minus_one() -> None:
    """[b * s, 8] becomes [-1, 8], which works for empty batches."""
    model = model_of("float[b,s,8] x", HEADS + "n = Mul(b1, s1) e = Mul(heads, size) t = Concat<axis=0>(n, e) y = Reshape(x, t)")
    result, _ = optimized(model)
    assert operators(result) == ["Reshape"]
    assert_same(model, result)


def test_a_length_that_is_asked_to_be_zero_is_not_copied() -> None:
    """With allowzero a constant 0 in the target means zero, and the target stays."""
    model = model_of(
        "float[b,0,8] x",
        "d = Shape<end=1>(x) z = Constant<value_ints=[3,0]>() t = Concat<axis=0>(d, z) y = Reshape<allowzero=1>(x, t)",
    )
    result, recorder = optimized(model)
    assert not fired(recorder)["make-reshape-target-constant"]
    assert_same(model, result)


def test_a_scale_computed_from_a_static_length_becomes_a_constant() -> None:
    """Sqrt(Cast(Slice(Shape))) of a static head size is a number."""
    body = """d = Shape(x) a = Constant<value_ints=[-1]>() e = Constant<value_ints=[9223372036854775807]>() l = Slice(d, a, e)
        f = Cast<to=1>(l) q = Sqrt(f) y = Div(x, q)"""
    model = model_of("float[b,s,8] x", body)
    result, recorder = optimized(model)
    assert operators(result) == ["Div"]
    assert fired(recorder)["fold-known-content"] == 1
    assert_same(model, result)


def test_a_folded_value_that_is_an_output_keeps_its_name() -> None:
    """An intermediate that is also a graph output is still there, and still right."""
    model = model_of("float[b,8] x", "d = Shape<start=1>(x) y = Expand(x, d) z = Identity(d)", "float[?] y, int64[?] z")
    result, _ = optimized(model)
    assert [value.name for value in result.graph.outputs] == ["y", "z"]
    assert_same(model, result)


def test_an_expand_before_a_broadcasting_operator_goes() -> None:
    """Expand(m) + x is m + x where x has the full shape."""
    model = model_of("float[b,1,s] m, float[b,s,s] x", "d = Shape(x) e = Expand(m, d) y = Add(e, x)")
    result, recorder = optimized(model)
    assert operators(result) == ["Add"]
    assert fired(recorder)["drop-expand-before-broadcast"] == 1
    assert_same(model, result)


def test_an_expand_that_gives_the_result_its_shape_stays() -> None:
    """Expand(m) + v needs the Expand where v is smaller, or where lengths merely may be equal."""
    smaller = model_of("float[1,s] m, float[b,s] x, float[s] v", "d = Shape(x) e = Expand(m, d) y = Add(e, v)")
    result, _ = optimized(smaller)
    assert "Expand" in operators(result)
    assert_same(smaller, result)
    maybe = model_of("float[1,s] m, float[b,s] x, float[c,s] v", "d = Shape(x) e = Expand(m, d) y = Add(e, v)")
    assert "Expand" in operators(optimized(maybe)[0])


def test_elementwise_operators_work_before_an_expand() -> None:
    """Not(Expand(m)) and what follows work on m; the Expand then proves useless."""
    body = "d = Shape(x) e = Expand(m, d) n = Not(e) c = Cast<to=1>(n) y = Mul(c, x)"
    model = model_of("bool[b,1,1] m, float[b,s,8] x", body)
    result, recorder = optimized(model)
    assert operators(result) == ["Not", "Cast", "Mul"]
    assert fired(recorder)["move-expand-behind-elementwise"] == 2
    assert_same(model, result)


def test_an_expand_with_other_users_is_not_moved() -> None:
    """Moving it would leave two of them."""
    body = "d = Shape(x) e = Expand(m, d) n = Neg(e) r = Softmax(e) q = Softmax(n) y = Add(r, q)"
    model = model_of("float[b,1] m, float[b,s] x", body)
    result, _ = optimized(model)
    assert operators(result).count("Expand") == 1
    assert_same(model, result)


def test_a_transpose_between_reshapes_works_on_the_axes_themselves() -> None:
    """Merge leading axes, transpose, split them again: one Transpose."""
    body = """m = Constant<value_ints=[-1,5,4]>() r = Reshape(x, m) t = Transpose<perm=[0,2,1]>(r)
        d = Shape<end=1>(x) h = Constant<value_ints=[2,4,5]>() c = Concat<axis=0>(d, h) y = Reshape(t, c)"""
    model = model_of("float[b,2,5,4] x", body)
    result, recorder = optimized(model)
    assert operators(result) == ["Transpose"]
    assert result.graph[0].attributes["perm"].as_ints() == (0, 1, 3, 2)
    assert fired(recorder)["transpose-before-merging-axes"] == 1
    assert_same(model, result)


def test_a_reshape_that_splits_axes_is_no_merge() -> None:
    """Reshape [b, 8] -> [b, 2, 4], transpose, merge is real work and stays."""
    body = """m = Constant<value_ints=[0,2,4]>() r = Reshape(x, m) t = Transpose<perm=[0,2,1]>(r)
        c = Constant<value_ints=[0,8]>() y = Reshape(t, c)"""
    model = model_of("float[b,8] x", body)
    result, _ = optimized(model)
    assert operators(result) == ["Reshape", "Transpose", "Reshape"]
    assert_same(model, result)


def test_lengths_are_read_from_the_inputs() -> None:
    """Arithmetic behind a target that stays dynamic becomes Shape and Concat of the model's input."""
    body = HEADS + "k = Mul(b0, one) k1 = Unsqueeze(k, axis) t = Concat<axis=0>(k1, s1, heads) y = Expand(v, t)"
    model = model_of("float[b,s,8] x, float[1,1,2] v", body)
    result, recorder = optimized(model)
    assert Counter(operators(result)) == Counter(["Shape", "Concat", "Expand"])
    assert fired(recorder)["read-lengths-directly"] == 1
    assert_same(model, result)


def test_scalars_are_read_directly_too() -> None:
    """A limit of a Range that goes through Mul and Add is Squeeze(Shape)."""
    body = """d = Shape(x) one = Constant<value_int=1>() zero = Sub(one, one) s0 = Gather(d, one) s1 = Mul(s0, one) s2 = Add(s1, zero)
        r = Range(zero, s2, one) f = Cast<to=1>(r) y = Add(x, f)"""
    model = model_of("float[b,s] x", body)
    result, _ = optimized(model)
    assert operators(result) == ["Shape", "Squeeze", "Range", "Cast", "Add"]
    assert_same(model, result)


def test_lengths_are_left_alone_before_opset_15() -> None:
    """Shape takes no start and end there; the pass says so and the result still runs."""
    body = HEADS + "k = Mul(b0, one) k1 = Unsqueeze(k, axis) t = Concat<axis=0>(k1, s1, heads) y = Expand(v, t)"
    model = model_of("float[b,s,8] x, float[1,1,2] v", body, opset=13)
    result, recorder = optimized(model)
    assert not fired(recorder)["read-lengths-directly"]
    assert any("opset 15" in reason for reason in recorder.misses.values())
    assert_same(model, result)


def test_lengths_that_depend_on_data_are_not_replaced() -> None:
    """NonZero's length is no expression of the inputs' lengths, and is still computed."""
    body = "n = NonZero(x) d = Shape<start=1>(n) o = Constant<value_ints=[3]>() t = Concat<axis=0>(o, d) v = Cast<to=1>(o) y = Expand(v, t)"
    model = model_of("float[b,s] x", body)
    result, _ = optimized(model)
    assert "NonZero" in operators(result)
    assert_same(model, result)


def test_subgraphs_are_rewritten_with_what_they_capture() -> None:
    """Inside a branch a captured input's lengths are known."""
    text = """<ir_version: 8, opset_import: ["": 18]> g (bool c, float[b,8] x) => (float y) { y = If (c) <
        then_branch = t () => (float u) { d = Shape<end=1>(x) r = Constant<value_ints=[2,4]>() k = Concat<axis=0>(d, r) w = Reshape(x, k)
            f = Constant<value_ints=[0,8]>() u = Reshape(w, f) },
        else_branch = e () => (float v) { v = Neg(x) }> }"""
    model = ir.from_onnx_text(text)
    result, recorder = optimized(model)
    assert fired(recorder)["make-reshape-target-constant"] == 1
    for condition in (True, False):
        feed: dict[str, Array] = {"c": np.array(condition), "x": np.arange(24, dtype=np.float32).reshape(3, 8)}
        np.testing.assert_array_equal(open_session(result, "none").run(feed)["y"], open_session(model, "none").run(feed)["y"])


def test_an_input_with_a_default_is_no_known_content() -> None:
    """A Reshape target that can be fed is not folded."""
    model = model_of("float[8] x, int64[2] t", "o = Constant<value_ints=[1,1]>() k = Mul(t, o) y = Reshape(x, k)")
    target = model.graph.inputs[1]
    target.const_value = ir.tensor(np.array([2, 4], np.int64), name="t")
    model.graph.register_initializer(target)
    result, _ = optimized(model)
    feed: dict[str, Array] = {"x": np.arange(8, dtype=np.float32), "t": np.array([4, 2], np.int64)}
    assert open_session(result, "none").run(feed)["y"].shape == (4, 2)


@pytest.mark.parametrize("name", ["conv.onnx", "conv_torchscript.onnx", "attention.onnx"])
def test_digits_stay_the_same(digits: Path, name: str) -> None:
    """The small trained models answer exactly as before."""
    model = ir.load(digits / name)
    result, _ = optimized(model)
    assert len(result.graph) <= len(model.graph)
    for feed in Samples.synthetic(model, count=2):
        expected = open_session(model, "none").run(feed)
        for output, array in open_session(result, "none").run(feed).items():
            np.testing.assert_allclose(array, expected[output], rtol=1e-6, atol=1e-6)


_LIMITS = {"bert_6l": 270, "gpt2_6l": 290, "segformer_b0": 415, "t5_small_enc": 300, "vit_base": 425, "whisper_tiny_enc": 155}


@pytest.mark.slow
@pytest.mark.parametrize("name", _LIMITS)
def test_legacy_exports_lose_their_shape_arithmetic(arch: Path, name: str) -> None:
    """A legacy export has few more nodes than the dynamo export of the same model, by this pass and onnx_ir's own alone."""
    model = ir.load(arch / name / "model_torchscript.onnx")
    cleanup = ir.passes.Sequential(
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.IdentityEliminationPass(),
        common.DeduplicateInitializersPass(),
        common.CommonSubexpressionEliminationPass(),
        common.RemoveUnusedNodesPass(),
    )
    result = model.clone()
    for step in (cleanup, ShapesPass(), cleanup, ShapesPass(), cleanup):
        step(result)
    assert len(result.graph) <= _LIMITS[name]
    for feed in Samples.synthetic(model, count=1):
        expected = open_session(model, "none").run(feed)
        for output, array in open_session(result, "all").run(feed).items():
            assert np.abs(array - expected[output]).max() <= 1e-4 * np.abs(expected[output]).max()

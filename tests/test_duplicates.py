"""``duplicates`` merges what is equal, and nothing else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from graphopt.graph.structure import verify_structure
from graphopt.passes.duplicates import Duplicates
from tests.helpers import assert_rewritten, assert_same_outputs, operators, parse, rewrite

CASES = {
    "equal nodes": ("(float[n] x) => (float[n] y) { a = Exp(x) b = Exp(x) y = Add(a, b) }", "Exp Add"),
    "equal chains": ("(float[n] x) => (float[n] y) { a = Exp(x) b = Exp(x) c = Neg(a) d = Neg(b) y = Add(c, d) }", "Exp Neg Add"),
    "commuted operands": ("(float[n] x, float[n] z) => (float[n] y) { a = Add(x, z) b = Add(z, x) y = Mul(a, b) }", "Add Mul"),
    "swapped operands": ("(float[n] x, float[n] z) => (float[n] y) { a = Sub(x, z) b = Sub(z, x) y = Mul(a, b) }", "Sub Sub Mul"),
    "other attributes": (
        "(float[n,n] x) => (float[a,b] y) { a = Softmax<axis = 0>(x) b = Softmax<axis = 1>(x) y = Mul(a, b) }",
        "Softmax Softmax Mul",
    ),
    "negative zero": (
        "(float[n] x) => (float[n] y) { a = LeakyRelu<alpha = 0.0>(x) b = LeakyRelu<alpha = -0.0>(x) y = Add(a, b) }",
        "LeakyRelu LeakyRelu Add",
    ),
    "one is an output": ("(float[n] x) => (float[n] y, float[n] b) { a = Exp(x) b = Exp(x) y = Neg(a) }", "Exp Neg"),
    "both are outputs": ("(float[n] x) => (float[n] a, float[n] b) { a = Exp(x) b = Exp(x) }", "Exp Exp"),
    "equal constants": (
        "(float[n] x) => (float[n] y) <float a = {3}, float b = {3}> { s = Mul(x, a) t = Mul(x, b) y = Sub(s, t) }",
        "Mul Sub",
    ),
    "constants of other types": (
        (
            "(float[n] x) => (float[n] y) <int32[1] a = {3}, int64[1] b = {3}> "
            "{ s = Cast<to = 1>(a) t = Cast<to = 1>(b) u = Mul(x, s) y = Mul(u, t) }"
        ),
        "Cast Cast Mul Mul",
    ),
    "inside branches": (
        """(float[n] x, bool c) => (float[n] y) { a = Exp(x) z = Neg(a) b = If(c) <
            then_branch = g () => (float[n] o) { p = Exp(x) o = Abs(p) }, else_branch = h () => (float[n] q) { q = Exp(x) }
        > y = Add(b, z) }""",
        "Exp Neg If Abs Exp Add",
    ),
}


@pytest.mark.parametrize(("text", "expected"), CASES.values(), ids=CASES.keys())
def test_merging(text: str, expected: str) -> None:
    """Equal things are merged, others are not, and the outputs stay the same."""
    assert_rewritten(text, [Duplicates()], expected)


@pytest.mark.parametrize("operator", ["RandomNormalLike", "Bernoulli", "RandomUniformLike"])
def test_random_nodes_stay(operator: str) -> None:
    """Two draws are not one."""
    after = rewrite(f"(float[n] x) => (float[n] y) {{ a = {operator}(x) b = {operator}(x) y = Sub(a, b) }}", Duplicates())
    assert operators(after) == [operator, operator, "Sub"]


def test_training_dropout_stays() -> None:
    """Two Dropouts that train are not one."""
    text = "(float[n] x) => (float[n] y) <float r = {0.5}, bool t = {1}> { a = Dropout(x, r, t) b = Dropout(x, r, t) y = Sub(a, b) }"
    assert operators(rewrite(text, Duplicates())) == ["Dropout", "Dropout", "Sub"]


def test_unknown_domains_stay() -> None:
    """What a custom operator does is not known: it may draw or count."""
    model = ir.from_onnx_text("""<ir_version: 8, opset_import: ["": 18, "own": 1]>
        graph (float[n] x) => (float[n] y) { a = own.Op(x) b = own.Op(x) y = Sub(a, b) }""")
    assert not Duplicates()(model).modified


def test_initializer_that_is_an_output_stays() -> None:
    """An initializer that the caller reads keeps its name; another one may be merged into it."""
    text = "(float[n] x) => (float[n] y, float a) <float b = {3}, float a = {3}> { y = Mul(x, b) }"
    after = rewrite(text, Duplicates())
    assert [value.name for value in after.graph.outputs] == ["y", "a"]
    assert_same_outputs(parse(text), after)


def test_mapped_weights_are_compared_by_content(tmp_path: Path) -> None:
    """Equal weights in a data file are merged, and different ones of the same shape are not."""
    weights = "float[2,2] u = {1, 2, 3, 4}, float[2,2] v = {1, 2, 3, 5}, float[2,2] w = {1, 2, 3, 4}"
    model = parse(f"(float[n,2] x) => (float[a,b] y) <{weights}> {{ p = MatMul(x, u) q = MatMul(p, v) y = MatMul(q, w) }}")
    ir.save(model, tmp_path / "m.onnx", external_data="m.data", size_threshold_bytes=0)
    mapped = ir.load(tmp_path / "m.onnx")
    Duplicates()(mapped)
    assert set(mapped.graph.initializers) == {"u", "v"}
    assert_same_outputs(model, mapped)


def tied(*, gathers: bool = True) -> ir.Model:
    """A table that rows are gathered from, unless it comes through another node, and the same transposed, for a head."""
    table = np.random.default_rng(0).standard_normal((64, 32)).astype(np.float32)
    numbers = [", ".join(map(str, array.reshape(-1).tolist())) for array in (table, table.T)]
    first = "e = Gather(table, i)" if gathers else "p = Relu(table) e = Gather(p, i)"
    return parse(
        f"(int64[n] i) => (float[n,64] y) <float[64,32] table = {{{numbers[0]}}}, float[32,64] head = {{{numbers[1]}}}> "
        f"{{ {first} t = Tanh(e) y = MatMul(t, head) }}"
    )


def test_transposed_table_is_stored_once() -> None:
    """The head reads the table, turned; its weight keeps its name, and the outputs stay bit by bit."""
    before, after = tied(), tied()
    assert Duplicates()(after).modified
    verify_structure(after)
    assert list(after.graph.initializers) == ["table"]
    assert operators(after) == ["Transpose", "Gather", "Tanh", "MatMul"]
    assert [value.name for value in after.graph[-1].inputs if value is not None] == ["t", "head"]
    feed = {"i": np.array([3, 0, 63])}
    assert_same_outputs(before, after, feed)
    assert not Duplicates()(after).modified


def test_what_is_nearly_transposed_stays() -> None:
    """One element that differs, or a table that no rows are gathered from: a layer's weight stays a constant."""
    model = tied()
    head = model.graph.initializers["head"]
    assert head.const_value is not None
    array = head.const_value.numpy().copy()
    array[-1, -1] += 1e-6
    head.const_value = ir.tensor(array, name="head")
    assert not Duplicates()(model).modified
    assert not Duplicates()(tied(gathers=False)).modified

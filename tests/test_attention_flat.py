"""Tests of attentions whose heads lie side by side, as one operator."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from graphopt import ledger
from graphopt.graph.attention import attentions_of
from graphopt.graph.edits import all_nodes
from graphopt.graph.opset import opset_of
from graphopt.passes.attention import Attention
from graphopt.runtime.kernels import executed_kernels
from graphopt.runtime.session import open_session
from tests.helpers import assert_same_outputs, misses, needs_opset, operators, parse, rewrite

CPU = Attention(target="cpu")
pytestmark = needs_opset(23)

SPLIT = "{x}4 = Reshape({x}, split) {x}h = Transpose<perm = {perm}>({x}4)"
KEYS = {
    "turned in one step": "k4 = Reshape(k, split) kt = Transpose<perm = [0, 2, 3, 1]>(k4)",
    "turned in two": SPLIT.format(x="k", perm="[0, 2, 1, 3]") + " kt = Transpose<perm = [0, 1, 3, 2]>(kh)",
}
JOINED = "o = Transpose<perm = [0, 2, 1, 3]>(w) y = Reshape(o, join)"


def flat(
    mask: str = "",
    keys: str = KEYS["turned in one step"],
    join: str = JOINED,
    inputs: str = "",
    outputs: str = "",
    length: str = "6",
    batch: str = "2",
    joined: str = "0, 0, -1",
) -> str:
    """An attention of 4 heads of 8, with the operators that split and join them; a mask makes scores t of scores s."""
    scores = "t" if mask else "s"
    return f"""(float[{batch},5,32] q, float[{batch},{length},32] k, float[{batch},{length},32] v {inputs}) => (float[A,C,D] y {outputs})
        <int64[4] split = {{0, 0, 4, 8}}, int64[3] join = {{{joined}}}, float a = {{0.25}}, float lowest = {{-3.0e38}},
         float zero = {{0.0}}, float hidden = {{-inf}}> {{
        {SPLIT.format(x="q", perm="[0, 2, 1, 3]")} {keys} {SPLIT.format(x="v", perm="[0, 2, 1, 3]")}
        qa = Mul(qh, a) s = MatMul(qa, kt) {mask} p = Softmax<axis = -1>({scores}) w = MatMul(p, vh) {join} }}"""


FINITE = "m = Where(c, zero, lowest) t = Add(s, m)"


@pytest.mark.parametrize("keys", KEYS.values(), ids=KEYS)
@pytest.mark.parametrize("opset", [13, 17, 23])
def test_heads_side_by_side_become_one_operator(opset: int, keys: str) -> None:
    """The opset is raised to the first that has it, and the kernel runs."""
    text = flat(keys=keys)
    after = rewrite(text, CPU, opset=opset)
    assert operators(after) == ["Attention"]
    assert opset_of(after) == 23
    assert_same_outputs(parse(text, opset), after)
    assert executed_kernels(after).counts["", "Attention"] == 1
    (found,) = attentions_of(after)
    assert (found.heads, found.kv_heads, found.scale) == (4, 4, 0.25)


@pytest.mark.parametrize("shape", ["2,1,5,6", "1,4,5,6", "5,6"])
def test_masks_go_in(shape: str) -> None:
    """With axes for batch and heads or without."""
    text = flat(FINITE, inputs=f", bool[{shape}] c")
    after = rewrite(text, CPU)
    assert operators(after) == ["Where", "Attention"]
    assert_same_outputs(
        parse(text),
        after,
        feeds(c=np.random.default_rng(1).random([int(length) for length in shape.split(",")]) < 0.5),
    )


def feeds(**more: np.ndarray) -> dict[str, np.ndarray]:
    """Two sequences of five queries and six keys."""
    generator = np.random.default_rng(0)
    return {n: generator.normal(size=(2, rows, 32)).astype(np.float32) for n, rows in (("q", 5), ("k", 6), ("v", 6))} | more


def test_rows_that_are_hidden_whole_are_zeros_afterwards() -> None:
    """What guards the probabilities guards the result, in which there are fewer numbers."""
    guarded = """e = ReduceMax<keepdims = 1>(m, last) i = IsInf<detect_positive = 0>(e) n = Where(i, zero, m) r = Where(i, zero, one)
        t = Add(s, n)"""
    text = flat("m = Where(c, zero, hidden) " + guarded, inputs=", bool[2,1,5,6] c")
    text = text.replace("float hidden", "float one = {1.0}, int64[1] last = {-1}, float hidden").replace(
        "w = MatMul(p, vh)", "g = Mul(p, r) w = MatMul(g, vh)"
    )
    seen = np.random.default_rng(2).random((2, 1, 5, 6)) < 0.5
    seen[0, 0, 3] = False
    after = rewrite(text, CPU)
    assert operators(after)[-3:] == ["Attention", "Squeeze", "Mul"]
    assert_same_outputs(parse(text), after, feeds(c=seen))
    assert not open_session(after).run(feeds(c=seen))["y"][0, 3].any()


def test_heads_may_be_joined_into_rows() -> None:
    """A Reshape to another rank comes after the operator."""
    text = (
        flat(joined="-1, 32, 1")
        .replace("float[A,C,D] y", "float[A,D] y")
        .replace("int64[3] join = {-1, 32, 1}", "int64[2] join = {-1, 32}")
    )
    after = rewrite(text, CPU)
    assert operators(after) == ["Attention", "Reshape"]
    assert_same_outputs(parse(text), after)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (flat(outputs=", float[2,4,5,6] p"), "used elsewhere"),
        (flat(outputs=", float[2,4,5,8] w"), "not joined right after"),
        (flat("m = Where(c, zero, hidden) t = Add(s, m)", inputs=", bool[2,1,5,6] c"), "depends on the data"),
        (flat("m = Where(c, zero, lowest) t = Add(s, m)", inputs=", bool[2,1,1,6] c"), "broadcast"),
        (flat(keys="k4 = Reshape(k, split) kn = Neg(k4) kt = Transpose<perm = [0, 2, 3, 1]>(kn)"), "right before"),
        (flat(inputs=", float[2,1,5,1] r").replace("w = MatMul(p, vh)", "g = Mul(p, r) w = MatMul(g, vh)"), "multiplied by something"),
    ],
)
def test_an_attention_that_is_not_sure_stays(text: str, reason: str) -> None:
    """The near miss says why, and the opset is left alone."""
    assert reason in misses(text, CPU)["fuse-flat-attention"]
    assert opset_of(rewrite(text, CPU)) == 18


@pytest.mark.parametrize("dynamic", [{"batch": "B"}, {"length": "T"}])
def test_what_may_be_empty_stays_in_parts(dynamic: dict[str, str]) -> None:
    """The kernel refuses a batch or a length of 0; that of long attentions takes them."""
    assert "may be 0" in misses(flat(**dynamic), CPU)["fuse-flat-attention"]
    after = rewrite(flat(length="1024", batch="B"), CPU)
    assert operators(after) == ["MultiHeadAttention"]
    empty = {name: np.zeros((0, rows, 32), np.float32) for name, rows in (("q", 5), ("k", 1024), ("v", 1024))}
    assert open_session(after).run(empty)["y"].shape == (0, 5, 32)


def test_a_reshape_that_refuses_empty_tensors_tells_that_there_are_none() -> None:
    """The runtime cannot solve -1 beside a length of 0."""
    text = flat(batch="B", length="T").replace("{0, 0, 4, 8}", "{0, 0, -1, 8}").replace("[B,5,32]", "[B,S,32]")
    after = rewrite(text, CPU)
    assert operators(after) == ["Attention"]
    assert_same_outputs(parse(text), after, feeds())


def test_portable_results_keep_their_opset() -> None:
    """And another order of axes is no split into heads."""
    assert opset_of(rewrite(flat(), Attention(target="portable"))) == 18
    assert "Attention" not in operators(rewrite(flat(join=JOINED.replace("0, 2, 1, 3", "0, 1, 2, 3")), CPU))


@pytest.mark.parametrize("key", [ledger.Key("", "raise-opset"), ledger.Key("", "fuse-flat-attention")])
def test_the_raised_opset_can_be_refused(key: ledger.Key) -> None:
    """Then the parts stay, for runtimes that are older than the installed one."""
    with ledger.recording(ledger.Recorder(frozenset({key}))):
        after = rewrite(flat(), CPU)
    assert opset_of(after) == 18
    assert "Softmax" in operators(after)


@pytest.mark.parametrize(("length", "operator"), [(1024, "MultiHeadAttention"), (1023, "Attention")])
def test_many_keys_are_gone_over_in_blocks(length: int, operator: str) -> None:
    """From 1,024 keys on, where no mask is added."""
    text = flat(length=str(length))
    after = rewrite(text, CPU)
    assert operators(after) == [operator]
    assert opset_of(after) == (18 if operator == "MultiHeadAttention" else 23)
    assert_same_outputs(parse(text), after)
    masked = rewrite(flat(FINITE, inputs=f", bool[2,1,5,{length}] c", length=str(length)), CPU)
    assert operators(masked) == ["Where", "Attention"]


def test_operators_of_the_runtime_survive_a_raised_opset() -> None:
    """The standard domain holds some that the standard does not know."""
    text = (
        flat()
        .replace("0.0}", "0.0}, float[32] g = {" + ", ".join(["1.5"] * 32) + "}")
        .replace("y = Reshape(o, join)", "x = Reshape(o, join) y = SimplifiedLayerNormalization<axis = -1>(x, g)")
    )
    after = rewrite(text, CPU, opset=17)
    assert operators(after) == ["Attention", "SimplifiedLayerNormalization"]
    assert {node.domain for node in all_nodes(after)} == {""}
    assert isinstance(after, ir.Model)
    assert_same_outputs(parse(text, 17), after)

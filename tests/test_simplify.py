"""Each rule of ``simplify`` fires where it may, keeps the outputs, and stays away where it must."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt import ledger
from graphopt.passes.simplify import Simplify
from graphopt.passes.simplify.folding import FOLDED, evaluate_node
from graphopt.runtime.session import open_session
from tests.helpers import assert_rewritten, assert_same_outputs, misses, operators, parse, rewrite

X = "(float[n,3,4] x) => (float[a,b,c] y)"
FIRES = {
    "identity": (f"{X} {{ t = Identity(x) y = Relu(t) }}", "Relu", 18),
    "identity of an intermediate that is an output": (
        "(float[n] x) => (float[n] y, float[n] z) { y = Relu(x) z = Identity(y) }",
        "Relu Identity",
        18,
    ),
    "dropout": (f"{X} {{ t = Dropout(x) y = Relu(t) }}", "Relu", 18),
    "dropout with a ratio attribute": (f"{X} {{ t = Dropout<ratio = 0.4>(x) y = Relu(t) }}", "Relu", 11),
    "dropout with inputs": (f"{X} <float r = {{0.5}}, bool f = {{0}}> {{ t = Dropout(x, r, f) y = Relu(t) }}", "Relu", 18),
    "add zero": (f"{X} <float[4] o = {{0, 0, 0, 0}}> {{ t = Add(o, x) y = Relu(t) }}", "Relu", 18),
    "subtract zero": (f"{X} <float o = {{0}}> {{ t = Sub(x, o) y = Relu(t) }}", "Relu", 18),
    "subtract from zero": (f"{X} <float o = {{0}}> {{ t = Sub(o, x) y = Relu(t) }}", "Sub Relu", 18),
    "multiply by one": (f"{X} <float o = {{1}}> {{ t = Mul(x, o) y = Relu(t) }}", "Relu", 18),
    "multiply by zero": (f"{X} <float o = {{0}}> {{ t = Mul(x, o) y = Relu(t) }}", "Mul Relu", 18),
    "divide by one": (f"{X} <float[1] o = {{1}}> {{ t = Div(x, o) y = Relu(t) }}", "Relu", 18),
    "divide one": (f"{X} <float[1] o = {{1}}> {{ t = Div(o, x) y = Relu(t) }}", "Div Relu", 18),
    "power of one": (f"{X} <float o = {{1}}> {{ t = Pow(x, o) y = Relu(t) }}", "Relu", 18),
    "add zero that raises the rank": ("(float[n] x) => (float[a,b] y) <float[1,1] o = {0}> { t = Add(x, o) y = Relu(t) }", "Add Relu", 18),
    "add zeros that widen": ("(float[n,1] x) => (float[a,b] y) <float[2] o = {0, 0}> { t = Add(x, o) y = Relu(t) }", "Add Relu", 18),
    "and true": ("(bool[n] x) => (bool[n] y) <bool t = {1}> { a = And(x, t) y = Not(a) }", "Not", 18),
    "cast to the same type": (f"{X} {{ a = Cast<to = 1>(x) y = Relu(a) }}", "Relu", 18),
    "concat of one": (f"{X} {{ a = Concat<axis = 1>(x) y = Relu(a) }}", "Relu", 18),
    "max of one": (f"{X} {{ a = Max(x) y = Relu(a) }}", "Relu", 18),
    "split into one": (f"{X} <int64[1] s = {{3}}> {{ a = Split<axis = 1>(x, s) y = Relu(a) }}", "Relu", 18),
    "expand to the same shape": (f"{X} <int64[2] s = {{3, 1}}> {{ a = Expand(x, s) y = Relu(a) }}", "Relu", 18),
    "expand to another shape": (
        "(float[1,3] x) => (float[a,b] y) <int64[2] s = {2, 1}> { a = Expand(x, s) y = Relu(a) }",
        "Expand Relu",
        18,
    ),
    "tile once": (f"{X} <int64[3] s = {{1, 1, 1}}> {{ a = Tile(x, s) y = Relu(a) }}", "Relu", 18),
    "tile twice": (f"{X} <int64[3] s = {{1, 2, 1}}> {{ a = Tile(x, s) y = Relu(a) }}", "Tile Relu", 18),
    "pad nothing": (f"{X} <int64[6] s = {{0, 0, 0, 0, 0, 0}}> {{ a = Pad(x, s) y = Relu(a) }}", "Relu", 18),
    "pad nothing, by attribute": (f"{X} {{ a = Pad<pads = [0, 0, 0, 0, 0, 0]>(x) y = Relu(a) }}", "Relu", 10),
    "pad": (f"{X} <int64[6] s = {{0, 0, 1, 0, 0, 0}}> {{ a = Pad(x, s) y = Relu(a) }}", "Pad Relu", 18),
    "resize by one": (f"{X} <float[3] s = {{1, 1, 1}}> {{ a = Resize(x, , s) y = Relu(a) }}", "Relu", 18),
    "resize": (f"{X} <float[3] s = {{1, 1, 2}}> {{ a = Resize(x, , s) y = Relu(a) }}", "Resize Relu", 18),
    "where true": (f"{X} <bool[1] t = {{1}}, float z = {{0}}> {{ a = Where(t, x, z) y = Relu(a) }}", "Relu", 18),
    "where that widens": (
        "(float[n,1] x) => (float[a,b] y) <bool[1,2] t = {1, 1}> { z = Neg(x) a = Where(t, x, z) y = Relu(a) }",
        "Neg Where Relu",
        18,
    ),
    "where mixed": (f"{X} <bool[4] t = {{1, 0, 1, 0}}> {{ z = Neg(x) y = Where(t, x, z) }}", "Neg Where", 18),
    "reshape to the same shape": (f"{X} <int64[3] s = {{-1, 3, 4}}> {{ a = Reshape(x, s) y = Relu(a) }}", "Relu", 18),
    "reshape of reshape": (
        f"{X} <int64[2] s = {{-1, 12}}, int64[3] t = {{-1, 2, 6}}> {{ a = Reshape(x, s) y = Reshape(a, t) }}",
        "Reshape",
        18,
    ),
    "reshape and back": (
        f"{X} <int64[2] s = {{-1, 12}}, int64[3] t = {{-1, 3, 4}}> {{ a = Reshape(x, s) b = Reshape(a, t) y = Relu(b) }}",
        "Relu",
        18,
    ),
    "unsqueeze of unsqueeze": (
        "(float[n,3] x) => (float[a,b,c,d] y) <int64[1] s = {1}> { a = Unsqueeze(x, s) y = Unsqueeze(a, s) }",
        "Reshape",
        18,
    ),
    "unsqueeze and squeeze": (f"{X} <int64[1] s = {{1}}> {{ a = Unsqueeze(x, s) b = Squeeze(a, s) y = Relu(b) }}", "Relu", 18),
    "unsqueeze and squeeze, by attribute": (f"{X} {{ a = Unsqueeze<axes = [1]>(x) b = Squeeze<axes = [1]>(a) y = Relu(b) }}", "Relu", 11),
    "flatten of reshape": (
        "(float[n,3,4] x) => (float[a,b] y) <int64[4] s = {-1, 3, 2, 2}> { a = Reshape(x, s) y = Flatten(a) }",
        "Reshape",
        18,
    ),
    "reshape to unknown lengths": (
        "(float[n,3,2] x, float[c,d,2] l) => (float[c,d,2] y) <int64[2] t = {-1, 2}> { s = Shape(l) a = Reshape(x, t) y = Reshape(a, s) }",
        "Shape Reshape",
        18,
    ),
    "transpose that moves nothing": (f"{X} {{ a = Transpose<perm = [0, 1, 2]>(x) y = Relu(a) }}", "Relu", 18),
    "transpose and back": (f"{X} {{ a = Transpose<perm = [0, 2, 1]>(x) b = Transpose<perm = [0, 2, 1]>(a) y = Relu(b) }}", "Relu", 18),
    "transposes": (f"{X} {{ a = Transpose<perm = [1, 0, 2]>(x) y = Transpose<perm = [0, 2, 1]>(a) }}", "Transpose", 18),
    "transpose without perm": (f"{X} {{ a = Transpose(x) b = Transpose(a) y = Relu(b) }}", "Relu", 18),
    "transposes around elementwise": (
        f"{X} <float s = {{2}}> {{ a = Transpose<perm = [0, 2, 1]>(x) b = Mul(a, s) c = Relu(b) y = Transpose<perm = [0, 2, 1]>(c) }}",
        "Mul Relu",
        18,
    ),
    "transposes around a vector": (
        f"{X} <float[3] s = {{2, 1, 3}}> {{ a = Transpose<perm = [0, 2, 1]>(x) b = Mul(a, s) y = Transpose<perm = [0, 2, 1]>(b) }}",
        "Transpose Mul Transpose",
        18,
    ),
    "transposes around a shared value": (
        (
            "(float[n,3,4] x) => (float[a,b,c] y, float[d,e,f] z) "
            "{ a = Transpose<perm = [0, 2, 1]>(x) z = Relu(a) y = Transpose<perm = [0, 2, 1]>(z) }"
        ),
        "Transpose Relu Transpose",
        18,
    ),
    "slice of everything": (
        f"{X} <int64[1] o = {{0}}, int64[1] e = {{9223372036854775807}}> {{ a = Slice(x, o, e, o) y = Relu(a) }}",
        "Relu",
        18,
    ),
    "reversing slice": (
        (
            f"{X} <int64[1] o = {{-1}}, int64[1] e = {{-9}}, int64[1] a1 = {{1}}, int64[1] m = {{-1}}> "
            f"{{ a = Slice(x, o, e, a1, m) y = Relu(a) }}"
        ),
        "Slice Relu",
        18,
    ),
    "slices of different axes": (
        f"{X} <int64[1] o = {{1}}, int64[1] e = {{3}}, int64[1] f = {{2}}> {{ a = Slice(x, o, e, o) y = Slice(a, o, e, f) }}",
        "Slice",
        18,
    ),
    "slices by attributes": (
        f"{X} {{ a = Slice<starts = [1], ends = [3], axes = [1]>(x) y = Slice<starts = [1], ends = [3], axes = [2]>(a) }}",
        "Slice",
        9,
    ),
    "slices of one axis": (
        f"{X} <int64[1] o = {{1}}, int64[1] e = {{3}}, int64[1] f = {{-2}}> {{ a = Slice(x, o, e, o) y = Slice(a, o, e, f) }}",
        "Slice Slice",
        18,
    ),
    "concats": (f"{X} {{ r = Relu(x) a = Concat<axis = 1>(x, r) y = Concat<axis = -2>(r, a) }}", "Relu Concat", 18),
    "concats of different axes": (f"{X} {{ a = Concat<axis = 1>(x, x) y = Concat<axis = 2>(a, a) }}", "Concat Concat", 18),
    "concat of nothing": (
        f"{X} <int64[1] s = {{1}}> {{ r = Relu(x) a = Slice(r, s, s, s) y = Concat<axis = 1>(x, a, r) }}",
        "Relu Concat",
        18,
    ),
    "split and concat": (f"{X} {{ a, b = Split<axis = 2, num_outputs = 2>(x) c = Concat<axis = 2>(a, b) y = Relu(c) }}", "Relu", 18),
    "split and concat, swapped": (
        f"{X} {{ a, b = Split<axis = 2, num_outputs = 2>(x) c = Concat<axis = 2>(b, a) y = Relu(c) }}",
        "Split Concat Relu",
        18,
    ),
    "added constants": (f"{X} <float a = {{1}}, float[4] b = {{1, 2, 3, 4}}> {{ t = Add(x, a) y = Sub(t, b) }}", "Add", 18),
    "subtracted constants": (f"{X} <float a = {{1}}, float[4] b = {{1, 2, 3, 4}}> {{ t = Sub(x, a) y = Sub(t, b) }}", "Sub", 18),
    "added integers": ("(int64[n] x) => (int64[n] y) <int64 a = {1}, int64 b = {2}> { t = Add(x, a) y = Add(t, b) }", "Add Add", 18),
    "added constants that grow": (
        f"{X} <float[3,1] a = {{1, 2, 3}}, float[4] b = {{1, 2, 3, 4}}> {{ t = Add(x, a) y = Add(t, b) }}",
        "Add Add",
        18,
    ),
    "multiplied constants": (f"{X} <float a = {{3}}, float b = {{2}}> {{ t = Mul(x, a) y = Div(t, b) }}", "Mul", 18),
    "divided and multiplied": (f"{X} <float a = {{3}}, float b = {{2}}> {{ t = Div(x, a) y = Mul(t, b) }}", "Mul", 18),
    "divided twice": (f"{X} <float a = {{3}}, float b = {{2}}> {{ t = Div(x, a) y = Div(t, b) }}", "Div", 18),
    "constants that overflow": (f"{X} <float a = {{1e30}}, float b = {{1e30}}> {{ t = Mul(x, a) y = Mul(t, b) }}", "Mul Mul", 18),
    "pad before a convolution": (
        (
            "(float[n,1,4,4] x) => (float[a,b,c,d] y) <int64[8] p = {0, 0, 1, 2, 0, 0, 3, 4}, float[1,1,2,2] w = {1, 2, 3, 4}> "
            "{ t = Pad(x, p) y = Conv<pads = [1, 1, 1, 1]>(t, w) }"
        ),
        "Conv",
        18,
    ),
    "pad of channels before a convolution": (
        (
            "(float[n,1,4,4] x) => (float[a,b,c,d] y) <int64[8] p = {0, 1, 1, 2, 0, 0, 3, 4}, float[1,2,1,2] w = {1, 2, 3, 4}> "
            "{ t = Pad(x, p) y = Conv(t, w) }"
        ),
        "Pad Conv",
        18,
    ),
    "pad with ones before a convolution": (
        (
            "(float[n,1,4,4] x) => (float[a,b,c,d] y) <int64[8] p = {0, 0, 1, 2, 0, 0, 3, 4}, float o = {1}, "
            "float[1,1,2,2] w = {1, 2, 3, 4}> "
            "{ t = Pad(x, p, o) y = Conv(t, w) }"
        ),
        "Pad Conv",
        18,
    ),
    "pad before an average": (
        (
            "(float[n,1,4,4] x) => (float[a,b,c,d] y) <int64[8] p = {0, 0, 1, 1, 0, 0, 1, 1}> "
            "{ t = Pad(x, p) y = AveragePool<kernel_shape = [2, 2]>(t) }"
        ),
        "AveragePool",
        18,
    ),
    "constants": (f"{X} <float[4] a = {{1, 2, 3, 4}}, float b = {{2}}> {{ s = Mul(a, b) r = Sqrt(s) y = Add(x, r) }}", "Add", 18),
    "constants through something large": (
        (
            "(float[n] x) => (float[n] y) <int64[1] s = {5000}, int64 k = {7}> "
            "{ a = ConstantOfShape<value = float[1] {2}>(s) b = Gather(a, k) y = Mul(x, b) }"
        ),
        "Mul",
        18,
    ),
    "constants that would grow": (
        "(float[n,600] x) => (float[a,b] y) <int64[1] s = {600}> { a = ConstantOfShape<value = float[1] {2}>(s) y = Mul(x, a) }",
        "ConstantOfShape Mul",
        18,
    ),
    "random constants": (
        f"{X} <float[4] a = {{1, 2, 3, 4}}> {{ r = RandomUniformLike<low = 0.0, high = 1e-9>(a) z = Mul(r, a) y = Add(x, z) }}",
        "RandomUniformLike Mul Add",
        18,
    ),
    "quantized constants": (
        f"{X} <uint8[4] q = {{1, 2, 3, 4}}, float s = {{0.5}}> {{ w = DequantizeLinear(q, s) y = Mul(x, w) }}",
        "DequantizeLinear Mul",
        18,
    ),
    "constant that is an output": ("(float[n] x) => (float[n] y, float c) <float a = {4}> { c = Sqrt(a) y = Relu(x) }", "Sqrt Relu", 18),
}


@pytest.mark.parametrize(("text", "expected", "opset"), FIRES.values(), ids=FIRES.keys())
def test_rule(text: str, expected: str, opset: int) -> None:
    """A rule fires, or stays away, and the outputs stay the same."""
    assert_rewritten(text, [Simplify()], expected, opset)


def test_values_that_are_outputs_stay() -> None:
    """A value that the caller reads is still there, under its name, where it could be merged away."""
    text = (
        "(float[n,3,4] x) => (float[a,b] t, float[c,d,e] y) <int64[2] s = {-1, 12}, int64[3] u = {-1, 2, 6}> "
        "{ t = Reshape(x, s) y = Reshape(t, u) }"
    )
    after = rewrite(text, Simplify())
    assert [value.name for value in after.graph.outputs] == ["t", "y"]
    assert_same_outputs(parse(text), after)


def test_training_dropout_stays() -> None:
    """A Dropout that trains is no identity, and the ledger says why it stayed."""
    text = "(float[n] x) => (float[n] y) <float r = {0.5}, bool t = {1}> { y = Dropout(x, r, t) }"
    assert "it trains" in misses(text, Simplify())["drop-dropout"]


def test_mask_of_dropout_stays() -> None:
    """A Dropout whose mask is read stays."""
    text = "(float[n] x) => (float[n] y, bool[n] m) { y, m = Dropout(x) }"
    assert operators(rewrite(text, Simplify())) == ["Dropout"]


BRANCHES = """(float[n] x{extra}) => (float[n] y) {{
    y = If({condition}) <
        then_branch = g () => (float[n] o) <float w = {{2}}> {{ t = Mul(x, w) o = Neg(t) }},
        else_branch = h () => (float[n] o) <float w = {{3}}> {{ t = Mul(x, w) o = Abs(t) }}
    >
}}"""


@pytest.mark.parametrize(("value", "expected"), [(1, "Mul Neg"), (0, "Mul Abs")])
def test_taken_branch_is_inlined(value: int, expected: str) -> None:
    """A constant condition leaves the nodes and weights of one branch."""
    text = BRANCHES.format(condition="c", extra="").replace("(float[n] y) {", f"(float[n] y) <bool c = {{{value}}}> {{", 1)
    assert_rewritten(text, [Simplify()], expected)


def test_branch_on_an_input_stays() -> None:
    """A condition that is fed keeps both branches."""
    assert "If" in operators(rewrite(BRANCHES.format(condition="c", extra=", bool c"), Simplify()))


def test_rules_reach_subgraphs() -> None:
    """Nodes inside branches are simplified too."""
    text = BRANCHES.format(condition="c", extra=", bool c").replace("o = Neg(t)", "u = Identity(t) o = Relu(u)")
    assert operators(rewrite(text, Simplify())) == ["If", "Mul", "Relu", "Mul", "Abs"]


def test_denied_rewrite_is_left() -> None:
    """What the ledger forbids does not happen."""
    model = parse("(float[n] x) => (float[n] y) { t = Identity(x) y = Relu(t) }")
    with ledger.recording(ledger.Recorder(denied=frozenset({ledger.Key("simplify", "drop-identity")}))):
        assert not Simplify()(model).modified


CONSTANT_CASES = {
    "Div": ("Div(a, b)", np.array([-7, 7, -8, 5]), np.array([2, -2, 3, 5])),
    "Mod": ("Mod(a, b)", np.array([-7, 7, -8, 5]), np.array([2, -2, 3, 5])),
    "Pow": ("Pow(a, b)", np.array([2.0, 3.0, 0.5, 1.5], np.float32), np.array([2, -2, 3, 0.5], np.float32)),
    "Cast": ("Cast<to = 7>(a)", np.array([-1.5, 1.5, 2.7, -0.2], np.float32), None),
    "Erf": ("Erf(a)", np.array([-1.5, 1.5, 2.7, -0.2], np.float32), None),
    "Sigmoid": ("Sigmoid(a)", np.array([-90, 1.5, 2.7, 90], np.float32), None),
    "Max": ("Max(a, b)", np.array([1.0, 5.0], np.float32), np.array([3.0, 2.0], np.float32)),
    "ReduceMean": ("ReduceMean(a)", np.array([[1.0, 5.0], [2.0, 7.5]], np.float32), None),
    "ReduceSum": ("ReduceSum(a, b)", np.array([[1.0, 5.0], [2.0, 7.5]], np.float32), np.array([-1])),
    "CumSum": ("CumSum(a, b)", np.array([[1.0, 5.0], [2.0, 7.5]], np.float32), np.array(1)),
    "Gather": ("Gather<axis = 1>(a, b)", np.array([[1.0, 5.0], [2.0, 7.5]], np.float32), np.array([-1, 0])),
    "Trilu": ("Trilu<upper = 0>(a)", np.array([[1.0, 5.0], [2.0, 7.5]], np.float32), None),
    "Gemm": ("Gemm<alpha = 0.5, transA = 1>(a, b)", np.array([[1.0, 5.0], [2.0, 7.5]], np.float32), np.ones((2, 2), np.float32)),
    "Range": ("Range(a, b, b)", np.array(7), np.array(-2)),
    "Tile": ("Tile(a, b)", np.array([1, 2]), np.array([2])),
    "NonZero": ("NonZero(a)", np.array([[1, 0], [2, 3]]), None),
    "ConstantOfShape": ("ConstantOfShape<value = int64[1] {3}>(a)", np.array([2, 1]), None),
    "ReduceL2": ("ReduceL2(a, b)", np.array([[1.0, 5.0], [2.0, 7.5]], np.float32), np.array([1])),
    "Softplus": ("Softplus(a)", np.array([-90, 0.5, 90], np.float32), None),
    "Einsum": ('Einsum<equation = "ij,j->i">(a, b)', np.array([[1.0, 5.0], [2.0, 7.5]], np.float32), np.array([3.0, 2.0], np.float32)),
    "EyeLike": ("EyeLike(a)", np.ones((2, 3), np.float32), None),
    "LayerNormalization": ("LayerNormalization(a, b)", np.array([[1.0, 5.0], [2.0, 7.5]], np.float32), np.array([3.0, 2.0], np.float32)),
    "BatchNormalization": (
        "BatchNormalization<epsilon = 1e-8>(a, b, b, b, b)",
        np.array([[[1.0, 5.0], [2.0, 7.5]]], np.float32),
        np.array([0.5, 1e-4], np.float32),
    ),
}


@pytest.mark.parametrize("operator", CONSTANT_CASES)
def test_constants_are_what_the_runtime_computes(operator: str) -> None:
    """The value of a folded constant is the one that the runtime gives."""
    call, a, b = CONSTANT_CASES[operator]
    types = {np.dtype(np.float32): "float", np.dtype(np.int64): "int64"}
    inputs = ", ".join(
        f"{types[x.dtype]}[{', '.join(map(str, x.shape))}] {name}".replace("[]", "") for name, x in (("a", a), ("b", b)) if x is not None
    )
    model = parse(f"({inputs}) => (y) {{ y = {call} }}")
    feeds = {name: x for name, x in (("a", a), ("b", b)) if x is not None}
    assert operator in FOLDED
    found = evaluate_node(model.graph[0], [feeds[value.name or ""] for value in model.graph[0].inputs if value is not None], 18)
    expected = open_session(model, "none").run(feeds)["y"]
    assert found is not None
    assert found[0].dtype == expected.dtype
    np.testing.assert_allclose(found[0], expected, rtol=3e-7, atol=1e-7)


def test_weights_that_are_standardized_when_the_model_runs_become_constants() -> None:
    """As some convolutions do, by a BatchNormalization of the weight: it is a layer like any other then."""
    text = f"""(float[n,3,9,9] x) => (float[n,a,b,c] y)
        <float[1,4,75] w = {{{", ".join(str(number % 7) for number in range(300))}}}, int64[4] s = {{4, 3, 5, 5}},
        float[4] g = {{1, 2, 1, 2}}, float[4] o = {{0, 1, 2, 3}}, float[4] m = {{0, 1, 0, 1}}, float[4] v = {{1, 1, 2, 2}}>
        {{ u, p, q = BatchNormalization<training_mode = 1>(w, g, o, m, v) k = Reshape(u, s) y = Conv(x, k) }}"""
    after = rewrite(text, Simplify())
    assert operators(after) == ["Conv"]
    assert_same_outputs(parse(text), after, {"x": np.ones((2, 3, 9, 9), np.float32)})
    older = text.replace("u, p, q", "u").replace("training_mode = 1", "momentum = 0.5")  # the reference mixes statistics there
    assert "BatchNormalization" in operators(rewrite(older, Simplify(), opset=8))


def test_a_large_constant_that_others_use_is_not_multiplied_apart() -> None:
    """It would be in the file twice."""
    numbers = "{" + ", ".join(["1.5"] * 64) + "}"
    constants = f"float[64] a = {numbers}, float b = {{2}}"
    text = f"(float[64] x) => (float[64] y, float[64] z) <{constants}> {{ t = Mul(x, a) y = Mul(t, b) z = Add(x, a) }}"
    assert "twice" in misses(text, Simplify())["merge-multiplied-constants"]
    assert_rewritten(text.replace("[64]", "[1]").replace(numbers, "{1.5}"), [Simplify()], "Mul Add")

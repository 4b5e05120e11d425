"""Half precision: stored constants are folded; a model that computes in it keeps its inputs, its outputs and its range."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from graphopt import ledger
from graphopt.graph.edits import all_nodes, name_nodes
from graphopt.graph.signature import signature_of
from graphopt.graph.structure import signature_changes, verify_structure
from graphopt.passes.base import Context, GuidedPass
from graphopt.passes.quantize.half import Half
from graphopt.passes.quantize.half_storage import HalfStorage
from graphopt.runtime.kernels import executed_kernels
from graphopt.runtime.session import open_session
from graphopt.samples import Samples
from tests.helpers import operators, parse, random_feeds
from tests.weighted import weighted


def run(model: ir.Model, chosen: GuidedPass, target: str) -> ledger.Recorder:
    """Runs a pass on real samples and tells what it recorded."""
    before = signature_of(model)
    samples = Samples.open([random_feeds(model)], before)
    with ledger.recording(ledger.Recorder()) as recorder:
        chosen.run(model, Context(samples, target))
    verify_structure(model)
    assert not signature_changes(before, signature_of(model))
    return recorder


def assert_close(before: ir.Model, after: ir.Model, closeness: float = 1e-5) -> None:
    """Outputs stay close at both levels, and keep their types; the CPU widens float16 nodes by itself."""
    feeds = random_feeds(before)
    expected = open_session(before, "none").run(feeds)
    for level in ("all", "none"):
        for name, found in open_session(after, level).run(feeds).items():
            assert found.dtype == expected[name].dtype
            assert np.square(found - expected[name]).sum() <= closeness * np.square(expected[name]).sum()


NETWORK = """(float[1,4,8,8] x) => (float[1,4,8,8] y, float[1,4,8,8] n) {
    a = Conv<pads=[1,1,1,1]>(x, w) r = Relu(a) n = InstanceNormalization(r, s, s) t = Tanh(n) y = Add(t, x)
}"""
WEIGHTS = {"w": (4, 4, 3, 3), "s": (4,)}


def test_stored_constants_are_folded() -> None:
    """Weights take half of the bytes, and the same kernels run."""
    text, weights = "(float[3,64] x) => (float[3,32] y) { y = MatMul(x, w) }", {"w": (64, 32)}
    before, after = weighted(text, weights), weighted(text, weights)
    assert len(run(after, HalfStorage(), "cpu").rewrites) == 1
    assert operators(after) == ["Cast", "MatMul"]
    assert executed_kernels(after).counts == executed_kernels(before).counts
    assert_close(before, after, 1e-6)
    large = weighted(text, weights)
    large.graph.initializers["w"].const_value = ir.tensor(np.full((64, 32), 7e4, np.float32), name="w")
    assert list(run(large, HalfStorage(), "cpu").misses.values()) == ["it holds numbers that are too large for float16"]


def test_cpu_refuses_to_compute_in_half() -> None:
    """On a CPU nothing is gained: one line says so."""
    model = weighted(NETWORK, WEIGHTS)
    recorder = run(model, Half(), "cpu")
    assert recorder.notes == ["half: the target cpu has no float16 kernels; half-storage halves the file at the same speed"]
    assert not recorder.rewrites


def test_whole_networks_compute_in_half() -> None:
    """Every operator takes float16; Casts stand at the inputs and outputs alone, and an output that is also read keeps both forms."""
    before, after = weighted(NETWORK, WEIGHTS), weighted(NETWORK, WEIGHTS)
    recorder = run(after, Half(), "cuda")
    assert len(recorder.rewrites) == 5
    assert operators(after).count("Cast") == 3
    assert {value.dtype for value in after.graph.initializers.values()} == {ir.DataType.FLOAT16}
    assert_close(before, after)


def test_what_leaves_the_range_stays() -> None:
    """A value beyond float16's range on the samples keeps its producer and its readers in float32; a large constant does too."""
    text = """(float[2,8] x, float[8,8] z) => (float[2,8] y) <float big = {20000.0}, float mask = {-3.4e38}> {
        a = Relu(x) b = Mul(a, big) c = Sigmoid(b) d = MatMul(c, z) e = Add(d, mask) f = Max(e, d) y = Tanh(f)
    }"""
    before, after = parse(text), parse(text)
    for model in (before, after):
        name_nodes(model)
    recorder = run(after, Half(), "cuda")
    kept = {node.op_type for node in all_nodes(after) if node.outputs[0].dtype != ir.DataType.FLOAT16 and node.op_type != "Cast"}
    assert kept == {"Mul", "Sigmoid", "Add", "Max"}
    assert sum("too close to float16's range" in reason for reason in recorder.misses.values()) == 3
    assert_close(before, after)


def test_small_constants_keep_their_reader() -> None:
    """An epsilon that float16 would make zero is added in float32."""
    model = parse("(float[2,8] x) => (float[2,8] y) <float epsilon = {1.0e-12}> { a = Abs(x) b = Add(a, epsilon) y = Sqrt(b) }")
    name_nodes(model)
    assert list(run(model, Half(), "cuda").misses.values()) == ["epsilon vanishes in float16"]
    assert operators(model) == ["Cast", "Abs", "Cast", "Add", "Cast", "Sqrt", "Cast"]


def test_operators_without_float_results() -> None:
    """What only asks for a shape reads either type; what compares stays in float32; neither brings a Cast of its own into float."""
    model = parse("""(float[2,8] x) => (int64[2] s, bool[2,8] g, int64[2] t) {
        a = Relu(x) s = Shape(a) g = Greater(a, x) t = Shape(x)
    }""")
    name_nodes(model)
    assert len(run(model, Half(), "cuda").rewrites) == 1
    assert operators(model) == ["Cast", "Relu", "Cast", "Shape", "Greater", "Shape"]
    assert [list(found.shape) for found in open_session(model).run(random_feeds(model)).values()] == [[2], [2, 8], [2]]


def test_subgraphs_and_exact_operators_stay() -> None:
    """Values that a branch captures are widened for it; Casts meet without a detour; counting stays exact."""
    text = """(int64[3] i, bool choice) => (float[3] y) {
        f = Cast<to=1>(i) a = Relu(f) b = Tanh(a)
        y = If(choice) < then_branch = t () => (float[3] p) { p = Neg(b) }, else_branch = e () => (float[3] q) { q = Abs(b) } >
    }"""
    before, after = parse(text), parse(text)
    for model in (before, after):
        name_nodes(model)
    run(after, Half(), "cuda")
    assert operators(after) == ["Cast", "Relu", "Tanh", "Cast", "If", "Neg", "Abs"]
    for choice in (True, False):
        feeds = {"i": np.array([-2, 0, 3]), "choice": np.array(choice)}
        expected, found = (open_session(model).run(feeds)["y"] for model in (before, after))
        np.testing.assert_allclose(found, expected, atol=1e-3)


@pytest.mark.parametrize("target", ["portable", "cuda"])
def test_made_up_samples_tell_no_ranges(target: str) -> None:
    """Without data the constants alone are looked at."""
    model = weighted(NETWORK, WEIGHTS)
    with ledger.recording(ledger.Recorder()) as recorder:
        assert Half().run(model, Context(Samples.synthetic(model), target))
    assert len(recorder.rewrites) == 5

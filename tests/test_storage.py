"""Weights stored in integers: folded when the model is loaded, close, smaller, wherever they stand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from graphopt import ledger
from graphopt.errors import RecipeError
from graphopt.graph.edits import name_nodes
from graphopt.graph.scratch import scratch, tensor_of
from graphopt.graph.signature import signature_of
from graphopt.graph.structure import verify_structure
from graphopt.passes.base import Context
from graphopt.passes.quantize.storage import Storage
from graphopt.runtime.kernels import executed_kernels
from graphopt.runtime.serialize import weight_bytes
from graphopt.runtime.session import SessionOptions, open_session
from graphopt.samples import Samples
from graphopt.targets import TARGETS
from tests.helpers import operators, random_feeds
from tests.weighted import weighted

Weights = dict[str, tuple[int, ...]]


def run(model: ir.Model, chosen: Storage | None = None, samples: Samples | None = None) -> ledger.Recorder:
    """Runs the pass and tells what it recorded."""
    samples = samples or Samples.open([random_feeds(model)], signature_of(model))
    with ledger.recording(ledger.Recorder()) as recorder:
        (chosen or Storage(min_size=0)).run(model, Context(samples, "cpu"))
    verify_structure(model)
    return recorder


def assert_stored(before: ir.Model, after: ir.Model, count: int, closeness: float = 1e-3, feeds: dict[str, Any] | None = None) -> None:
    """Integers are folded at load (the same kernels run), outputs stay close at both levels of optimization."""
    assert operators(after).count("Cast") == count
    assert executed_kernels(after).counts == executed_kernels(before).counts
    feeds = random_feeds(before) if feeds is None else feeds
    expected = open_session(before, "none").run(feeds)
    for optimizations in ("all", "none"):
        for name, found in open_session(after, optimizations).run(feeds).items():
            assert np.square(found - expected[name]).sum() <= closeness * np.square(expected[name]).sum()


CASES: dict[str, tuple[str, Weights]] = {
    "conv": ("(float[1,8,9,9] x) => (float[1,16,9,9] y) { y = Conv<pads=[1,1,1,1]>(x, w) }", {"w": (16, 8, 3, 3)}),
    "grouped conv": ("(float[1,16,9,9] x) => (float[1,32,7,7] y) { y = Conv<group=4>(x, w) }", {"w": (32, 4, 3, 3)}),
    "transposed": ("(float[1,16,5,5] x) => (float[1,12,7,7] y) { y = ConvTranspose<group=2>(x, w) }", {"w": (16, 6, 3, 3)}),
    "gemm": ("(float[3,64] x) => (float[3,32] y) { y = Gemm<transB=1>(x, w) }", {"w": (32, 64)}),
    "stack": ("(float[2,3,64] x) => (float[2,3,32] y) { y = MatMul(x, w) }", {"w": (2, 64, 32)}),
    "lstm": (
        "(float[5,2,24] x) => (float[5,1,2,16] y) { y = LSTM<hidden_size=16>(x, w, r) }",
        {"w": (1, 64, 24), "r": (1, 64, 16)},
    ),
    "gru": ("(float[5,2,24] x) => (float[5,1,2,32] y) { y = GRU<hidden_size=32>(x, w, r) }", {"w": (1, 96, 24), "r": (1, 96, 32)}),
    "position": ("(float[2,6,32] x) => (float[2,6,32] y) { z = Add(x, w) y = Relu(z) }", {"w": (1, 6, 32)}),
    "twice": (
        "(float[3,32] x) => (float[3,32] y) { a = MatMul(x, w) b = Relu(a) y = MatMul(b, w) }",
        {"w": (32, 32)},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_stored_weights_are_folded(case: str) -> None:
    """Weights of every kind of operator run in the same float kernels as before."""
    text, weights = CASES[case]
    before, after = weighted(text, weights), weighted(text, weights)
    recorder = run(after, Storage(min_size=100))
    assert len(recorder.rewrites) == 1
    assert_stored(before, after, len(weights))


def test_table_is_stored_by_rows() -> None:
    """A row of a table has a scale of its own, so that a small row beside a large one stays right."""
    text, weights = "(int64[3] x) => (float[3,32] y) { y = Gather(w, x) }", {"w": (40, 32)}
    before, after = weighted(text, weights), weighted(text, weights)
    for model in (before, after):
        table = model.graph.initializers["w"].const_value
        assert table is not None
        model.graph.initializers["w"].const_value = ir.tensor(table.numpy() * np.logspace(0, -4, 40, dtype=np.float32)[:, None], name="w")
    run(after)
    assert_stored(before, after, 1, feeds={"x": np.array([39, 38, -3])})


BRANCHES = """(float[3,64] x, bool choice) => (float[3,32] y) {
    y = If(choice) <
        then_branch = then () => (float[3,32] a) { a = MatMul(x, w) },
        else_branch = other () => (float[3,32] b) { v = Identity(w) b = MatMul(x, v) }
    >
}"""


@pytest.mark.parametrize("inner", ["outside", "initializer", "constant"])
def test_weights_in_branches_are_folded(inner: str) -> None:
    """Weights that the branches of an If use, or hold as an initializer or a Constant node, are folded too."""
    models = []
    for _ in range(2):
        model = weighted(BRANCHES.replace("v = Identity(w) b = MatMul(x, v)", "b = MatMul(x, w)"), {"w": (64, 32)})
        if inner != "outside":
            _move_inside(model, as_node=inner == "constant")
        models.append(model)
    before, after = models
    run(after)
    for choice in (True, False):
        feeds = random_feeds(before) | {"choice": np.array(choice)}
        assert_stored(before, after, 1, feeds=feeds)


def _move_inside(model: ir.Model, *, as_node: bool) -> None:
    """Gives the first branch a weight of its own; the other branch adds a vector to nothing much."""
    value = model.graph.initializers.pop("w")
    assert value.const_value is not None
    branches = [graph for graph in model.graph.subgraphs() if isinstance(graph, ir.Graph)]
    for graph in branches:
        matmul = graph[0]
        if graph is branches[0]:
            inside = ir.val("inside", ir.DataType.FLOAT, (64, 32), const_value=value.const_value)
            if as_node:
                node = ir.node("Constant", [], {"value": ir.AttrTensor("value", value.const_value)}, outputs=[ir.val("inside")], name="c")
                graph.insert_before(matmul, node)
                inside = node.outputs[0]
            else:
                graph.register_initializer(inside)
            matmul.replace_input_with(1, inside)
        else:
            columns = ir.val("columns", const_value=ir.tensor(np.arange(32), name="columns"))
            model.graph.register_initializer(columns)
            new = ir.node("Gather", [matmul.inputs[0], columns], {"axis": 1}, outputs=[ir.val("gathered")], name="gathered")
            new.outputs[0].type, new.outputs[0].shape = matmul.outputs[0].type, matmul.outputs[0].shape
            graph.insert_before(matmul, new)
            graph.outputs[0] = new.outputs[0]
            graph.remove(matmul, safe=True)


def test_only_known_readers_and_what_gets_smaller() -> None:
    """A constant of an operator that may look at it early, a vector, and one whose scales would eat the gain stay as they are."""
    text = """(float[1,64,4,4] x) => (float[1,64,4,4] y) {
        a = PRelu(x, slope) b = Add(a, thin) y = InstanceNormalization(b, vector, vector)
    }"""
    model = weighted(text, {"slope": (64, 4, 4), "thin": (64, 4, 1), "vector": (64,)})
    recorder = run(model)
    assert operators(model) == ["PRelu", "Add", "InstanceNormalization"]
    assert list(recorder.misses.values()) == ["its scales take more than its integers save"]


def test_sessions_that_do_not_fold() -> None:
    """A session may be told not to fold large constants; they would then be made at each run, so they stay."""
    config = {"optimization.constant_folding_max_output_size_in_bytes": "4096"}
    text = "(float[3,64] x) => (float[3,16] y) { a = MatMul(x, v) y = MatMul(a, w) }"
    model = weighted(text, {"v": (64, 64), "w": (64, 16)})
    options = SessionOptions(config=config)
    with ledger.recording(ledger.Recorder()) as recorder:
        Storage().run(model, Context(Samples.synthetic(model), "cpu", options=options))
    assert operators(model) == ["MatMul", "Cast", "Mul", "MatMul"]
    assert list(recorder.misses.values()) == ["the session's configuration keeps the runtime from folding it"]
    assert executed_kernels(model, options).total == 2


def test_globs_choose() -> None:
    """Globs on names of weights and nodes choose; one that matches nothing is an error."""
    text, weights = "(float[3,64] x) => (float[3,32] y) { a = MatMul(x, v) y = MatMul(a, w) }", {"v": (64, 64), "w": (64, 32)}
    model = weighted(text, weights)
    run(model, Storage(min_size=0, exclude=("v",)))
    assert operators(model) == ["MatMul", "Cast", "Mul", "MatMul"]
    with pytest.raises(RecipeError, match="no constant, and no node with one, matches 'q"):
        run(weighted(text, weights), Storage(include=("q*",)))


def test_samples_guide_the_weights() -> None:
    """With samples that excite few directions, errors go where these do not see them."""
    text, weights = "(float[200,64] x) => (float[200,32] y) { y = MatMul(x, w) }", {"w": (64, 32)}
    generator = np.random.default_rng(1)
    feeds = {"x": (generator.normal(size=(200, 6)) @ generator.normal(size=(6, 64))).astype(np.float32)}
    losses = []
    for given in (True, False):
        before, after = weighted(text, weights), weighted(text, weights)
        samples = Samples.open([feeds], signature_of(before)) if given else Samples.synthetic(before)
        run(after, samples=samples)
        expected, found = (open_session(model).run(feeds)["y"] for model in (before, after))
        losses.append(float(np.square(found - expected).sum()))
    assert losses[0] < 0.3 * losses[1]


def test_four_bits(tmp_path: Path) -> None:
    """Four bits are packed two to a byte, in memory and in a scratch file, from opset 21 on; before it a note says why not."""
    if not TARGETS["cpu"].runs("Cast", ir.DataType.INT4, 21):
        old_runtime = weighted("(float[3,2048] x) => (float[3,64] y) { y = MatMul(x, w) }", {"w": (2048, 64)}, opset=21)
        assert run(old_runtime, Storage(bits=4)).notes == ["storage: 4 bits need a newer runtime, which casts integers of 4 bits"]
        pytest.skip("the installed runtime has no Cast from int4")
    text, weights = "(float[3,2048] x) => (float[3,1056] y) { y = MatMul(x, w) }", {"w": (2048, 1056)}
    before, after = weighted(text, weights, opset=21), weighted(text, weights, opset=21)
    for model in (before, after):
        model.ir_version = 10
    with scratch(tmp_path):
        run(after, Storage(bits=4), Samples.synthetic(after))
    [codes] = [value.const_value for value in after.graph.initializers.values() if value.dtype == ir.DataType.INT4]
    assert isinstance(codes, ir.ExternalTensor)
    assert codes.nbytes == 2048 * 1056 // 2
    assert_stored(before, after, 1, closeness=0.03)
    old = weighted(text, weights)
    assert run(old, Storage(bits=4)).notes == ["storage: 4 bits need opset 21, the model has 18"]


def test_scratch_packs_small_elements(tmp_path: Path) -> None:
    """A tensor of 4-bit integers comes back from its scratch file as it went in."""
    array = np.random.default_rng(0).integers(-8, 8, (1 << 20, 3)).astype(ml_dtypes.int4)
    with scratch(tmp_path):
        found = tensor_of(array, "codes")
    np.testing.assert_array_equal(found.numpy(), array)


def test_weights_in_the_branches_of_a_speech_detector(zoo: Path) -> None:
    """A trained model whose weights all stand in the branches of an If: a quarter of the bytes, and the same kernels."""
    before, after = (ir.load(zoo / "silero_vad_ifless" / "model.onnx") for _ in range(2))
    name_nodes(after)
    assert len(run(after, Storage(), Samples.synthetic(after)).rewrites) == 14
    assert executed_kernels(after).counts == executed_kernels(before).counts
    assert weight_bytes(after) < 0.27 * weight_bytes(before)

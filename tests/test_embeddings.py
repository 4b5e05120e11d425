"""Tables in few bits: gathered as written, shared with tied heads, left in float where that is better."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from graphopt import ledger
from graphopt.graph.signature import signature_of
from graphopt.graph.structure import verify_structure
from graphopt.graph.view import View
from graphopt.passes.base import Context
from graphopt.passes.quantize import embeddings
from graphopt.passes.quantize.embeddings import Embeddings
from graphopt.runtime.kernels import executed_kernels
from graphopt.runtime.session import open_session
from graphopt.samples import Samples
from graphopt.targets import TARGETS
from graphopt.targets.emit import GATHER_BLOCK_QUANTIZED
from tests.helpers import operators
from tests.weighted import weighted

pytestmark = pytest.mark.skipif(
    not TARGETS["cpu"].runs(GATHER_BLOCK_QUANTIZED, ir.DataType.UINT8, 18),
    reason="the installed runtime's GatherBlockQuantized reads no bytes",
)

ROWS, WIDTH = 50, 64
TABLE = {"t": (ROWS, WIDTH)}
PLAIN = "(int64[2,3] i) => (float[2,3,64] y) { e = Gather(t, i) y = Relu(e) }"
TIED = "(int64[2,3] i) => (float[2,3,50] y) { e = Gather(t, i) h = Tanh(e) u = Transpose<perm=[1,0]>(t) y = MatMul(h, u) }"
GEMM = """(int64[3] i) => (float[3,50] y) { e = Gather(t, i) h = Tanh(e) y = Gemm<transB=1>(h, t, b) }"""
COPY = "(int64[2,3] i) => (float[2,3,50] y) { e = Gather(t, i) h = Tanh(e) y = MatMul(h, c) }"


def feed_of(model: ir.Model) -> dict[str, np.ndarray]:
    """Rows from both ends."""
    shape = model.graph.inputs[0].shape
    assert shape is not None
    numbers = np.array([0, -1, 49, 7, -50, 3], np.int64)[: np.prod(shape.numpy())]
    return {"i": numbers.reshape(shape.numpy())}


def run(
    model: ir.Model, chosen: Embeddings | None = None, *, denied: tuple[str, ...] = (), target: str = "cpu", measures: bool = False
) -> ledger.Recorder:
    """Runs the pass and tells what it recorded."""
    samples = Samples.open([feed_of(model)], signature_of(model))
    keys = frozenset(ledger.Key("embeddings", form) for form in denied)
    with ledger.recording(ledger.Recorder(keys)) as recorder:
        (chosen or Embeddings(min_size=0)).run(model, Context(samples, target, measures=measures))
    verify_structure(model)
    return recorder


def assert_close(before: ir.Model, after: ir.Model, closeness: float) -> None:
    """Outputs stay close at both levels of the runtime's optimizations."""
    feed = feed_of(before)
    expected = open_session(before, "none").run(feed)["y"]
    for level in ("all", "none"):
        error = np.square(open_session(after, level).run(feed)["y"] - expected).sum()
        assert error <= closeness * np.square(expected).sum()


@pytest.mark.parametrize(("bits", "closeness"), [(8, 1e-4), (4, 0.02), (2, 0.25)])
@pytest.mark.parametrize("block", [16, 128])
def test_tables_are_gathered_as_written(bits: int, closeness: float, block: int) -> None:
    """Rows come back close, negative indices too, from the kernel planned."""
    before, after = weighted(PLAIN, TABLE), weighted(PLAIN, TABLE)
    recorder = run(after, Embeddings(bits=bits, block=block, min_size=0))  # type: ignore[arg-type]  # of the parametrization
    assert [rewrite.kernels for rewrite in recorder.rewrites] == [("com.microsoft::GatherBlockQuantized",)]
    assert executed_kernels(after).counts["com.microsoft", "GatherBlockQuantized"] == 1
    after.graph[0].outputs[0].shape = None
    assert View(after).shape(after.graph[0].outputs[0]) == (2, 3, WIDTH)
    assert_close(before, after, closeness)


@pytest.mark.parametrize("text", [TIED, GEMM, COPY])
@pytest.mark.parametrize(("denied", "kernel"), [((), "DynamicQuantizeMatMul"), (("tied-rows",), "MatMulNBits")])
def test_tied_tables_are_stored_once(text: str, denied: tuple[str, ...], kernel: str) -> None:
    """A head that reads the table, or a transposed copy of it, reads the same integers; nothing float is left of either."""
    weights = TABLE | ({"b": (50,)} if text is GEMM else {"c": (WIDTH, ROWS)} if text is COPY else {})
    models = []
    for _ in range(2):
        model = weighted(text, weights)
        if text is COPY:
            table, copy = model.graph.initializers["t"], model.graph.initializers["c"]
            assert table.const_value is not None
            copy.const_value = ir.tensor(np.ascontiguousarray(table.const_value.numpy().T), name="c")
        models.append(model)
    before, after = models
    recorder = run(after, denied=denied)
    assert [rewrite.kernels for rewrite in recorder.rewrites] == [("com.microsoft::GatherBlockQuantized", f"com.microsoft::{kernel}")]
    counts = executed_kernels(after).counts
    assert counts["com.microsoft", "GatherBlockQuantized"] == counts["com.microsoft", kernel] == 1
    assert sum(counts.values()) == sum(executed_kernels(before).counts.values())
    assert (
        sum(value.const_value.nbytes for value in after.graph.initializers.values() if value.const_value is not None) < ROWS * WIDTH * 1.2
    )
    assert_close(before, after, 1e-3)


def test_table_with_a_head_in_float_stays() -> None:
    """Where no tied form is left, and where something else reads the table, the float table is needed and stays alone."""
    model = weighted(TIED, TABLE)
    assert list(run(model, denied=("tied-rows", "tied-blocks")).misses.values()) == ["its head stays in float and reads the float table"]
    other = weighted("(int64[2] i) => (float[2,64] y) { e = Gather(t, i) s = ReduceMax<keepdims=0>(t) y = Add(e, s) }", TABLE)
    assert list(run(other).misses.values()) == ["ReduceMax reads the float table too"]
    odd = weighted("(int64[2] i) => (float[2,7] y) { y = Gather(t, i) }", {"t": (50, 7)})
    assert list(run(odd, Embeddings(bits=4, min_size=0)).misses.values()) == ["its rows do not fill whole bytes"]
    assert "com.microsoft::GatherBlockQuantized" in run(weighted(PLAIN, TABLE), target="portable").notes[0]


def test_measured_forms(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fastest form is taken and the others are declined with their times, so that a replay takes it too; a slow table stays."""
    monkeypatch.setattr(embeddings, "seconds_of", lambda models, feed, options: [3e-3, 2e-3, 1e-3][: len(models)])
    model = weighted(TIED, TABLE)
    recorder = run(model, measures=True)
    assert [rewrite.key.rule for rewrite in recorder.rewrites] == ["tied-blocks"]
    assert [drop.reason for drop in recorder.declined] == ["2 ms instead of 1 ms as tied-blocks"]
    monkeypatch.setattr(embeddings, "seconds_of", lambda models, feed, options: [1e-3, 2e-3, 3e-3][: len(models)])
    slow = weighted(PLAIN, TABLE)
    assert [drop.reason for drop in run(slow, measures=True).declined] == ["2 ms instead of 1 ms in float, of 1 ms for the whole model"]
    assert operators(slow) == ["Gather", "Relu"]


def test_real_measurements_decide() -> None:
    """On this machine some form of a tied table of moderate size comes out of the race, whichever it is, or none with a reason."""
    weights = {"t": (400, 64)}
    text = TIED.replace("50]", "400]")
    model = weighted(text, weights)
    recorder = run(model, measures=True)
    assert len(recorder.rewrites) == 1 or len(recorder.declined) == 2
    assert len(recorder.rewrites) + len(recorder.declined) == 2


@pytest.mark.parametrize(("indices", "shape"), [("int64", "64"), ("int32[4]", "4,64"), ("int64[2,0]", "2,0,64")])
def test_indices_of_any_kind(indices: str, shape: str) -> None:
    """One index, 32-bit ones and none at all give what Gather gives."""
    text = f"({indices} i) => (float[{shape}] y) {{ y = Gather(t, i) }}"
    before, after = weighted(text, TABLE), weighted(text, TABLE)
    value = before.graph.inputs[0]
    assert value.shape is not None
    assert value.dtype is not None
    feed = {"i": np.full(value.shape.numpy(), 7, value.dtype.numpy())}
    samples = Samples.open([feed], signature_of(before))
    assert Embeddings(min_size=0).run(after, Context(samples, "cpu", measures=False))
    for level in ("all", "none"):
        expected, found = (open_session(model, level).run(feed)["y"] for model in (before, after))
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, atol=0.05)


def test_tables_in_branches() -> None:
    """A table that a branch of an If gathers from is found there."""
    text = """(int64[3] i, bool choice) => (float[3,64] y) {
        y = If(choice) <
            then_branch = a () => (float[3,64] p) { p = Gather(t, i) },
            else_branch = b () => (float[3,64] q) { n = Neg(i) q = Gather(t, n) }
        >
    }"""
    before, after = weighted(text, TABLE), weighted(text, TABLE)
    feeds = [{"i": np.array([1, 2, 3]), "choice": np.array(choice)} for choice in (True, False)]
    samples = Samples.open(feeds, signature_of(before))
    assert Embeddings(min_size=0).run(after, Context(samples, "cpu", measures=False))
    verify_structure(after)
    assert "Gather" not in operators(after)
    for feed in feeds:
        expected, found = (open_session(model).run(feed)["y"] for model in (before, after))
        np.testing.assert_allclose(found, expected, atol=0.05)

"""Statistics: ranges, histograms and Gram matrices from samples, against numpy on fetched activations."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphopt.cli import main
from graphopt.errors import SamplesError, StatisticsError
from graphopt.graph.edits import name_nodes
from graphopt.graph.layers import layers_of
from graphopt.graph.signature import signature_of
from graphopt.graph.unfold import unfold
from graphopt.passes.base import Context
from graphopt.runtime.statistics import Histogram, Request, Statistics, collect, positions, quantizable
from graphopt.runtime.statistics.values import ValueStatistics
from graphopt.runtime.trace import trace_values
from graphopt.samples import Samples
from tests.helpers import parse

Arrays = dict[str, np.ndarray[Any, Any]]

NETWORK = """ (float[N, 4, H, W] x, int64[N] ids, bool[N] flags) => (float[N, 5] y, int64[N] same, bool[N] other)
    <float[8, 4, 3, 3] w1, float[8, 1, 3, 3] w2, float[8, 3, 3, 3] w3, float[6, 2, 2, 2] w4, float[5, 4] w5> {
    a = Conv <pads = [1, 1, 1, 1]> (x, w1)
    b = Relu (a)
    c = Conv <group = 8, strides = [2, 2], auto_pad = "SAME_UPPER"> (b, w2)
    d = ConvTranspose <strides = [2, 2]> (c, w3)
    e = Clip (d)
    f = Conv <group = 1, dilations = [2, 1]> (e, w6)
    g = ConvTranspose <group = 2, strides = [2, 1], pads = [1, 0, 0, 1]> (f, w4)
    h = GlobalAveragePool (g)
    i = Flatten (h)
    y = Gemm <transB = 1> (i, w5)
    same = Identity (ids)
    other = Not (flags)
}"""


def network() -> ir.Model:
    """A network of ordinary, depthwise and transposed convolutions, with inputs that are no floats."""
    text = NETWORK.replace("float[5, 4] w5>", "float[5, 4] w5, float[6, 3, 2, 2] w6>")
    return weighted(text)


def weighted(text: str) -> ir.Model:
    """A model of ``(inputs) => (outputs) <weights> { nodes }`` with random weights and named nodes."""
    model = parse(re.sub(r"\) => (\([^)]*\))\s*<([^<>]*)>\s*{", r", \2) => \1 {", text, count=1))
    generator, graph = np.random.default_rng(0), model.graph
    for value in [value for value in graph.inputs if (value.name or "").startswith("w")]:
        shape = tuple(value.shape.numpy()) if value.shape is not None else ()
        value.const_value = ir.tensor(generator.normal(size=shape).astype(np.float32) / 2, name=value.name)
        graph.inputs.remove(value)
        graph.register_initializer(value)
    name_nodes(model)
    return model


def feeds(count: int = 6, seed: int = 1) -> list[Arrays]:
    """Samples of the network, each of another shape."""
    generator = np.random.default_rng(seed)
    sizes = [(int(n), int(h), int(w)) for n, h, w in generator.integers((1, 8, 8), (4, 20, 20), size=(count, 3))]
    return [
        {
            "x": (generator.normal(size=(n, 4, h, w)) * (1 + index)).astype(np.float32),
            "ids": np.arange(n, dtype=np.int64),
            "flags": np.ones(n, dtype=np.bool_),
        }
        for index, (n, h, w) in enumerate(sizes)
    ]


def fetched(model: ir.Model, samples: Sequence[Arrays], name: str) -> list[np.ndarray[Any, Any]]:
    """A value for each sample."""
    return [trace_values(model, feed, [name])[name] for feed in samples]


def assert_gram(model: ir.Model, samples: Sequence[Arrays], statistics: Statistics) -> None:
    """Asserts that the moments of all layers are those of numpy on fetched inputs."""
    for layer in layers_of(model):
        columns = [unfold(layer, array.astype(np.float64)) for array in fetched(model, samples, layer.input.name or "")]
        x = np.concatenate(columns, axis=-1)
        found = statistics.layers[layer.name]
        gram = x @ x.swapaxes(-1, -2)
        assert found.n == x.shape[-1]
        np.testing.assert_allclose(found.gram, gram, rtol=0, atol=1e-5 * np.abs(gram).max())
        np.testing.assert_allclose(found.mean, x.mean(axis=-1), rtol=0, atol=1e-5 * np.abs(x).max())


def all_layers(model: ir.Model) -> tuple[str, ...]:
    """The names of all layers."""
    return tuple(layer.name for layer in layers_of(model))


@pytest.mark.parametrize("kind", ["reduced", "fetched"])
def test_values_are_those_of_numpy(kind: str) -> None:
    """Extremes and means over samples of varying shape are numpy's, whether the runtime reduces or a histogram is counted."""
    model, samples = network(), feeds()
    names = ("x", "a", "b", "c", "d", "i", "y")
    channels = {"x": 1, "a": 1, "c": 1, "y": -1}
    found = collect(model, samples, Request(values=names, histograms=names if kind == "fetched" else (), channels=channels))
    assert found.samples == len(samples)
    assert list(found.values) == list(names)
    for name in names:
        arrays, value = fetched(model, samples, name), found.values[name]
        flat = np.concatenate([array.reshape(-1) for array in arrays]).astype(np.float64)
        assert value.count == flat.size
        assert value.minimum == pytest.approx(flat.min(), rel=1e-5)
        assert value.maximum == pytest.approx(flat.max(), rel=1e-5)
        assert value.mean == pytest.approx(flat.mean(), abs=1e-5 * np.abs(flat).max())
        if value.histogram is not None:
            counts, edges = value.histogram.bins()
            np.testing.assert_array_equal(counts, np.histogram(flat, edges)[0])
            assert edges[0] == np.floor(flat.min() / value.histogram.width) * value.histogram.width
            assert value.histogram.quantile(1.0) == edges[-1] == pytest.approx(flat.max(), abs=value.histogram.width)
    for name, axis in channels.items():
        moved = [np.moveaxis(array, axis, 0).reshape(array.shape[axis], -1) for array in fetched(model, samples, name)]
        flat = np.concatenate(moved, axis=1)
        stored = found.values[name].channels
        assert stored is not None
        np.testing.assert_allclose(stored.minimum, flat.min(axis=1), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(stored.maximum, flat.max(axis=1), rtol=1e-5, atol=1e-6)


def test_layers_of_convolutions() -> None:
    """Gram matrices of ordinary, depthwise, grouped, strided, dilated and transposed convolutions and of Gemm are numpy's."""
    model, samples = network(), feeds()
    assert_gram(model, samples, collect(model, samples, Request(layers=all_layers(model))))


@pytest.mark.parametrize(
    "text",
    [
        "(float[N, 6] x) => (float[N, 3] y) <float[6, 3] w> { y = Gemm (x, w) }",
        "(float[6, N] x) => (float[N, 3] y) <float[3, 6] w> { y = Gemm <transA = 1, transB = 1> (x, w) }",
        "(float[6, N] x) => (float[3, N] y) <float[3, 6] w> { y = Gemm (w, x) }",
        "(float[N, M, 6] x) => (float[N, M, 3] y) <float[6, 3] w> { y = MatMul (x, w) }",
        "(float[N, 2, M, 6] x) => (float[N, 2, M, 3] y) <float[6, 3] w> { y = MatMul (x, w) }",
        "(float[N, 2, M, 6] x) => (float[N, 2, M, 3] y) <float[2, 6, 3] w> { y = MatMul (x, w) }",
        "(float[6] x) => (float[3] y) <float[6, 3] w> { y = MatMul (x, w) }",
        "(float[N, 4, M] x) => (float[N, 2, K] y) <float[2, 4, 5] w> { y = Conv <pads = [2, 2]> (x, w) }",
        "(float[N, 4, M] x) => (float[N, 2, M] y) <float[2, 4, 1] w> { y = Conv (x, w) }",
        "(float[N, 4, M] x) => (float[N, 2, K] y) <float[2, 4, 1] w> { y = Conv <strides = [2]> (x, w) }",
    ],
)
@pytest.mark.parametrize("length", [3, 40])
def test_layers_by_form(text: str, length: int) -> None:
    """Gram matrices are numpy's for every form of matrix product, with few positions and with many, of an input and of a value inside."""
    for inner in (text, text.replace("{ y", "{ x2 = Abs (x) y").replace("(x, w)", "(x2, w)").replace("(w, x)", "(w, x2)")):
        model = weighted(inner)
        generator = np.random.default_rng(2)
        samples: list[Arrays] = []
        for extra in range(3):
            shape = [d if isinstance(d, int) else length + extra for d in model.graph.inputs[0].shape or ()]
            samples.append({"x": generator.normal(size=shape).astype(np.float32)})
        assert_gram(model, samples, collect(model, samples, Request(layers=all_layers(model))))


def test_merge_equals_whole() -> None:
    """Statistics of two shards merge into those of all samples: counts, extremes and histograms exactly, sums to rounding."""
    model, samples = network(), feeds(7)
    request = Request(values=("x",), histograms=("a", "c", "y"), channels={"b": 1}, layers=all_layers(model))
    whole = collect(model, samples, request)
    merged = collect(model, samples[:2], request).merge(collect(model, samples[2:], request))
    assert_same(merged, whole)


def assert_same(found: Statistics, expected: Statistics) -> None:
    """Asserts that two statistics agree: counts, extremes and histograms exactly, sums to rounding."""
    assert found.samples == expected.samples
    assert found.states == expected.states
    assert list(found.values) == list(expected.values)
    assert list(found.layers) == list(expected.layers)
    for name, value in expected.values.items():
        other = found.values[name]
        assert (other.count, other.minimum, other.maximum) == (value.count, value.minimum, value.maximum)
        assert other.total == pytest.approx(value.total, rel=1e-9, abs=1e-6)
        assert (other.histogram is None) == (value.histogram is None)
        if value.histogram is not None and other.histogram is not None:
            assert (other.histogram.exponent, other.histogram.outside) == (value.histogram.exponent, value.histogram.outside)
            np.testing.assert_array_equal(other.histogram.counts, value.histogram.counts)
        if value.channels is not None:
            assert other.channels is not None
            np.testing.assert_array_equal(other.channels.minimum, value.channels.minimum)
            np.testing.assert_array_equal(other.channels.maximum, value.channels.maximum)
    for name, layer in expected.layers.items():
        assert found.layers[name].n == layer.n
        np.testing.assert_allclose(found.layers[name].gram, layer.gram, rtol=0, atol=1e-6 * np.abs(layer.gram).max())
        np.testing.assert_allclose(found.layers[name].total, layer.total, rtol=0, atol=1e-6 * np.abs(layer.total).max())


def test_merge_refuses_other_states() -> None:
    """Statistics of different values, or of different weights upstream, do not merge."""
    model, samples = network(), feeds(2)
    one = collect(model, samples, Request(values=("a",)))
    with pytest.raises(StatisticsError, match="do not merge"):
        one.merge(collect(model, samples, Request(values=("b",))))
    model.graph.initializers["w1"].const_value = ir.tensor(np.ones((8, 4, 3, 3), np.float32), name="w1")
    with pytest.raises(StatisticsError, match="value:a"):
        one.merge(collect(model, samples, Request(values=("a",))))


def test_save_and_load(tmp_path: Path) -> None:
    """What is saved comes back as it was, in the same bytes each time, and layers that share statistics still do."""
    model, samples = network(), feeds(3)
    request = Request(values=("x",), histograms=("a",), channels={"b": 1}, layers=all_layers(model))
    found = collect(model, samples, request)
    found.save(tmp_path / "a.npz")
    found.save(tmp_path / "b.npz")
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    loaded = Statistics.load(tmp_path / "a.npz")
    assert_same(loaded, found)
    assert loaded.skipped == found.skipped
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npz", "b.npz"]


@pytest.mark.parametrize("content", [b"", b"no zip", None])
def test_load_refuses_other_files(tmp_path: Path, content: bytes | None) -> None:
    """A file that holds no statistics, or is not there, is refused in one line."""
    path = tmp_path / "stats.npz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(StatisticsError, match=r"stats\.npz"):
        Statistics.load(path)
    np.savez(path, x=np.ones(3))
    with pytest.raises(StatisticsError, match="graphopt calibrate"):
        Statistics.load(path)


@pytest.mark.parametrize("memory", [1, 20_000, 1_000_000])
def test_budget_changes_nothing(memory: int) -> None:
    """Segments and several passes under a small memory budget give what one pass gives."""
    model, samples = network(), feeds(4)
    names = quantizable(model)
    request = Request(histograms=names, channels={"b": 1}, layers=all_layers(model))
    assert_same(collect(model, samples, request, memory=memory), collect(model, samples, request))


def test_stale_statistics_are_told() -> None:
    """A change upstream makes statistics stale; a change downstream, of the layer's own weight or of names does not."""
    model, samples = network(), feeds(2)
    layer = next(layer for layer in layers_of(model) if layer.input.name == "b")
    found = collect(model, samples, Request(values=("a", "y"), layers=(layer.name,)))
    assert found.stale(model) == found.stale(model.clone()) == []
    model.graph.initializers["w2"].const_value = ir.tensor(np.ones((8, 1, 3, 3), np.float32), name="w2")
    assert found.stale(model) == ["value:y"]
    assert list(found.fresh(model).values) == ["a"]
    assert list(found.fresh(model).layers) == [layer.name]
    model.graph.initializers["w1"].const_value = ir.tensor(np.ones((8, 4, 3, 3), np.float32), name="w1")
    assert len(found.stale(model)) == 3


def test_what_is_no_float_is_skipped() -> None:
    """Integers, booleans and constants are skipped with the reason; a name that is nowhere is an error."""
    model, samples = network(), feeds(2)
    found = collect(model, samples, Request(values=("ids", "same", "other", "w1", "a")))
    assert list(found.values) == ["a"]
    assert found.skipped == {
        "value:ids": "int64, not floating",
        "value:same": "int64, not floating",
        "value:other": "bool, not floating",
        "value:w1": "a constant",
    }
    with pytest.raises(StatisticsError, match="no value 'nowhere'"):
        collect(model, samples, Request(values=("nowhere",)))
    with pytest.raises(StatisticsError, match="no layer 'nowhere'"):
        collect(model, samples, Request(layers=("nowhere",)))
    with pytest.raises(StatisticsError, match="no samples"):
        collect(model, [], Request(values=("a",)))
    assert "ids" not in quantizable(model)


def test_layers_in_subgraphs_are_skipped() -> None:
    """A layer inside a branch of an If is skipped with a note; values around it are taken, across a cut too."""
    text = """(float[N, 4] x, bool go) => (float[N, 4] y) <float[4, 4] w> {
        a = MatMul (x, w)
        b = If (go) <
            then_branch = yes () => (float[N, 4] p) { p = MatMul (a, w) },
            else_branch = no () => (float[N, 4] q) { q = Neg (a) }
        >
        y = Relu (b)
    }"""
    model = weighted(text)
    samples = [{"x": np.full((3, 4), scale, np.float32), "go": np.array(True)} for scale in (1.0, 2.0)]
    inner = [layer.name for layer in layers_of(model) if layer.graph is not model.graph]
    for memory in (None, 1):
        found = collect(model, samples, Request(histograms=("a", "y"), layers=all_layers(model)), memory=memory)
        assert found.skipped == {f"layer:{inner[0]}": "inside a subgraph"}
        assert found.values["y"].maximum == pytest.approx(max(array.max() for array in fetched(model, samples, "y")), rel=1e-5)


def test_layers_and_values_share() -> None:
    """Layers that read one input share one Gram matrix, and values with the same elements one histogram."""
    text = """(float[N, 4] x) => (float[N, 3] q, float[N, 3] k, float[4, N] t) <float[4, 3] w1, float[4, 3] w2> {
        a = Relu (x)
        q = MatMul (a, w1)
        k = MatMul (a, w2)
        t = Transpose (a)
    }"""
    model = weighted(text)
    found = collect(model, [{"x": np.eye(4, dtype=np.float32)}], Request(histograms=("a", "t"), layers=all_layers(model)))
    first, second = found.layers.values()
    assert first is second
    assert found.values["a"] is found.values["t"]


def test_cross_products_with_an_original() -> None:
    """Run beside its original, a changed model yields C = X_original X^T, also where the layer has lost input channels."""
    original, model, samples = network(), network(), feeds(3)
    model.graph.initializers["w1"].const_value = ir.tensor(np.full((8, 4, 3, 3), 0.1, np.float32), name="w1")
    for memory in (None, 1):
        found = collect(model, samples, Request(layers=all_layers(model)), memory=memory, original=original)
        assert_gram(model, samples, found)
        for layer in layers_of(model):
            name = layer.input.name or ""
            pairs = zip(fetched(original, samples, name), fetched(model, samples, name), strict=True)
            cross = sum(unfold(layer, a) @ unfold(layer, b).swapaxes(-1, -2) for a, b in pairs)
            stored = found.layers[layer.name].cross
            assert stored is not None
            np.testing.assert_allclose(stored, cross, rtol=0, atol=1e-4 * np.abs(cross).max())


CONVOLUTION = (
    "(float[N, 4, H, W] x) => (float[N, 6, P, Q] y) <float[6, 4, 3, 3] w> { y = Conv <pads = [1, 1, 1, 1], strides = [1, 2]> (x, w) }"
)


def test_some_positions_tell_what_all_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a layer with many positions some are taken, of every sample; their moments belong together and come close to those of all."""
    model, original = weighted(CONVOLUTION), weighted(CONVOLUTION)
    generator = np.random.default_rng(5)
    samples = [{"x": 1 + generator.normal(size=(2, 4, 40, 40)).astype(np.float32)} for _ in range(8)]
    [name] = all_layers(model)
    request = Request(layers=(name,))
    whole = collect(model, samples, request).layers[name]
    assert whole.n == 8 * 2 * 40 * 20
    monkeypatch.setattr(positions, "LEAST", 2000)
    monkeypatch.setattr(positions, "TIMES", 1)
    some = collect(model, samples, request, original=original).layers[name]
    assert some.n == 2000
    np.testing.assert_allclose(some.mean, whole.mean, atol=0.1)
    np.testing.assert_allclose(some.gram / some.n, whole.gram / whole.n, atol=0.3)
    assert some.cross is not None
    np.testing.assert_allclose(some.cross, some.gram, rtol=1e-5)
    again = collect(model, samples, request, memory=1).layers[name]
    np.testing.assert_array_equal(again.gram, some.gram)


@given(st.integers(0, 5000), st.integers(1, 300), st.integers(1, 70))
def test_positions_are_spread(count: int, rows: int, samples: int) -> None:
    """Positions of a sample rise, are no more than its share, and one lies in each stretch of it; pieces give them all."""
    drawn = positions.Positions(samples)
    drawn.begin(3)
    found = drawn.drawn(count, rows)
    assert found.size == min(count, drawn.most(rows))
    assert not found.size or (found[0] >= 0 and found[-1] < count and (np.diff(found) > 0).all())
    np.testing.assert_array_equal(np.concatenate([np.zeros(0, np.int64), *drawn.pieces(count, rows)]), found)


@given(st.lists(st.lists(st.integers(-(10**7), 10**7), min_size=1, max_size=40), min_size=1, max_size=6))
def test_histograms_do_not_depend_on_order(parts: list[list[int]]) -> None:
    """However values are shared out and merged, the histogram is that of all of them, and every value is in its bin."""
    arrays = [(np.array(part) / 997).astype(np.float32) for part in parts]
    apart = [Histogram() for _ in arrays]
    together = Histogram()
    for histogram, array in zip(apart, arrays, strict=True):
        histogram.add(array, float(np.abs(array).max()))
    for array in reversed(arrays):
        together.add(array, float(np.abs(array).max()))
    merged = apart[0]
    for histogram in apart[1:]:
        merged = merged.merge(histogram)
    assert merged.exponent == together.exponent
    np.testing.assert_array_equal(merged.counts, together.counts)
    counts, edges = together.bins()
    exact = np.floor(np.concatenate(arrays).astype(np.float64) / together.width)
    np.testing.assert_array_equal(counts, [np.sum(exact == round(edge / together.width)) for edge in edges[:-1]])


def test_odd_numbers_do_not_blur() -> None:
    """NaN, infinities and the huge numbers of masks stay out of the histogram, and empty samples count nothing."""
    value = ValueStatistics(histogram=Histogram())
    value.add(np.array([1.0, np.nan, -np.inf, -3e38, 2.0], np.float32))
    value.add(np.zeros((0, 3), np.float32), axis=1)
    assert value.histogram is not None
    assert (value.count, value.maximum, value.minimum) == (5, 2.0, -np.inf)
    assert (value.histogram.total, value.histogram.outside) == (2, 3)
    assert value.channels is None


def test_empty_samples_count_nothing() -> None:
    """A sample with an axis of length zero adds nothing, inside the runtime and outside."""
    model = weighted("(float[N, 4] x) => (float[N, 3] y) <float[4, 3] w> { a = Relu (x) y = MatMul (a, w) }")
    samples = [{"x": np.ones((2, 4), np.float32)}, {"x": np.zeros((0, 4), np.float32)}]
    for request in (Request(values=("a",), channels={"a": 1}, layers=all_layers(model)), Request(histograms=("a",))):
        found = collect(model, samples, request)
        assert (found.values["a"].count, found.values["a"].maximum, found.values["a"].minimum) == (8, 1.0, 1.0)


def test_context_collects_on_demand() -> None:
    """A guided pass gets statistics of the model as it is now; what has not changed upstream is not taken again."""
    model, samples = network(), feeds(2)
    context = Context(Samples.open(samples, signature_of(model)), "cpu")
    request = Request(histograms=("a", "y"), layers=all_layers(model))
    first = context.statistics(model, request)
    model.graph.initializers["w2"].const_value = ir.tensor(np.ones((8, 1, 3, 3), np.float32), name="w2")
    second = context.statistics(model, request)
    assert second.values["a"] is first.values["a"]
    assert second.values["y"].total != first.values["y"].total
    assert_same(second, collect(model, samples, request))
    with pytest.raises(SamplesError, match="made-up"):
        Context(Samples.synthetic(model), "cpu").statistics(model, request)


def test_command(digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The command writes statistics that fit the model as it is loaded from the file, and says what it did."""
    output = tmp_path / "stats.npz"
    arguments = ["calibrate", str(digits / "conv.onnx"), "--data", str(digits / "calib.npz"), "-o", str(output), "--limit", "9"]
    assert main([*arguments, "--json", "--memory", "64MB"]) == 0
    told = json.loads(capsys.readouterr().out)
    found = Statistics.load(output)
    assert told["samples"] == found.samples == 9
    assert told["layers"] == len(found.layers) > 0
    assert told["values"] == len(found.values) > 0
    assert main([*arguments, "--quiet"]) == 0
    assert main([*arguments, "--memory", "some"]) == 1
    assert "some" in capsys.readouterr().err


@pytest.mark.slow
def test_memory_is_flat() -> None:
    """Eight times as many samples need no more memory."""
    program = """
import resource, sys
import numpy as np
from tests.test_statistics import all_layers, network
from graphopt.runtime.statistics import Request, collect, quantizable
class Feeds:
    def __len__(self): return int(sys.argv[1])
    def __iter__(self):
        for index in range(len(self)):
            side = 64 + 4 * (index % 16)
            x = np.full((4, 4, side, side), index, np.float32)
            yield {"x": x, "ids": np.arange(4), "flags": np.ones(4, bool)}
model = network()
collect(model, Feeds(), Request(histograms=quantizable(model), layers=all_layers(model)), memory=32 * 2**20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
    root = Path(__file__).resolve().parent.parent
    peaks = [
        int(subprocess.run([sys.executable, "-c", program, count], check=True, capture_output=True, text=True, cwd=root).stdout)
        for count in ("32", "256")
    ]
    assert peaks[1] < peaks[0] * 1.1

"""Tests of ranges, means and Gram matrices from samples, against numpy on fetched activations."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from graphopt.errors import StatisticsError
from graphopt.graph.layers import layers_of
from graphopt.graph.unfold import unfold
from graphopt.runtime.statistics import Request, collect, quantizable
from tests.measured import Arrays, all_layers, assert_gram, assert_same, feeds, fetched, network, with_weights


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
        model = with_weights(inner)
        generator = np.random.default_rng(2)
        samples: list[Arrays] = []
        for extra in range(3):
            shape = [d if isinstance(d, int) else length + extra for d in model.graph.inputs[0].shape or ()]
            samples.append({"x": generator.normal(size=shape).astype(np.float32)})
        assert_gram(model, samples, collect(model, samples, Request(layers=all_layers(model))))


@pytest.mark.parametrize("memory", [1, 20_000, 1_000_000])
def test_budget_changes_nothing(memory: int) -> None:
    """Segments and several passes under a small memory budget give what one pass gives."""
    model, samples = network(), feeds(4)
    names = quantizable(model)
    request = Request(histograms=names, channels={"b": 1}, layers=all_layers(model))
    assert_same(collect(model, samples, request, memory=memory), collect(model, samples, request))


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
    model = with_weights(text)
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
    model = with_weights(text)
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


def test_empty_samples_count_nothing() -> None:
    """A sample with an axis of length zero adds nothing, inside the runtime and outside."""
    model = with_weights("(float[N, 4] x) => (float[N, 3] y) <float[4, 3] w> { a = Relu (x) y = MatMul (a, w) }")
    samples = [{"x": np.ones((2, 4), np.float32)}, {"x": np.zeros((0, 4), np.float32)}]
    for request in (Request(values=("a",), channels={"a": 1}, layers=all_layers(model)), Request(histograms=("a",))):
        found = collect(model, samples, request)
        assert (found.values["a"].count, found.values["a"].maximum, found.values["a"].minimum) == (8, 1.0, 1.0)

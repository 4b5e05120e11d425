"""Tests of statistics that are kept: merged, saved, and told apart from those of another model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from graphopt.errors import SamplesError, StatisticsError
from graphopt.graph.layers import layers_of
from graphopt.graph.signature import signature_of
from graphopt.passes.base import Context
from graphopt.runtime.statistics import Request, Statistics, collect
from graphopt.samples import Samples
from tests.measured import all_layers, assert_same, feeds, network


def test_merge_equals_whole() -> None:
    """Statistics of two shards merge into those of all samples: counts, extremes and histograms exactly, sums to rounding."""
    model, samples = network(), feeds(7)
    request = Request(values=("x",), histograms=("a", "c", "y"), channels={"b": 1}, layers=all_layers(model))
    whole = collect(model, samples, request)
    merged = collect(model, samples[:2], request).merge(collect(model, samples[2:], request))
    assert_same(merged, whole)


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

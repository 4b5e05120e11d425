"""Lines: in segments a model computes what it computes as a whole, with one layer changed too; and what is refitted comes closer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from graphopt import files
from graphopt.errors import LimitError
from graphopt.graph.edits import Names, name_nodes
from graphopt.graph.layers import layers_of
from graphopt.graph.unfold import unfold
from graphopt.graph.view import View
from graphopt.ledger import Recorder, recording
from graphopt.passes.latency import most_work
from graphopt.passes.prune.depth import branches_of
from graphopt.passes.walk.line import Line
from graphopt.passes.walk.outputs import as_matrix, output_of
from graphopt.runtime.session import SessionOptions, open_session
from graphopt.runtime.shelf import Shelf
from graphopt.runtime.statistics.chain import prepared
from tests.weighted import weighted

Array = np.ndarray[Any, Any]
DIGITS = Path(__file__).parent.parent / "examples/digits"
OPTIONS = SessionOptions(threads=1)


def _loaded(name: str) -> ir.Model:
    model = files.load(DIGITS / f"{name}.onnx")
    name_nodes(model)
    return prepared(model)


def _feed(model: ir.Model) -> dict[str, Array]:
    data = np.load(DIGITS / "calib.npz")
    return {value.name or "": data[value.name or ""][:3] for value in model.graph.inputs}


@pytest.mark.parametrize("name", ["conv", "attention", "conv_torchscript"])
def test_segments_compute_what_the_whole_does(name: str) -> None:
    """Each layer in a segment of its own, one of them with another weight."""
    model = _loaded(name)
    feed = _feed(model)
    layers = list(layers_of(model))
    line = Line(model, [layer.name for layer in layers], OPTIONS)
    expected = open_session(model, "all", OPTIONS).run(feed)
    for output, array in line.run(feed, 0, len(line)).items():
        np.testing.assert_allclose(array, expected[output], rtol=1e-4, atol=1e-5)
    second = layers[1]
    step = line.steps[second.name]
    before = line.run(feed, 0, step)
    session = line.with_weight(second.name, 0.5 * second.weight(), before)
    halved = line.run(line.run(before, step, step + 1, {step: session}), step + 1, len(line))
    second.assign(0.5 * second.weight(), Names(model))
    expected = open_session(model, "all", OPTIONS).run(feed)
    for output, array in halved.items():
        np.testing.assert_allclose(array, expected[output], rtol=1e-4, atol=1e-5)


def test_sizes_wait_between_segments() -> None:
    """A vector of them crosses as one of known length, which is all that the runtime takes; the picture may have any."""
    model = prepared(
        weighted(
            "(float[B,3,H,W] x) => (float[b,c,h,w] y) <int64[1] zero = {0}, int64[1] two = {2}, int64[1] four = {4}> {"
            "a = Conv<strides = [2, 2]>(x, first) t = Shape(a) outer = Slice(t, zero, two) s = Shape(x) inner = Slice(s, two, four)"
            'sizes = Concat<axis = 0>(outer, inner) b = Conv(a, second) u = Relu(b) y = Resize<mode = "nearest">(u, , , sizes) }',
            {"first": (4, 3, 3, 3), "second": (4, 4, 1, 1)},
        )
    )
    line = Line(model, [node.name or "" for node in model.graph if node.op_type in ("Conv", "Relu", "Concat")], OPTIONS)
    for side in (8, 11):
        feed = {"x": np.random.default_rng(side).normal(size=(2, 3, side, side)).astype(np.float32)}
        expected = open_session(model, "all", OPTIONS).run(feed)["y"]
        np.testing.assert_allclose(line.run(feed, 0, len(line))["y"], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["conv", "attention"])
def test_outputs_stand_as_the_weight_makes_them(name: str) -> None:
    """What a layer puts out, as a matrix, is its weight times its unfolded input plus its own bias."""
    model = _loaded(name)
    feed, view = _feed(model), View(model)
    layers = list(layers_of(model))
    line = Line(model, [layer.name for layer in layers], OPTIONS)
    for layer in layers:
        step = line.steps[layer.name]
        before = line.run(feed, 0, step)
        after = line.run(before, step, step + 1)[layer.node.outputs[0].name or ""]
        found = output_of(layer, view)
        assert found is not None
        made = layer.scale * layer.weight() @ unfold(layer, before[layer.input.name or ""]) + found.bias(layer)[..., None]
        np.testing.assert_allclose(as_matrix(layer, after, None), made, rtol=1e-3, atol=1e-4)
        if found.shift is not None:
            rows = np.arange(layer.groups * layer.shape[1]).reshape(layer.groups, -1)
            end = open_session(model, "all", OPTIONS).run(feed)
            found.move(layer, rows.astype(float), Names(model))
            found.move(layer, -rows.astype(float), Names(model))
            for output, array in open_session(model, "all", OPTIONS).run(feed).items():
                np.testing.assert_allclose(array, end[output], rtol=1e-3, atol=1e-3)


def test_shelves_hold_more_than_memory_does(tmp_path: Path) -> None:
    """What is too much waits in files, which go with what they hold."""
    shelf = Shelf([{"x": np.arange(4.0)}, {"x": np.arange(4.0) + 1}], tmp_path / "shelf", memory=32)
    shelf[1] = shelf[1] | {"y": np.ones(2)}
    assert [path.name for path in sorted((tmp_path / "shelf").iterdir())] == ["1.npy", "2.npy"]
    np.testing.assert_array_equal(shelf[1]["x"], np.arange(4.0) + 1)
    shelf[1] = {"y": shelf[1]["y"]}
    assert [path.name for path in (tmp_path / "shelf").iterdir()] == ["2.npy"]


def test_most_work_for_a_share_of_the_time() -> None:
    """The largest share that fits, which a replay chooses without timing; one that is impossible names the nearest."""
    with recording(Recorder()) as recorder:
        found = most_work("prune", 0.6, lambda share: share + 0.07, measures=True)
    assert found == 0.5
    with recording(Recorder(denied=frozenset(drop.key for drop in recorder.declined))):
        assert most_work("prune", 0.6, lambda share: None, measures=False) == found
    with pytest.raises(LimitError, match="40% of the work takes 100% of the time"):
        most_work("prune", 0.6, lambda share: None if share < 0.4 else 1.0, measures=True)


def test_branches_are_those_of_residual_streams() -> None:
    """Attention and feed-forward of the transformer, and no sum of two streams."""
    model = _loaded("attention")
    found = list(branches_of(model))
    assert found
    for branch in found:
        assert branch.end.op_type in ("Add", "Sum")
        assert branch.stream is branch.end.inputs[branch.slot]

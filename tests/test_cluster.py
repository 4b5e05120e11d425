"""Clustered weights: folded when the model is loaded, small, and chosen so that the outputs stay."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

import graphopt
from graphopt import container, files, ledger
from graphopt.errors import LimitError, RecipeError
from graphopt.graph.edits import Builder, Names, name_nodes
from graphopt.graph.layers import layers_of
from graphopt.graph.signature import signature_of
from graphopt.graph.structure import verify_structure
from graphopt.passes.base import Context
from graphopt.passes.cluster import Cluster
from graphopt.passes.prune.sparsity import Sparsify
from graphopt.passes.quantize.replacing import take_place_of_constant
from graphopt.presets import preset
from graphopt.recipe import Recipe
from graphopt.runtime.fidelity import measure, merge
from graphopt.runtime.kernels import executed_kernels
from graphopt.runtime.session import SessionOptions, open_session
from graphopt.samples import Samples
from graphopt.stage import Stage
from graphopt.targets.emit import Shared, codes_per_byte, stored_codebook
from tests.helpers import operators, parse, random_feeds
from tests.test_storage import CASES
from tests.weighted import weighted

Array = np.ndarray[Any, Any]

DIGITS = Path(__file__).parent.parent / "examples/digits"


def run(model: ir.Model, chosen: Cluster, samples: Samples | None = None, denied: frozenset[ledger.Key] = frozenset()) -> ledger.Recorder:
    """Runs the pass and tells what it recorded."""
    samples = samples or Samples.synthetic(model)
    with ledger.recording(ledger.Recorder(denied)) as recorder:
        chosen.run(model, Context(samples, "cpu", options=SessionOptions(threads=1), original=model.clone()))
    verify_structure(model)
    return recorder


class TestEmission:
    """The form that codes take in a file."""

    @pytest.mark.parametrize("opset", [9, 18])
    @pytest.mark.parametrize("centroids", [1, 2, 3, 4, 6, 16, 17, 256])
    def test_every_code_comes_back(self, centroids: int, opset: int) -> None:
        """Whatever the number of centroids, and whether codes fill their bytes: the runtime makes the very weights."""
        model = parse("(float[1,6,5,5] x) => (float[1,4,3,3] y) { y = Conv(x, w) }".replace("(float", "(float[4,6,3,3] w, float", 1), opset)
        weight = model.graph.inputs.pop(0)
        codes = np.random.default_rng(0).integers(0, centroids, (4, 6, 3, 3)).astype(np.uint8)
        book = np.linspace(-1, 1, centroids, dtype=np.float32)
        scale = np.arange(1, 5, dtype=np.float32).reshape(4, 1, 1, 1)
        weight.const_value = ir.tensor(book[codes] * scale, name="w")
        model.graph.register_initializer(weight)
        name_nodes(model)
        before, names = model.clone(), Names(model)
        count = codes_per_byte(max(centroids, 2), codes.size)
        made = stored_codebook(Builder(model.graph[0], names), codes, book, scale, Shared(model, names), count, "w")
        take_place_of_constant(weight, made)
        assert executed_kernels(model).counts == executed_kernels(before).counts
        feeds = random_feeds(before)
        np.testing.assert_array_equal(open_session(model).run(feeds)["y"], open_session(before).run(feeds)["y"])

    def test_codes_of_a_byte(self) -> None:
        """As many as 256 numbers tell apart and as fill all bytes."""
        assert [codes_per_byte(base, 5040) for base in (2, 3, 4, 6, 16, 17, 256)] == [8, 5, 4, 3, 2, 1, 1]
        assert [codes_per_byte(4, size) for size in (9, 10, 12, 7)] == [3, 2, 4, 1]

    def test_what_is_shared_is_stored_once(self) -> None:
        """Two weights of one shape have one table of digits and one shape between them."""
        model = weighted("(float[3,64] x) => (float[3,64] y) { a = MatMul(x, v) y = MatMul(a, w) }", {"v": (64, 64), "w": (64, 64)})
        run(model, Cluster(centroids=16))
        assert sum(name.startswith(("digits", "shape")) for name in model.graph.initializers) == 2


@pytest.mark.parametrize("case", CASES)
def test_clustered_weights_are_folded(case: str) -> None:
    """Weights of every kind of operator run in the same float kernels as before, on what the codes stand for."""
    text, weights = CASES[case]
    before, after = weighted(text, weights), weighted(text, weights)
    assert len(run(after, Cluster(centroids=16, min_size=150)).rewrites) == 1
    assert executed_kernels(after).counts == executed_kernels(before).counts
    feeds = random_feeds(before)
    expected = open_session(after, "none").run(feeds)
    for name, found in open_session(after, "all").run(feeds).items():
        np.testing.assert_allclose(found, expected[name], atol=1e-3)


def test_tables_are_clustered_by_rows() -> None:
    """A table becomes codes too, a row of zeros included; where rows are short, their scales would eat the gain."""
    text = "(int64[3] x) => (float[3,64] y) { y = Gather(w, x) }"
    before, after = weighted(text, {"w": (40, 64)}), weighted(text, {"w": (40, 64)})
    for model in (before, after):
        table = model.graph.initializers["w"]
        assert table.const_value is not None
        rows = np.append(0.0, np.logspace(0, -4, 39))[:, None]
        table.const_value = ir.tensor((table.const_value.numpy() * rows).astype(np.float32), name="w")
    run(after, Cluster(centroids=64))
    feeds = {"x": np.array([39, 38, 0])}
    expected, found = (open_session(model).run(feeds)["y"] for model in (before, after))
    assert (np.square(found - expected).sum(axis=1) <= 0.01 * np.square(expected).sum(axis=1)).all()
    narrow = weighted("(int64[3] x) => (float[3,2] y) { y = Gather(w, x) }", {"w": (300, 2)})
    assert list(run(narrow, Cluster(centroids=64)).misses.values()) == ["its centroids and scales take more than its codes save"]


@pytest.fixture(scope="module", name="trained")
def _trained() -> tuple[ir.Model, Samples, Samples]:
    """A trained model after the exact passes, samples to calibrate on, and others to judge by."""
    model = files.load(DIGITS / "conv.onnx")
    name_nodes(model)
    model = Stage(tuple(preset("exact").build())).attempt(model, frozenset()).model
    feeds = list(Samples.open(DIGITS / "calib.npz", signature_of(model), 128))
    cut = len(feeds) * 3 // 4
    return model, Samples(lambda: iter(feeds[:cut]), cut, "some"), Samples(lambda: iter(feeds[cut:]), len(feeds) - cut, "others")


def closeness(before: ir.Model, after: ir.Model, samples: Samples) -> float:
    """The signal-to-noise ratio of the worst output over all samples, in dB."""
    sessions = [open_session(model) for model in (before, after)]
    found = merge(measure(*(session.run(feed) for session in sessions)) for feed in samples)
    return min(one.sqnr_db for one in found.values())


def test_samples_guide_the_codes(trained: tuple[ir.Model, Samples, Samples]) -> None:
    """On samples that were kept out the outputs are far closer than with the nearest centroids."""
    model, seen, unseen = trained
    guided, plain = model.clone(), model.clone()
    run(guided, Cluster(centroids=4), seen)
    run(plain, Cluster(centroids=4))
    assert closeness(model, guided, unseen) > closeness(model, plain, unseen) + 6


@pytest.mark.slow
@pytest.mark.parametrize(("name", "centroids", "agreement"), [("cifar_resnet56_ft", 4, 0.94), ("mobilenetv1_025", 64, 0.9)])
def test_trained_models_keep_their_answers(zoo: Path, tmp_path: Path, name: str, centroids: int, agreement: float) -> None:
    """Where k-means by itself leaves nothing of them."""
    tool = evaluation(zoo)
    model = files.load(zoo / name / "model.onnx")
    name_nodes(model)
    feeds = list(tool.calib_feeds(name, 8, 512))
    run(model, Cluster(centroids=centroids), Samples(lambda: iter(feeds), len(feeds), "some"))
    files.save(model, tmp_path / "out.onnx")
    assert tool.evaluate(name, str(tmp_path / "out.onnx"))["top1_agreement_fp32"] >= agreement


def evaluation(zoo: Path) -> ModuleType:
    """The trained models' own ``evaluate.py``, which knows what to feed them with."""
    specification = importlib.util.spec_from_file_location("zoo_evaluate", zoo / "evaluate.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module  # its dataclasses look themselves up there
    specification.loader.exec_module(module)
    return module


def test_zeros_stay(trained: tuple[ir.Model, Samples, Samples]) -> None:
    """What sparsity has set to zero is zero in the weights that the runtime makes."""
    model, seen, _ = trained
    sparse = model.clone()
    Sparsify(share=0.6).run(sparse, Context(seen, "cpu", options=SessionOptions(threads=1), original=model))
    zeros = {layer.name: layer.weight() == 0 for layer in layers_of(sparse)}
    run(sparse, Cluster(centroids=8), seen)
    made = {node.name: node.inputs[1] for node in sparse.graph if node.name in zeros}
    clustered = {name: value for name, value in made.items() if value is not None and not value.is_initializer()}
    assert len(clustered) >= 3
    sparse.graph.outputs.extend(clustered.values())
    found = open_session(sparse, "none").run(next(iter(seen)))
    weights = {layer.name: layer for layer in layers_of(model)}
    for name, value in clustered.items():
        assert not weights[name].as_matrix(found[value.name or ""])[zeros[name]].any()


def test_as_many_centroids_as_it_takes(trained: tuple[ir.Model, Samples, Samples]) -> None:
    """A weight whose few centroids are denied gets 256; one that is denied itself stays in float."""
    model = trained[0].clone()
    names = [layer.name for layer in layers_of(model) if layer.size >= Cluster().min_size]
    denied = frozenset({ledger.Key("cluster", "few", names[0]), ledger.Key("cluster", "", names[1])})
    recorder = run(model, Cluster(), denied=denied)
    reasons = {rewrite.key.anchor: rewrite.reason for rewrite in recorder.rewrites}
    assert reasons == {name: "256 centroids" if name == names[0] else "16 centroids" for name in names if name != names[1]}


def test_fewer_bits_in_a_packed_file(trained: tuple[ir.Model, Samples, Samples]) -> None:
    """Codes chosen for their entropy take fewer bits than those of a codebook as close."""
    model, seen, unseen = trained
    rated, plain = model.clone(), model.clone()
    run(rated, Cluster(bits=2.5), seen)
    run(plain, Cluster(centroids=6), seen)
    assert closeness(model, rated, unseen) > closeness(model, plain, unseen)


@pytest.mark.parametrize("ratio", [8.0, 12.0])
def test_a_packed_model_of_a_given_size(trained: tuple[ir.Model, Samples, Samples], ratio: float, tmp_path: Path) -> None:
    """As many bits as there is room for, and no more."""
    model, seen, _ = trained
    small = model.clone()
    recorder = run(small, Cluster(ratio=ratio), seen)
    sizes = []
    for each in (model, small):
        files.save(each, tmp_path / "model.onnx")
        sizes.append(container.pack(tmp_path / "model.onnx").packed_bytes if each is small else (tmp_path / "model.onnx").stat().st_size)
    assert ratio <= sizes[0] / sizes[1] < 1.1 * ratio
    assert any("bits a weight" in note for note in recorder.notes)


def test_what_cannot_be_asked_for(trained: tuple[ir.Model, Samples, Samples]) -> None:
    """Two wishes at once, a model that would grow, and one that is smaller than its graph."""
    with pytest.raises(RecipeError, match="one of"):
        Cluster(bits=2.0, ratio=10.0)
    with pytest.raises(RecipeError, match="above 1"):
        Cluster(ratio=1.0)
    with pytest.raises(LimitError, match="is the nearest"):
        run(trained[0].clone(), Cluster(ratio=500.0), trained[1])


def test_sessions_that_do_not_fold() -> None:
    """A session may be told not to fold large constants; they would be made at each run, so they stay."""
    model = weighted("(float[3,64] x) => (float[3,16] y) { a = MatMul(x, v) y = MatMul(a, w) }", {"v": (64, 64), "w": (64, 16)})
    options = SessionOptions(config={"optimization.constant_folding_max_output_size_in_bytes": "4096"})
    with ledger.recording(ledger.Recorder()) as recorder:
        Cluster().run(model, Context(Samples.synthetic(model), "cpu", options=options))
    assert operators(model).count("MatMul") == 2
    assert len(recorder.rewrites) == 1
    assert list(recorder.misses.values()) == ["the session's configuration keeps the runtime from folding it"]


def test_a_replay_gives_the_same_bytes(tmp_path: Path) -> None:
    """The preset makes a smaller file, and its resolved recipe the same one."""
    recipe = preset("cluster", min_sqnr=10.0).changed(verify="outputs")
    result = graphopt.optimize(DIGITS / "conv.onnx", tmp_path / "out.onnx", recipe=recipe, data=DIGITS / "calib.npz")
    assert result.figures.bytes_after < 0.25 * result.figures.bytes_before
    (tmp_path / "again").mkdir()
    replayed = Recipe.load(tmp_path / "out.onnx.recipe.yaml")
    graphopt.optimize(DIGITS / "conv.onnx", tmp_path / "again" / "out.onnx", recipe=replayed, data=DIGITS / "calib.npz")
    assert (tmp_path / "again" / "out.onnx").read_bytes() == (tmp_path / "out.onnx").read_bytes()


def test_options_that_mean_nothing() -> None:
    """One line says what there is."""
    with pytest.raises(RecipeError, match="2 to 256"):
        Cluster(centroids=300)
    with pytest.raises(RecipeError, match="more than 0"):
        Cluster(bits=0)

"""Sparsity and depth: what a user asks for is what the model gets, and what it costs is as the methods promise."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx_ir as ir
import pytest

from graphopt import files
from graphopt.errors import LimitError, RecipeError
from graphopt.graph.edits import name_nodes
from graphopt.graph.layers import layers_of
from graphopt.graph.signature import signature_of
from graphopt.graph.structure import verify_structure
from graphopt.ledger import Recorder, recording
from graphopt.passes.base import Context
from graphopt.passes.prune.depth import Depth, branches_of
from graphopt.passes.prune.sparsity import Sparsify
from graphopt.presets import preset
from graphopt.runtime.session import SessionOptions, open_session
from graphopt.runtime.statistics import Request, collect
from graphopt.samples import Samples
from graphopt.samples.samples import Feed
from graphopt.solve.metric import Metric
from graphopt.solve.sparsity import Method
from graphopt.stage import Stage

DIGITS = Path(__file__).parent.parent / "examples/digits"
ZOO = os.environ.get("GRAPHOPT_ZOO")
METHODS: tuple[Method, ...] = ("sparsegpt", "wanda", "magnitude")


def _given(path: Path, data: Path | list[Feed], count: int = 512) -> tuple[ir.Model, Context, Samples]:
    """A model after the exact passes, three quarters of some samples to calibrate on, the last quarter to judge by."""
    model = files.load(path)
    name_nodes(model)
    model = Stage(tuple(preset("exact").build())).attempt(model, frozenset()).model
    feeds = list(Samples.open(data, signature_of(model), count))
    cut = len(feeds) * 3 // 4
    known, held = Samples(lambda: iter(feeds[:cut]), cut, "some"), Samples(lambda: iter(feeds[cut:]), len(feeds) - cut, "others")
    return model, Context(known, "cpu", options=SessionOptions(threads=1), original=model.clone()), held


def _errors(path: Path, data: Path | list[Feed], pattern: str) -> dict[str, float]:
    """The mean relative error of layers in the metric of held-out samples, by method."""
    model, context, held = _given(path, data)
    names = [layer.name for layer in layers_of(model) if layer.shape[2] >= Sparsify().min_inputs]
    judged = collect(model, held, Request(layers=tuple(names)), context.options).layers
    before = {layer.name: layer.weight() for layer in layers_of(model)}
    found: dict[str, float] = {}
    for method in METHODS:
        variant = model.clone()
        assert Sparsify(pattern=pattern, method=method).run(variant, context)
        after = {layer.name: layer.weight() for layer in layers_of(variant)}
        found[method] = float(np.mean([Metric(judged[name].gram).relative(before[name], after[name]) for name in names]))
    return found


@pytest.mark.parametrize("pattern", ["any", "2:4"])
@pytest.mark.parametrize("name", ["conv", "attention"])
def test_rank_of_the_methods(name: str, pattern: str) -> None:
    """On samples that were kept out SparseGPT is far ahead; where all inputs are alike in size, the other two are."""
    errors = _errors(DIGITS / f"{name}.onnx", DIGITS / "calib.npz", pattern)
    assert errors["sparsegpt"] < 0.8 * min(errors["wanda"], errors["magnitude"])


@pytest.mark.slow
@pytest.mark.skipif(ZOO is None, reason="GRAPHOPT_ZOO is not set: it names the folder of trained models")
@pytest.mark.parametrize("pattern", ["any", "2:4"])
@pytest.mark.parametrize("name", ["cifar_resnet20_ft", "llama_shakespeare"])
def test_rank_of_the_methods_on_trained_models(name: str, pattern: str) -> None:
    """SparseGPT before Wanda before magnitude."""
    errors = _errors(Path(str(ZOO)) / name / "model.onnx", list(_zoo().calib_feeds(name, 8, 512)), pattern)
    assert errors["sparsegpt"] < errors["wanda"] < errors["magnitude"]


def _zoo() -> ModuleType:
    """The trained models' own ``evaluate.py``, which knows what to feed them with."""
    specification = importlib.util.spec_from_file_location("zoo_evaluate", Path(str(ZOO)) / "evaluate.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module  # its dataclasses look themselves up there
    specification.loader.exec_module(module)
    return module


def test_half_of_the_weights_are_zero_and_the_ledger_says_what_for() -> None:
    """In all layers that are large enough."""
    model, context, _ = _given(DIGITS / "conv.onnx", DIGITS / "calib.npz")
    with recording(Recorder()) as recorder:
        assert Sparsify().run(model, context)
    changed = {rewrite.key.anchor for rewrite in recorder.rewrites}
    for layer in layers_of(model):
        assert (np.mean(layer.weight() == 0) > 0.45) == (layer.name in changed)
    assert all("fewer bytes once packed, the same time" in rewrite.reason for rewrite in recorder.rewrites)


@pytest.mark.parametrize("options", [{"share": 1.0}, {"pattern": "4:4"}, {"pattern": "half"}])
def test_patterns_that_mean_nothing(options: dict[str, object]) -> None:
    """Refused in one line."""
    with pytest.raises(RecipeError, match="sparsify: "):
        Sparsify(**options)  # type: ignore[arg-type]  # the test's own options


def test_a_branch_goes_and_the_stream_stays() -> None:
    """The one that changes it least, with all that only it used."""
    model, context, _ = _given(DIGITS / "attention.onnx", DIGITS / "calib.npz")
    feed = next(iter(context.samples))
    count, size = len(list(branches_of(model))), sum(layer.size for layer in layers_of(model))
    expected = open_session(model, "all", context.options).run(feed)
    with recording(Recorder()) as recorder:
        assert Depth().run(model, context)
    verify_structure(model)
    assert len(list(branches_of(model))) == count - 1
    assert sum(layer.size for layer in layers_of(model)) < size
    assert recorder.rewrites[0].removed
    for name, array in open_session(model, "all", context.options).run(feed).items():
        assert array.shape == expected[name].shape


def test_more_branches_than_there_are() -> None:
    """Their number is named."""
    model, context, _ = _given(DIGITS / "attention.onnx", DIGITS / "calib.npz")
    count = len(list(branches_of(model)))
    with pytest.raises(LimitError, match=f"the model has {count} that can"):
        Depth(branches=count + 1).run(model, context)

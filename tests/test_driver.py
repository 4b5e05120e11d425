"""Tests of the driver: what it takes in, what it writes, what it verifies, and that a second run finds nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import graphopt
from graphopt import driver, files, ledger, proof
from graphopt.errors import GraphoptError, ModelFileError, SamplesError
from graphopt.ledger import METADATA_KEY, Key
from graphopt.passes import PASSES
from graphopt.passes.base import Context, GuidedPass
from graphopt.presets import preset
from graphopt.recipe import Recipe
from graphopt.runtime.session import open_session, runtime_limits
from graphopt.runtime.timing import compare_speed

EXACT = preset("exact").changed(verify="outputs")
DYNAMIC = """<ir_version: 8, opset_import: ["": 18]> g (float[batch,4] x) => (float[batch,4] y) <float[4] w = {1, 2, 3, 4}>
    { i = Identity(x) a = Add(i, w) n = Neg(a) y = Abs(n) }"""


@pytest.fixture
def model(digits: Path) -> Path:
    """A small real model: the attention classifier of the examples."""
    return digits / "attention.onnx"


@pytest.fixture
def dynamic(tmp_path: Path) -> Path:
    """A model with a symbolic dimension."""
    path = tmp_path / "dynamic.onnx"
    ir.save(ir.from_onnx_text(DYNAMIC), path)
    return path


def outputs(model: Path | ir.Model, feed: dict[str, Any]) -> dict[str, Any]:
    """A run without the runtime's optimizations."""
    return open_session(model, "none").run(feed)


# What is taken in.


@pytest.mark.parametrize("name", ["attention.onnx", "conv.onnx", "conv_torchscript.onnx"])
def test_real_models(digits: Path, tmp_path: Path, name: str) -> None:
    """The example models become smaller, keep their outputs on real images, and a second run finds nothing to do."""
    first = driver.optimize(digits / name, tmp_path / name, recipe=EXACT, data=digits / "eval.npz")
    assert first.changed
    assert not first.ledger.drops
    assert first.figures.bytes_after < first.figures.bytes_before
    assert first.figures.nodes_after <= first.figures.nodes_before
    assert not first.figures.synthetic
    second = driver.optimize(tmp_path / name, tmp_path / "again.onnx", recipe=EXACT, data=digits / "eval.npz")
    assert second.ledger.counts() == {}
    assert (tmp_path / "again.onnx").read_bytes() == (tmp_path / name).read_bytes()


@pytest.mark.parametrize("form", ["path", "text", "proto", "ir"])
def test_forms_of_input(model: Path, tmp_path: Path, form: str) -> None:
    """A path, its text, a ModelProto and an ir.Model give the same operators; what is in memory is not changed."""
    proto, in_memory = onnx.load(model), ir.load(model)
    source: Any = {"path": model, "text": str(model), "proto": proto, "ir": in_memory}[form]
    before = proto.SerializeToString(), str(in_memory)
    result = driver.optimize(source, tmp_path / "out.onnx", recipe=EXACT)
    assert (proto.SerializeToString(), str(in_memory)) == before
    expected = driver.optimize(model, recipe=EXACT)
    assert [node.op_type for node in result.model.graph] == [node.op_type for node in expected.model.graph]
    assert expected.path is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.onnx", "out.onnx.ledger.json", "out.onnx.recipe.yaml"]


def test_a_loaded_model_with_external_data(tmp_path: Path) -> None:
    """A model whose weights lie in a file can be handed over in memory; its file is only read."""
    weights = np.arange(1200, dtype=np.float32).reshape(2, 600)
    text = """<ir_version: 8, opset_import: ["": 18]> g (float[2,600] x) => (float[2,600] y) <float[2,600] w = {0}>
        { i = Identity(x) y = Add(i, w) }"""
    made = ir.from_onnx_text(text)
    made.graph.initializers["w"].const_value = ir.tensor(weights, name="w")
    source = tmp_path / "in" / "model.onnx"
    source.parent.mkdir()
    files.save(made, source, external_data=True)
    before = {path.name: path.read_bytes() for path in source.parent.iterdir()}
    for given in (graphopt.load(source), source):
        result = driver.optimize(given, tmp_path / "out.onnx", recipe=EXACT)
        assert result.ledger.counts() == {"simplify/drop-identity": 1}
        np.testing.assert_array_equal(outputs(tmp_path / "out.onnx", {"x": np.zeros((2, 600), np.float32)})["y"], weights)
    assert {path.name: path.read_bytes() for path in source.parent.iterdir()} == before


def test_memory_cannot_be_written_in_place(model: Path) -> None:
    """A model in memory has no place."""
    with pytest.raises(ModelFileError, match="name an output file"):
        driver.optimize(ir.load(model), in_place=True)


def test_folders(model: Path, tmp_path: Path) -> None:
    """A folder with a model gives a folder: the model under its name, and what lies beside it."""
    source = tmp_path / "source"
    (source / "nested").mkdir(parents=True)
    (source / "model.onnx").write_bytes(model.read_bytes())
    (source / "config.json").write_text("{}")
    (source / "nested" / "vocabulary.txt").write_text("a b c")
    result = driver.optimize(source, tmp_path / "target", recipe=EXACT)
    assert result.path == tmp_path / "target" / "model.onnx"
    found = sorted(path.relative_to(tmp_path / "target").as_posix() for path in (tmp_path / "target").rglob("*") if path.is_file())
    assert found == ["config.json", "model.onnx", "model.onnx.ledger.json", "model.onnx.recipe.yaml", "nested/vocabulary.txt"]
    again = driver.optimize(source / "model.onnx", tmp_path / "target", recipe=EXACT)
    assert again.path == tmp_path / "target" / "model.onnx"


def test_an_existing_output_is_replaced(model: Path, tmp_path: Path) -> None:
    """As compilers do; a ledger of an earlier run does not stay behind."""
    out = tmp_path / "out.onnx"
    driver.optimize(model, out, recipe=EXACT)
    before = out.read_bytes()
    driver.optimize(model, out, recipe=EXACT.changed(skip=["simplify"]), keep_ledger=False)
    assert out.read_bytes() != before
    assert not out.with_name("out.onnx.ledger.json").exists()


# What is written.


def test_the_written_files(model: Path, tmp_path: Path) -> None:
    """The model bears stamp and ledger without measurements or paths; beside it lie the whole ledger and the recipe."""
    out = tmp_path / "out.onnx"
    result = driver.optimize(model, out, recipe=EXACT.changed(verify="full", time_limit=0.1))
    written = ir.load(out)
    assert written.producer_name == "graphopt"
    embedded = ledger.unpack(written.metadata_props[METADATA_KEY])
    assert len(embedded["rewrites"]) == len(result.ledger.rewrites)
    content = out.read_bytes()
    assert str(tmp_path).encode() not in content
    assert str(model.parent).encode() not in content
    beside = json.loads(out.with_name("out.onnx.ledger.json").read_text())
    assert beside["version"] == 1
    assert beside["figures"]["speed"]["runs"] > 0
    assert len(beside["rewrites"]) == len(result.ledger.rewrites)
    assert Recipe.load(out.with_name("out.onnx.recipe.yaml")) == result.recipe
    assert result.figures.kernels_after is not None
    assert result.figures.kernels_before is not None
    assert result.figures.kernels_after <= result.figures.kernels_before


DETERMINED = """
import sys
from graphopt.driver import optimize
from graphopt.presets import preset
optimize(sys.argv[1], sys.argv[2], recipe=preset("exact").changed(verify="outputs"))
"""


def test_same_bytes_in_two_processes(model: Path, tmp_path: Path) -> None:
    """The bytes do not hang on the order of sets, nor on the time or the folder."""
    for seed in ("1", "2"):
        (tmp_path / seed).mkdir()
        command = [sys.executable, "-c", DETERMINED, str(model), str(tmp_path / seed / "out.onnx")]
        subprocess.run(command, check=True, env=os.environ | {"PYTHONHASHSEED": seed})
    one, other = ((tmp_path / seed / "out.onnx").read_bytes() for seed in ("1", "2"))
    assert one == other


# What is verified.


@pytest.mark.parametrize(("verify", "ran", "timed"), [("structure", False, False), ("outputs", True, False), ("full", True, True)], ids=str)
def test_levels_of_verification(dynamic: Path, monkeypatch: pytest.MonkeyPatch, verify: str, ran: bool, timed: bool) -> None:
    """Structure runs nothing, outputs times nothing, full does all."""
    calls: list[Path] = []

    def measured(original: Path, *arguments: Any, **options: Any) -> Any:
        calls.append(original)
        return compare_speed(original, *arguments, **options)

    monkeypatch.setattr(proof, "compare_speed", measured)
    result = driver.optimize(dynamic, recipe=preset("exact").changed(verify=verify, time_limit=0.05))
    assert result.changed
    assert (result.figures.inferences > 0) == ran
    assert (result.figures.relative_error is not None) == ran
    assert (result.figures.speed is not None) == timed
    assert bool(calls) == timed
    assert (result.figures.kernels_after is not None) == timed
    assert result.recipe.resolved is not None
    assert bool(result.recipe.resolved.machine) == timed


def test_the_time_limit_reaches_the_clock(dynamic: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit of the recipe is the limit of each timed process, threads are those of the recipe."""
    seen: dict[str, Any] = {}

    def measured(original: Path, result: Path, feeds: Any, options: Any, *, time_limit_s: float) -> Any:
        seen.update(limit=time_limit_s, threads=options.threads)
        raise GraphoptError("seen")

    monkeypatch.setattr(proof, "compare_speed", measured)
    with pytest.raises(GraphoptError, match="seen"):
        driver.optimize(dynamic, recipe=preset("exact").changed(time_limit=3.5, session={"threads": 2}))
    assert seen == {"limit": 3.5, "threads": 2}


@pytest.mark.parametrize("name", ["attention", "conv"])
def test_less_memory_gives_the_same_bytes(digits: Path, tmp_path: Path, name: str) -> None:
    """What samples tell about layers is gathered a few layers at a time, and comes to the same."""
    recipe, files = preset("int8").changed(verify="structure"), [tmp_path / "much.onnx", tmp_path / "little.onnx"]
    for path, memory in zip(files, (None, 200_000), strict=True):
        driver.optimize(digits / f"{name}.onnx", path, recipe=recipe, data=digits / "calib.npz", memory=memory)
    assert files[0].read_bytes() == files[1].read_bytes()


def test_any_length_of_symbolic_dimensions(dynamic: Path, tmp_path: Path) -> None:
    """The result runs at lengths that verification never saw; a chosen length is the one that is run."""
    result = driver.optimize(dynamic, tmp_path / "out.onnx", recipe=EXACT.changed(shapes={"batch": 5}))
    assert result.changed
    for batch in (1, 2, 7):
        feed = {"x": np.random.default_rng(batch).normal(size=(batch, 4)).astype(np.float32)}
        np.testing.assert_allclose(outputs(tmp_path / "out.onnx", feed)["y"], outputs(dynamic, feed)["y"], rtol=1e-6)
    with pytest.raises(SamplesError, match="batches"):
        driver.optimize(dynamic, recipe=EXACT.changed(shapes={"batches": 5}))


@dataclass(frozen=True)
class OneBatch(GuidedPass):
    """Fixes what holds for a batch of one only; guided, so that it sees the samples too."""

    name: ClassVar[str] = "one-batch"

    def run(self, model: ir.Model, context: Context) -> bool:
        """Adds an operation that needs a batch of one."""
        seen = [feed["x"].shape[0] for feed in context.samples]
        key = Key(self.name, "fix", "")
        node = next(node for node in model.graph if node.op_type == "Neg")
        if len(seen) < 2 or not ledger.allow(key):
            return False
        target = ir.val("target", const_value=ir.tensor(np.array([1, 4], np.int64), name="target"))
        model.graph.register_initializer(target)
        fixed = ir.node("Reshape", [node.inputs[0], target], name="fixed")
        fixed.outputs[0].name = "fixed"
        node.replace_input_with(0, fixed.outputs[0])
        model.graph.insert_before(node, fixed)
        ledger.record(ledger.Rewrite(key, added=("fixed",)))
        return True


@pytest.mark.parametrize("given", ["list", "iterator", "file", "none"])
def test_two_batch_sizes(dynamic: Path, monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    """A rewrite that holds for one batch size only is found out by samples of two; they may come as an iterator."""
    monkeypatch.setitem(PASSES, OneBatch.name, f"{__name__}:OneBatch")
    feeds = [{"x": np.ones((batch, 4), np.float32)} for batch in (1, 1, 1, 1, 3)]

    def generated() -> Iterator[dict[str, Any]]:
        yield from feeds

    folder = dynamic.parent / "samples"
    folder.mkdir()
    for index, feed in enumerate(feeds):
        np.savez(folder / f"{index}.npz", x=feed["x"])
    data: Any = {"list": feeds, "iterator": generated(), "file": folder, "none": None}[given]
    recipe = Recipe.of("simplify", "one-batch").changed(verify="outputs")
    result = driver.optimize(dynamic, recipe=recipe, data=data)
    assert [drop.key for drop in result.ledger.drops] == [Key("one-batch", "fix")]
    assert result.ledger.counts() == {"simplify/drop-identity": 1}
    assert result.figures.synthetic == (given == "none")


def test_no_samples_are_no_proof(dynamic: Path) -> None:
    """An empty set of samples is refused rather than taken for agreement."""
    sources: list[Iterable[dict[str, Any]]] = [[], iter(())]
    for empty in sources:
        with pytest.raises(SamplesError, match="no samples"):
            driver.optimize(dynamic, recipe=EXACT, data=empty)


# Models of other kinds.


def test_branches(tmp_path: Path) -> None:
    """Both branches of an If are optimized, and both are right."""
    text = """<ir_version: 8, opset_import: ["": 18]> g (bool c, float[2] x) => (float[2] y) {
        a = Identity(x) y = If (c) <
            then_branch = g1 () => (float[2] t) { b = Identity(a) m = Neg(b) k = Neg(m) t = Abs(k) },
            else_branch = g2 () => (float[2] e) { b = Identity(a) f = Neg(b) e = Identity(f) }> }"""
    path = tmp_path / "model.onnx"
    ir.save(ir.from_onnx_text(text), path)
    result = driver.optimize(path, tmp_path / "out.onnx", recipe=EXACT)
    assert result.changed
    assert not result.ledger.drops
    for condition in (True, False):
        feed = {"c": np.array(condition), "x": np.array([1, -2], np.float32)}
        np.testing.assert_array_equal(outputs(tmp_path / "out.onnx", feed)["y"], outputs(path, feed)["y"])
    assert not any(node.op_type == "Identity" for node in result.model.graph.all_nodes())


def test_a_lowered_model(tmp_path: Path) -> None:
    """A model that is too new is lowered and then optimized; in memory too, where the caller's stays as it is."""
    opset, limits = onnx.defs.onnx_opset_version(), runtime_limits()
    if opset <= limits.opset:
        pytest.skip("the installed runtime loads the newest opset")
    text = f'<ir_version: {onnx.IR_VERSION}, opset_import: ["": {opset}]> g (float[2] x) => (float[2] y) {{ i = Identity(x) y = Relu(i) }}'
    proto = onnx.parser.parse_model(text)
    onnx.save(proto, tmp_path / "model.onnx")
    for source in (tmp_path / "model.onnx", proto):
        result = driver.optimize(source, tmp_path / "out.onnx", recipe=preset("exact").changed(time_limit=0.05))
        counts = result.ledger.counts()
        assert counts.pop("opset/lower-opset") == 1
        assert counts.pop("simplify/drop-identity") == 1
        assert result.model.ir_version == limits.ir_version
        outputs(tmp_path / "out.onnx", {"x": np.ones(2, np.float32)})
    assert proto == onnx.parser.parse_model(text)


def test_random_outputs_are_not_compared(tmp_path: Path) -> None:
    """A model that draws random numbers is optimized around them."""
    text = """<ir_version: 8, opset_import: ["": 18]> g (float[2] x) => (float[2] y, float[2] z) {
        i = Identity(x) y = Neg(i) z = RandomNormalLike(x) }"""
    path = tmp_path / "model.onnx"
    ir.save(ir.from_onnx_text(text), path)
    result = driver.optimize(path, recipe=EXACT)
    assert result.ledger.counts()["simplify/drop-identity"] == 1
    assert not result.ledger.drops


def test_skipped_rules(dynamic: Path) -> None:
    """What is skipped does not happen, and is no drop."""
    result = driver.optimize(dynamic, recipe=EXACT.changed(skip=["drop-identity"]))
    assert "simplify/drop-identity" not in result.ledger.counts()
    assert not result.ledger.drops

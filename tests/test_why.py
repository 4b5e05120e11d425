"""Why: each node's story is told from the ledger, forwards and backwards, and agrees with what a comparison of the files finds."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest

import graphopt
from graphopt import files
from graphopt.cli import main
from graphopt.errors import LedgerError
from graphopt.graph.difference import Flow, align
from graphopt.graph.edits import all_nodes, name_nodes
from graphopt.ledger import METADATA_KEY, Key, Ledger, Rewrite
from graphopt.presets import preset
from graphopt.report.lineage import Lineage
from graphopt.report.why import why

STRUCTURE = preset("exact").changed(verify="structure")


@pytest.fixture(scope="module")
def optimized(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The attention model, optimized, with its ledger beside it."""
    path = tmp_path_factory.mktemp("why") / "out.onnx"
    graphopt.optimize(digits / "attention.onnx", path, recipe=STRUCTURE)
    return path


def names_in(path: Path) -> set[str]:
    """The names of a model's nodes, made up for those without one."""
    model = files.load(path)
    name_nodes(model)
    return {node.name or "" for node in all_nodes(model)}


def check_all(original: Path, path: Path) -> None:
    """Every node of the result comes from nodes of the original, every node of the original became nodes of the result or went."""
    lineage = Lineage.of(path, files.load(path))
    before, after = names_in(original), names_in(path)
    for name in after:
        origins = lineage.origins(name)[1]
        assert origins, name
        assert set(origins) <= before, name
    for name in before:
        assert set(lineage.fate(name)[1]) <= after, name
    for name in {name for rewrite in lineage.rewrites for name in (*rewrite.removed, *(each for pair in rewrite.merged for each in pair))}:
        assert why(path, name).steps, name


def agreeing(original: Path, path: Path, count: int) -> int:
    """For how many nodes, drawn at random, aligning the two files finds an origin that the ledger names too."""
    models = files.load(original), files.load(path)
    for model in models:
        name_nodes(model)
    first = Flow(models[0])
    pairs = list(align(first, Flow(models[1], like=first)).nodes.items())
    lineage = Lineage.of(path, models[1])
    drawn = random.Random(0).choices(pairs, k=count)
    return sum(one.name in lineage.origins(other.name or "")[1] for one, other in drawn)


def test_every_name_has_its_story(digits: Path, optimized: Path) -> None:
    """Nodes of the result, nodes of the original, and values that others took the place of."""
    check_all(digits / "attention.onnx", optimized)
    assert agreeing(digits / "attention.onnx", optimized, 50) == 50


@pytest.mark.parametrize("file", ["conv.onnx", "attention.onnx"])
@pytest.mark.parametrize("name", ["int8", "low-rank", "cluster", "prune"])
def test_approximations_are_told(digits: Path, tmp_path: Path, file: str, name: str) -> None:
    """What decodes a weight, or stands beside a layer, comes from that layer; each layer that was approximated says how."""
    samples = [{"image": image[None]} for image in np.load(digits / "calib.npz")["image"][:32]]
    recipe = preset(name).changed(verify="outputs", min_sqnr=0.0)
    graphopt.optimize(digits / file, tmp_path / "out.onnx", recipe=recipe, data=samples)
    lineage = Lineage.of(tmp_path / "out.onnx", files.load(tmp_path / "out.onnx"))
    before, after = names_in(digits / file), names_in(tmp_path / "out.onnx")
    for each in after:
        origins = lineage.origins(each)[1]
        assert origins, each
        assert set(origins) <= before, each
    approximated = [rewrite for rewrite in lineage.rewrites if rewrite.predicted_error is not None]
    assert approximated
    for rewrite in approximated:
        story = why(tmp_path / "out.onnx", rewrite.key.anchor)
        assert rewrite in story.steps
        assert after & set(rewrite.added) <= set(story.became)


def test_constants_and_inputs_are_told(digits: Path, optimized: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A constant of the model is told by the node that reads it, an input by itself."""
    model = files.load(optimized)
    weight = next(value for value in model.graph.initializers.values() if len(value.consumers()) == 1)
    reader = weight.consumers()[0]
    story = why(optimized, weight.name or "")
    assert story.subject.startswith(f"a constant of the model, read by {reader.op_type}")
    assert story.steps == why(optimized, reader.name or reader.outputs[0].name or "").steps
    assert main(["why", str(optimized), "image"]) == 0
    assert "an input of the model" in capsys.readouterr().out


def test_every_name_in_real_models(zoo: Path, tmp_path: Path) -> None:
    """The same for trained models."""
    found = 0
    for name in ("cifar_resnet20_ft", "silero_vad_seq", "silero_vad_ifless", "ultraface", "llama_shakespeare"):
        graphopt.optimize(zoo / name / "model.onnx", tmp_path / f"{name}.onnx", recipe=STRUCTURE)
        check_all(zoo / name / "model.onnx", tmp_path / f"{name}.onnx")
        found += agreeing(zoo / name / "model.onnx", tmp_path / f"{name}.onnx", 10)
    assert found >= 48  # of three slices in a row, merged into one, any may be the one that stayed


def test_fusion_tells_its_rule(optimized: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A fused node names the rule, what the rule replaces, and the nodes that it took."""
    fused = next(name for name in names_in(optimized) if name.endswith("/Gelu"))
    assert main(["why", str(optimized), fused]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "activations/recognize-gelu Replaces x * (1 + erf(x / sqrt(2))) / 2" in printed
    story = why(optimized, fused)
    [taken] = [name for name in story.origins if "Erf" in name]
    assert why(optimized, taken).became == [fused]
    assert main(["why", str(optimized), taken, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["became"] == [fused]


def test_embedded_ledger_is_enough(optimized: Path, tmp_path: Path) -> None:
    """Without the file beside it the ledger inside the model tells the same steps, though not why."""
    alone = tmp_path / "alone.onnx"
    alone.write_bytes(optimized.read_bytes())
    fused = next(name for name in names_in(optimized) if name.endswith("/Gelu"))
    assert [step.key for step in why(alone, fused).steps] == [step.key for step in why(optimized, fused).steps]
    assert "metadata" in why(alone, fused).source


def test_what_cannot_be_told_is_one_line(digits: Path, optimized: Path, tmp_path: Path) -> None:
    """No ledger, one of counts alone, a broken one, an unknown name."""
    with pytest.raises(LedgerError, match="no ledger beside it"):
        why(digits / "conv.onnx", "x")
    with pytest.raises(LedgerError, match="did you mean"):
        why(optimized, f"{min(names_in(optimized))}x")
    model = files.load(digits / "conv.onnx")
    model.metadata_props[METADATA_KEY] = Ledger([Rewrite(Key("simplify", "x"))]).embedded(200)
    files.save(model, tmp_path / "whole.onnx")
    assert Lineage.of(tmp_path / "whole.onnx", model).rewrites
    model.metadata_props[METADATA_KEY] = Ledger([Rewrite(Key("simplify", "x", f"{n}" * 40)) for n in range(10**3, 10**3 + 99)]).embedded(
        200
    )
    with pytest.raises(LedgerError, match="counts alone"):
        Lineage.of(tmp_path / "whole.onnx", model)
    model.metadata_props[METADATA_KEY] = "???"
    with pytest.raises(LedgerError, match="cannot be read"):
        Lineage.of(tmp_path / "whole.onnx", model)
    (tmp_path / "whole.onnx.ledger.json").write_text('{"rewrites": [{}]}')
    with pytest.raises(LedgerError, match="cannot be read"):
        Lineage.of(tmp_path / "whole.onnx", model)


def test_names_that_come_and_go() -> None:
    """A name that is made, taken and made again is told by its last life; changes in place are steps too."""
    steps = [
        Rewrite(Key("p", "first", "a"), removed=("a",), added=("a/X",)),
        Rewrite(Key("p", "second", "a/X"), removed=("a/X", "b"), added=("c",)),
        Rewrite(Key("p", "third", "c"), removed=("c",), added=("a/X",)),
        Rewrite(Key("p", "scaled", "a/X")),
    ]
    lineage = Lineage(steps, (), (), "")
    assert lineage.origins("a/X") == (steps, ["a", "b"])
    assert lineage.fate("a/X") == (steps[3:], ["a/X"])
    assert lineage.fate("b") == (steps[1:], ["a/X"])
    assert lineage.origins("c") == (steps[:2], ["a", "b"])

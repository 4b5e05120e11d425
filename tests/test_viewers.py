"""What a report tells other viewers: a copy with notes in its nodes, and node data for Model Explorer."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

import graphopt
from graphopt.cli import main
from graphopt.errors import ModelFileError
from graphopt.recipe import Recipe
from graphopt.report.viewers import write_annotated, write_node_data
from graphopt.runtime.session import open_session


@pytest.fixture(scope="module")
def optimized(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A convolutional model of which a division became a product."""
    path = tmp_path_factory.mktemp("viewers") / "out.onnx"
    graphopt.optimize(digits / "conv.onnx", path, recipe=Recipe.of("cleanup", "algebra").changed(verify="outputs"))
    return path


def test_copy_tells_of_its_nodes_and_computes_the_same(optimized: Path, tmp_path: Path) -> None:
    """The copy's nodes say what made them, from what, and what runs them; the rest of the model is as it was."""
    copy = write_annotated(tmp_path / "copy.onnx", optimized)
    nodes = {node.name: node for node in ir.load(copy).graph}
    made = nodes["node_div/Mul"].metadata_props
    assert made["graphopt.made_by"] == "algebra/multiply-by-reciprocal"
    assert made["graphopt.comes_from"] == "node_div"
    assert float(made["graphopt.milliseconds"]) >= 0
    assert "graphopt.made_by" not in nodes["node_linear"].metadata_props
    assert nodes["node_linear"].metadata_props["graphopt.kernel"] == "Gemm"
    feed = {"image": np.ones((2, 1, 8, 8), np.float32)}
    assert np.array_equal(open_session(copy).run(feed)["logits"], open_session(optimized).run(feed)["logits"])


def test_copy_of_anyones_model(digits: Path, tmp_path: Path) -> None:
    """A model without a ledger has times to tell; it is never written over."""
    model = tmp_path / "model.onnx"
    model.write_bytes((digits / "conv.onnx").read_bytes())
    copy = ir.load(write_annotated(tmp_path / "copy.onnx", model))
    notes = {key for node in copy.graph for key in node.metadata_props if key.startswith("graphopt.")}
    assert (
        {"graphopt.kernel", "graphopt.milliseconds"} <= notes <= {f"graphopt.{key}" for key in ("kernel", "milliseconds", "computed_with")}
    )
    with pytest.raises(ModelFileError, match="the model itself"):
        write_annotated(model, model)


def test_node_data_is_model_explorers(optimized: Path, tmp_path: Path) -> None:
    """Node data is keyed by graph and by node, with a number for each, and colours for the least and the most."""
    content = json.loads(write_node_data(tmp_path / "data.json", optimized).read_text(encoding="utf-8"))
    model = ir.load(optimized)
    [(graph, data)] = content.items()
    assert graph == model.graph.name
    assert set(data["results"]) <= {node.name for node in model.graph}
    assert len(data["results"]) > 10
    assert all(set(result) == {"value"} and result["value"] >= 0 for result in data["results"].values())
    assert [stop["stop"] for stop in data["gradient"]] == [0, 1]


def test_report_writes_what_the_name_says(optimized: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The suffix chooses the form; only a page compares with an original."""
    for name in ("copy.onnx", "data.json"):
        assert main(["report", str(optimized), "-o", str(tmp_path / name), "--quiet"]) == 0
        assert (tmp_path / name).is_file()
        assert main(["report", str(optimized), "--against", str(optimized), "-o", str(tmp_path / name)]) == 2
    capsys.readouterr()

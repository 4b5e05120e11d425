"""Inspection: what is told of a model."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from rich.console import Console

from graphopt import files
from graphopt.errors import SamplesError
from graphopt.report.inspect import Inspection, inspect

MODEL = """<ir_version: 10, opset_import: ["" : 20, "local" : 1], producer_name: "pen", producer_version: "2">
g (float[batch, 4] x, int64[batch, ?] i) => (float[batch, 3] y)
<float[4, 3] w = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}, float[3] b = {1, 2, 3}> {
    [first] h = Gemm(x, w, b)
    [second] y = local.Twice(h)
}
<domain: "local", opset_import: ["" : 20]> Twice (a) => (r) { r = Add(a, a) }
"""


def text_of(inspection: Inspection) -> str:
    """What a wide terminal shows."""
    console = Console(file=io.StringIO(), width=200)
    console.print(inspection)
    file = console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


@pytest.fixture
def model() -> ir.Model:
    """A small model with a function, metadata and a dimension without a name."""
    made = ir.from_onnx_text(MODEL)
    made.metadata_props["labels"] = "a b c"
    return made


def test_facts(model: ir.Model) -> None:
    """Signature, versions, operators, parameters and metadata are the model's own."""
    found = inspect(model, shapes={"batch": 5})
    assert [port.name for port in found.signature.inputs] == ["x", "i"]
    assert found.opsets == {"": 20, "local": 1}
    assert (found.ir_version, found.producer) == (10, "pen 2")
    assert found.operators == {"Gemm": 1, "local::Twice": 1, "Add": 1}
    assert (found.cost.parameters, found.cost.bytes) == (15, 60)
    assert found.metadata == {"labels": 5}
    assert found.functions == ("local::Twice",)
    assert found.file_bytes is None
    assert [(node.name, node.macs) for node in found.largest] == [("first", 5 * 4 * 3)]
    assert found.weight_shapes["first"] == (1, 3, 4)


def test_made_up_lengths_are_marked(model: ir.Model) -> None:
    """Multiply-accumulates are told with the lengths that they hold for, and which of these are made up."""
    found = inspect(model, shapes={"batch": 5})
    made_up = found.to_json()["made_up_lengths"]
    assert found.lengths["batch"] == 5
    assert made_up == ["i.axis1"]
    shown = text_of(found)
    assert "batch=5," in shown
    assert f"i.axis1={found.lengths['i.axis1']} (made up)" in shown
    assert inspect(model).lengths["batch"] == 1


def test_unknown_length_is_refused(model: ir.Model) -> None:
    """A name that is no dimension of the model is an error that tells its dimensions."""
    with pytest.raises(SamplesError, match=r"'btach'.*batch"):
        inspect(model, shapes={"btach": 5})


def test_lengths_suit_the_model() -> None:
    """Of the plausible lengths those are taken at which no value has a negative length."""
    text = """<ir_version: 10, opset_import: ["" : 20]>
    g (float[1, 1, length] x, float[2, 1, 100] w) => (float[1, 2, m] y) { [conv] y = Conv<strides = [64]>(x, w) }"""
    model = ir.from_onnx_text(text)
    found = inspect(model)
    assert found.lengths["length"] >= 100
    assert found.cost.macs > 0


def test_file_with_external_data(model: ir.Model, tmp_path: Path) -> None:
    """A file is told with its size on the disk and its data files; its weights are not read."""
    large = np.zeros((64, 64), np.float32)
    model.graph.register_initializer(ir.val("table", const_value=ir.tensor(large, name="table")))
    files.save(model, tmp_path / "m.onnx", external_data=True)
    found = inspect(tmp_path)
    assert found.name == "m.onnx"
    assert found.file_bytes == sum(file.stat().st_size for file in tmp_path.iterdir())
    [(name, size)] = found.external_data.items()
    assert (tmp_path / name).exists()
    assert size >= large.nbytes


def test_json_and_table(digits: Path) -> None:
    """Plain data is valid JSON with a version; the table tells the same."""
    found = inspect(digits / "conv.onnx")
    data = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert data["version"] == 1
    assert data["parameters"] == found.cost.parameters
    assert data["macs_unknown"] == []
    largest = data["largest"][0]
    assert largest["parameters"] >= math.prod(largest["weight"])
    shown = text_of(found)
    assert f"{found.cost.macs:,}" in shown
    assert largest["name"] in shown


@pytest.mark.parametrize("name", ["cifar_resnet20_ft", "minilm_l6", "ocr_rec", "silero_vad_ifless", "llama_shakespeare_past", "ultraface"])
def test_zoo(zoo: Path, name: str) -> None:
    """Real models are counted completely, subgraphs included."""
    found = inspect(zoo / name / "model.onnx")
    assert found.cost.unknown == ()
    assert found.cost.macs > 0
    assert all(node.macs is None or node.macs >= 0 for node in found.cost.nodes)


@pytest.mark.parametrize(("name", "gmacs"), [("resnet50", 4.09), ("mobilenet_v2", 0.301), ("vit_base", 17.56)])
def test_architectures(arch: Path, name: str, gmacs: float) -> None:
    """Well-known architectures have their published number of multiply-accumulates, whichever exporter wrote them."""
    for file in ("model.onnx", "model_torchscript.onnx"):
        assert inspect(arch / name / file).cost.macs / 1e9 == pytest.approx(gmacs, rel=0.01)

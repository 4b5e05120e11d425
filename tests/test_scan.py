"""The look at a model file that tells whether it refers to data files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from graphopt.files.scan import may_refer_to_data


def _model(array: np.ndarray) -> ir.Model:
    model = ir.from_onnx_text('<ir_version: 10, opset_import: ["" : 20]> g (float[n] x) => (float[n] y) { y = Add(x, w) }')
    weight = next(node for node in model.graph if node.op_type == "Add").inputs[1]
    assert weight is not None
    weight.const_value = ir.tensor(array, name="w")
    model.graph.initializers["w"] = weight
    return model


def test_a_model_with_its_weights_inside_refers_to_none(tmp_path: Path) -> None:
    """Weights inside the file are passed over, even where their bytes spell the key of a reference."""
    ir.save(_model(np.frombuffer(b"location" * 4, np.float32)), tmp_path / "m.onnx")
    assert not may_refer_to_data(tmp_path / "m.onnx")


def test_a_reference_is_found(tmp_path: Path) -> None:
    """One external initializer is enough."""
    ir.save(_model(np.ones(4, np.float32)), tmp_path / "m.onnx", external_data="m.data", size_threshold_bytes=0)
    assert may_refer_to_data(tmp_path / "m.onnx")


def test_a_reference_in_a_subgraph_is_found(tmp_path: Path) -> None:
    """Nodes are searched whole, with all that stands in them."""
    inner = _model(np.ones(4, np.float32))
    ir.save(inner, tmp_path / "inner.onnx", external_data="m.data", size_threshold_bytes=0)
    branch = ir.load(tmp_path / "inner.onnx").graph
    node = ir.node("Outer", inputs=[], attributes={"body": branch}, domain="custom")
    graph = ir.Graph([], node.outputs, nodes=[node], opset_imports={"": 20, "custom": 1})
    ir.save(ir.Model(graph, ir_version=10), tmp_path / "m.onnx")
    assert may_refer_to_data(tmp_path / "m.onnx")


@pytest.mark.parametrize("content", [b"", b"\x3a\xff", b"\x3a\xff\xff\xff\x0f", b"version https://git-lfs", b"\xff" * 40])
def test_a_damaged_file_is_left_to_its_reader(tmp_path: Path, content: bytes) -> None:
    """What is no model may refer to anything: parsing it says what is wrong."""
    (tmp_path / "m.onnx").write_bytes(content)
    assert may_refer_to_data(tmp_path / "m.onnx")


def test_a_missing_file_refers_to_none(tmp_path: Path) -> None:
    """There is nothing to read."""
    assert not may_refer_to_data(tmp_path / "m.onnx")

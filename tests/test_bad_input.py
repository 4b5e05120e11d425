"""Tests of models that are none, wrong, or without their data: one clear line, nothing half done."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from tests.desk import GOOD, Desk, desk_in, save

desk = pytest.fixture(desk_in)


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"", "the file is empty"),
        (bytes(range(256)) * 8, "not an ONNX model"),
        (b"<html>404</html>" * 50, "not an ONNX model"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "git lfs pull"),
    ],
    ids=["empty", "random", "text", "pointer"],
)
def test_other_files(desk: Desk, content: bytes, part: str) -> None:
    """What is no model is refused with the file's name and the reason, by every command that reads one."""
    model = desk.folder / "model.onnx"
    model.write_bytes(content)
    for command in (("optimize", "-o", desk.output), ("inspect",), ("verify",), ("compare", model)):
        message = desk.refuse(*command, model)
        assert part in message
        assert str(model) in message


def test_truncated(desk: Desk, digits: Path) -> None:
    """A file that ends early is refused wherever it ends."""
    whole = (digits / "conv.onnx").read_bytes()
    for share in (0.001, 0.1, 0.5, 0.9, 0.999):
        model = desk.folder / "model.onnx"
        model.write_bytes(whole[: int(len(whole) * share)])
        assert str(model) in desk.refuse_model(model)


def test_missing_and_unclear_paths(desk: Desk) -> None:
    """No file, a folder without a model and one with several are told apart."""
    assert "no such file" in desk.refuse_model(desk.folder / "nothing.onnx")
    assert "without a .onnx file" in desk.refuse_model(desk.folder)
    for name in ("a.onnx", "b.onnx"):
        save(GOOD, desk.folder / name)
    assert "a.onnx, b.onnx" in desk.refuse_model(desk.folder)


@pytest.mark.parametrize(
    ("nodes", "part"),
    [
        ("a = Add(x, b)  b = Relu(a)  y = Relu(b)", "cycle"),
        ("a = Relu(x)  a = Relu(x)  y = Relu(a)", "duplicate name"),
        ("y = Add(x, w)", "'w'"),
        ("a = Convolve(x)  y = Relu(a)", "Convolve"),
        ("y = Gelu(x)", "opset 18 has no operator Gelu"),
        ("a = Relu(x)", "'y'"),
        ("y = other.Thing(x)", "'other'"),
    ],
    ids=["cycle", "duplicate", "missing", "unknown operator", "newer operator", "missing output", "unknown import"],
)
def test_wrong_graphs(desk: Desk, nodes: str, part: str) -> None:
    """A graph that breaks ONNX's rules is refused, and the node or value is named."""
    text = f'<ir_version: 8, opset_import: ["": 18]> g (float[4] x) => (float[4] y) {{ {nodes} }}'
    assert part in desk.refuse_model(save(text, desk.folder / "model.onnx"))


def test_a_graph_that_the_runtime_refuses(desk: Desk) -> None:
    """A model whose types cannot be is refused with the runtime's reason."""
    text = '<ir_version: 8, opset_import: ["": 18]> g (float[4,4] x) => (float[4,4] y) { [product] y = Gather(x, x) }'
    assert "product" in desk.refuse_model(save(text, desk.folder / "model.onnx"))


def external(folder: Path, location: str, length: int = 16) -> Path:
    """A model whose weight is said to lie somewhere."""
    model = onnx.parser.parse_model(GOOD)
    weight = model.graph.initializer[0]
    weight.ClearField("float_data")
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", str(length))):
        entry = weight.external_data.add()
        entry.key, entry.value = key, value
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def test_external_data_that_is_not_there(desk: Desk) -> None:
    """Data that is missing or ends early is refused, and the tensor is named."""
    model = external(desk.folder, "weights.bin")
    assert "missing" in desk.refuse_model(model)
    (desk.folder / "weights.bin").write_bytes(b"1234")
    assert "'w'" in desk.refuse_model(model)


def test_external_data_outside_the_folder(desk: Desk, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Data outside the model's folder is never read: not by a relative, an absolute path or a link."""
    outside = tmp_path_factory.mktemp("outside") / "secret"
    outside.write_bytes(bytes(16))
    for location in (os.path.relpath(outside, desk.folder), str(outside)):
        assert "not a path inside the model's folder" in desk.refuse_model(external(desk.folder, location))
    (desk.folder / "link").symlink_to(outside)
    assert "leaves the model's folder" in desk.refuse_model(external(desk.folder, "link"))


def test_output_onto_the_weights(desk: Desk) -> None:
    """The file that holds the input's weights is no output."""
    model = external(desk.folder, "weights.bin")
    (desk.folder / "weights.bin").write_bytes(np.arange(4, dtype=np.float32).tobytes())
    assert "holds the input's weights" in desk.refuse("optimize", model, "-o", desk.folder / "weights.bin")
    desk.optimize(model)
    assert (desk.folder / "weights.bin").read_bytes() == np.arange(4, dtype=np.float32).tobytes()

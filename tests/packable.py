"""Weights as training leaves them, models that hold them in every place, and their way into a container and back."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from graphopt.container import pack, unpack
from tests.model_files import branches, write

GENERATOR = np.random.default_rng(0)
NORMAL = GENERATOR.standard_normal(1 << 18)
FLAGS = GENERATOR.random(NORMAL.size)


def random_weights(shape: tuple[int, ...], dtype: Any = np.float32, seed: int = 0) -> np.ndarray[Any, Any]:
    """Weights as training leaves them, roughly."""
    return (np.random.default_rng(seed).standard_normal(shape) * 0.05).astype(dtype)


def make(**more: Any) -> onnx.ModelProto:
    """A model with tensors where a model can have them: initializers, a Constant, a branch, and typed fields."""
    weight = numpy_helper.from_array(random_weights((64, 300)), "w")
    typed = helper.make_tensor("t", TensorProto.FLOAT, [300], random_weights((300,), seed=1).tolist())
    constant = numpy_helper.from_array(random_weights((300,), seed=2), "k")
    nodes = [
        helper.make_node("Constant", [], ["c"], value=constant),
        helper.make_node("MatMul", ["x", "w"], ["m"]),
        helper.make_node("Add", ["m", "c"], ["a"]),
        helper.make_node("Add", ["a", "t"], ["sum"]),
        helper.make_node("If", ["b"], ["y"], **branches(random_weights((300,)), random_weights((300,), seed=1))),
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 64]), helper.make_tensor_value_info("b", TensorProto.BOOL, [])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, 300])]
    graph = helper.make_graph(nodes, "g", inputs, outputs, [weight, typed])
    return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)], **more)


def holding(tensors: Sequence[onnx.TensorProto]) -> onnx.ModelProto:
    """A model of little else than some initializers."""
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    return helper.make_model(helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [value], [value], tensors))


def save_apart(folder: Path, location: str = "model.data") -> Path:
    """The same model with its initializers in a data file, with a gap and a tail that belong to no tensor."""
    model = make()
    data = bytearray(b"head")
    for tensor in model.graph.initializer:
        content = numpy_helper.to_array(tensor).tobytes()
        data += bytes(-len(data) % 64)
        tensor.ClearField("raw_data")
        tensor.ClearField("float_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", location), ("offset", len(data)), ("length", len(content))):
            tensor.external_data.add(key=key, value=str(value))
        data += content
    (folder / location).parent.mkdir(parents=True, exist_ok=True)
    (folder / location).write_bytes(data + b"tail" * 100)
    return write(folder / "model.onnx", model)


def assert_comes_back(path: Path, folder: Path) -> None:
    """Packs and unpacks a model, and compares all files byte for byte."""
    folder.mkdir()
    pack(path, folder / "a.gopt")
    copies = unpack(folder / "a.gopt", folder / "b.onnx")
    assert copies[0].read_bytes() == path.read_bytes()
    for copy in copies[1:]:
        assert copy.read_bytes() == (path.parent / copy.relative_to(folder)).read_bytes()

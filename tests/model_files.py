"""Models in files, with weights wherever a model can have them; what the runtime and the loader make of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphopt import files
from graphopt.errors import GraphoptError
from graphopt.graph.structure import verify_structure

WEIGHT = np.arange(1200, dtype=np.float32).reshape(2, 600)


def branches(then_weight: np.ndarray[Any, Any], else_weight: np.ndarray[Any, Any]) -> dict[str, Any]:
    """The attributes of an If whose branches multiply ``sum``, float[rows, n], with a weight of their own, float[n]."""
    graphs: dict[str, Any] = {}
    for kind, weight in (("then", then_weight), ("else", else_weight)):
        node = helper.make_node("Mul", ["sum", f"{kind}_w"], [f"{kind}_y"])
        output = helper.make_tensor_value_info(f"{kind}_y", TensorProto.FLOAT, [None, weight.size])
        graphs[f"{kind}_branch"] = helper.make_graph([node], kind, [], [output], [numpy_helper.from_array(weight, f"{kind}_w")])
    return graphs


def make(ir_version: int = 10, opset: int = 20, seed: int = 0, more: Sequence[onnx.TensorProto] = ()) -> onnx.ModelProto:
    """A model with one large and one small initializer, a large Constant and a branch with a large initializer."""
    weight = numpy_helper.from_array(WEIGHT + seed, "w")
    small = numpy_helper.from_array(np.ones(600, np.float32), "s")
    tiny = helper.make_tensor("b", TensorProto.FLOAT, [1], [3.0])
    fours = np.full(600, 4, np.float32)
    nodes = [
        helper.make_node("Constant", [], ["k"], value=small),
        helper.make_node("MatMul", ["x", "w"], ["m"]),
        helper.make_node("Add", ["m", "k"], ["a"]),
        helper.make_node("Add", ["a", "b"], ["sum"], name="plus"),
        helper.make_node("If", ["c"], ["y"], **branches(fours, fours)),
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2]), helper.make_tensor_value_info("c", TensorProto.BOOL, [])]
    if ir_version < 4:  # initializers had to be inputs
        inputs += [
            helper.make_tensor_value_info("w", TensorProto.FLOAT, [2, 600]),
            helper.make_tensor_value_info("b", TensorProto.FLOAT, [1]),
        ]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 600])]
    proto = helper.make_graph(nodes, "g", inputs, outputs, [weight, tiny, *more])
    return helper.make_model(proto, ir_version=ir_version, opset_imports=[helper.make_opsetid("", opset)], producer_name="maker")


def write(path: Path, proto: onnx.ModelProto, location: str = "") -> Path:
    """Writes a model with onnx's own functions; with a location, all weights are external data."""
    if location:
        onnx.save(proto, path, save_as_external_data=True, location=location, size_threshold=0, convert_attribute=True)
    else:
        path.write_bytes(proto.SerializeToString())
    return path


def run(path: Path) -> np.ndarray:
    """The model's output in ONNX Runtime."""
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    output: np.ndarray = session.run(None, {"x": np.ones((1, 2), np.float32), "c": np.array(True)})[0]
    return output


def weight_of(path: Path) -> np.ndarray:
    """The large initializer of a file."""
    tensor = files.load(path).graph.initializers["w"].const_value
    assert tensor is not None
    return tensor.numpy()


def temporaries(folder: Path) -> list[str]:
    """What was left of files that never became whole."""
    return [child.name for child in folder.rglob("*") if child.name.endswith(".tmp")]


def message_of(path: Path | str) -> str:
    """The one line with which a file is refused."""
    with pytest.raises(GraphoptError) as caught:
        verify_structure(files.load(path))
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 600
    return message

"""Large made-up models: one with more weights than fit a message, one with very many nodes."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

_WIDTH = 4096
_LAYER_BYTES = 4 * _WIDTH**2
_OPSET = 18
_Link = tuple[str, list[str], dict[str, Any]]
"""A node of a chain: its operator, its inputs after the first, its attributes."""


def write_heavy(path: Path, layers: int, *, scaled_every: int = 0) -> None:
    """Writes a chain of MatMul layers of 4096 x 4096 with external data, one weight in memory at a time.

    Around each layer stand nodes that do nothing: an Identity, and a pair of transposes.

    Args:
        path: the model file; its data goes beside it.
        layers: 64 MiB of weights each.
        scaled_every: every so many layers a multiplication follows that can be folded into the weights; 0 for none.
    """
    nodes, initializers, name = [], [], "x"
    generator = np.random.default_rng(0)
    with path.with_suffix(".data").open("wb") as data:
        for layer in range(layers):
            data.write(((generator.random(_WIDTH**2, dtype=np.float32) - 0.5) / 64).tobytes())
            initializers.append(_external(f"w{layer}", path.with_suffix(".data").name, layer * _LAYER_BYTES))
            bias = generator.random(_WIDTH, dtype=np.float32)
            initializers += [numpy_helper.from_array(bias, f"b{layer}"), numpy_helper.from_array(np.array(1.5, np.float32), f"s{layer}")]
            is_scaled = bool(scaled_every) and layer % scaled_every == 0
            for node in _heavy_layer(name, layer, is_scaled=is_scaled):
                nodes.append(node)
                name = node.output[0]
    _save(path, nodes, initializers, name, _WIDTH)


def _heavy_layer(name: str, layer: int, *, is_scaled: bool) -> Iterator[onnx.NodeProto]:
    swap: dict[str, Any] = {"perm": [1, 0]}
    scale: list[_Link] = [("Mul", [f"s{layer}"], {})] if is_scaled else []
    rest: list[_Link] = [("Add", [f"b{layer}"], {}), ("Transpose", [], swap), ("Transpose", [], swap), ("Relu", [], {})]
    steps: list[_Link] = [("Identity", [], {}), ("MatMul", [f"w{layer}"], {}), *scale, *rest]
    for number, (kind, operands, attributes) in enumerate(steps):
        output = f"t{layer}_{number}"
        yield helper.make_node(kind, [name, *operands], [output], **attributes)
        name = output


def _external(name: str, location: str, offset: int) -> TensorProto:
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[_WIDTH, _WIDTH], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", str(offset)), ("length", str(_LAYER_BYTES))):
        tensor.external_data.add(key=key, value=value)
    return tensor


def write_long(path: Path, length: int) -> None:
    """Writes a chain of small nodes of many kinds over `[batch, 64]`; about half of them can go."""
    constants = {
        "one": np.ones(64, np.float32),
        "half": np.full(64, 0.5, np.float32),
        "zero": np.zeros(64, np.float32),
        "target": np.array([-1, 8, 8]),
        "flat": np.array([0, 64]),
        "axis": np.array([1]),
    }
    steps = islice(cycle(_LINKS), length)
    nodes, name = [], "x"
    for number, (kind, operands, attributes) in enumerate(steps):
        nodes.append(helper.make_node(kind, [name, *operands], [f"t{number}"], f"n{number}", **attributes))
        name = nodes[-1].output[0]
    _save(path, nodes, [numpy_helper.from_array(array, key) for key, array in constants.items()], name, 64)


_LINKS: tuple[_Link, ...] = (
    ("Mul", ["half"], {}),
    ("Add", ["one"], {}),
    ("Sigmoid", [], {}),
    ("Identity", [], {}),
    ("Reshape", ["target"], {}),
    ("Transpose", [], {"perm": [0, 2, 1]}),
    ("Transpose", [], {"perm": [0, 2, 1]}),
    ("Reshape", ["flat"], {}),
    ("Add", ["zero"], {}),
    ("Unsqueeze", ["axis"], {}),
    ("Tanh", [], {}),
    ("Squeeze", ["axis"], {}),
    ("Cast", [], {"to": TensorProto.FLOAT}),
    ("Softmax", [], {"axis": -1}),
    ("Mul", ["one"], {}),
    ("Relu", [], {}),
)
"""One period of the long chain: every link takes and gives what the next one needs, and the last gives what the first takes."""


def _save(path: Path, nodes: list[onnx.NodeProto], initializers: list[TensorProto], output: str, width: int) -> None:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", width]) for name in ("x", output)]
    graph = helper.make_graph(nodes, "chain", values[:1], values[1:], initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=8)
    path.write_bytes(model.SerializeToString())

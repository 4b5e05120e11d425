"""A large made-up transformer encoder with samples for it: what guided passes meet, at a size that shows what they need."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

_OPSET = 18
_WIDTH, _HIDDEN, _HEADS = 1024, 4096, 16


@dataclass
class _Graph:
    """What has been written so far."""

    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initializers: list[TensorProto] = field(default_factory=list)

    def add(self, operator: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(operator, inputs, [output], f"{output}/node", **attributes))
        return output

    def constant(self, name: str, array: Any) -> str:
        self.initializers.append(numpy_helper.from_array(np.asarray(array), name))
        return name


def write_encoder(path: Path, layers: int) -> None:
    """Writes layers of 12.6 million weights each, with external data: attention of 16 heads, width 1024, feed-forward 4096.

    Args:
        path: the model file; its data goes beside it.
        layers: how many.
    """
    graph, generator, name = _Graph(), np.random.default_rng(0), "x"
    graph.constant("heads", [0, 0, _HEADS, _WIDTH // _HEADS])
    graph.constant("width", [0, 0, _WIDTH])
    graph.constant("scale", np.float32((_WIDTH // _HEADS) ** -0.5))
    graph.constant("ones", np.ones(_WIDTH, np.float32))
    graph.constant("zeros", np.zeros(_WIDTH, np.float32))
    for layer in range(layers):
        name = _attention(graph, generator, name, layer)
        name = _feed_forward(graph, generator, name, layer)
    graph.add("LayerNormalization", [name, "ones", "zeros"], "y", axis=-1)
    values = [helper.make_tensor_value_info(value, TensorProto.FLOAT, ["batch", "positions", _WIDTH]) for value in ("x", "y")]
    made = helper.make_graph(graph.nodes, "encoder", values[:1], values[1:], graph.initializers)
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=8)
    onnx.save(model, path, save_as_external_data=True, location=path.with_suffix(".data").name)


def write_samples(folder: Path, count: int, positions: int) -> None:
    """Writes samples for it, one file each: correlated channels, so that some can stand for others."""
    folder.mkdir()
    for number, sample in enumerate(_samples(count, positions)):
        np.savez(folder / f"{number:03}.npz", x=sample)


def _samples(count: int, positions: int) -> Iterator[np.ndarray[Any, Any]]:
    generator = np.random.default_rng(1)
    mixing = generator.standard_normal((_WIDTH // 4, _WIDTH), np.float32) / np.float32((_WIDTH // 4) ** 0.5)
    for _ in range(count):
        own = generator.standard_normal((1, positions, _WIDTH), np.float32)
        yield generator.standard_normal((1, positions, len(mixing)), np.float32) @ mixing + np.float32(0.1) * own


def _attention(graph: _Graph, generator: np.random.Generator, name: str, layer: int) -> str:
    inside = graph.add("LayerNormalization", [name, "ones", "zeros"], f"n{layer}", axis=-1)
    parts = {}
    for part in "qkv":
        made = _product(graph, generator, inside, f"{part}{layer}", (_WIDTH, _WIDTH))
        split = graph.add("Reshape", [made, "heads"], f"{part}{layer}_heads")
        parts[part] = graph.add("Transpose", [split], f"{part}{layer}_turned", perm=[0, 2, 3, 1] if part == "k" else [0, 2, 1, 3])
    scores = graph.add("MatMul", [parts["q"], parts["k"]], f"s{layer}")
    scores = graph.add("Mul", [scores, "scale"], f"s{layer}_scaled")
    scores = graph.add("Softmax", [scores], f"p{layer}", axis=-1)
    mixed = graph.add("MatMul", [scores, parts["v"]], f"o{layer}")
    turned = graph.add("Transpose", [mixed], f"o{layer}_turned", perm=[0, 2, 1, 3])
    joined = graph.add("Reshape", [turned, "width"], f"o{layer}_joined")
    return graph.add("Add", [name, _product(graph, generator, joined, f"a{layer}", (_WIDTH, _WIDTH))], f"x{layer}")


def _feed_forward(graph: _Graph, generator: np.random.Generator, name: str, layer: int) -> str:
    inside = graph.add("LayerNormalization", [name, "ones", "zeros"], f"m{layer}", axis=-1)
    up = graph.add("Relu", [_product(graph, generator, inside, f"u{layer}", (_WIDTH, _HIDDEN))], f"r{layer}")
    return graph.add("Add", [name, _product(graph, generator, up, f"d{layer}", (_HIDDEN, _WIDTH))], f"z{layer}")


def _product(graph: _Graph, generator: np.random.Generator, name: str, output: str, shape: tuple[int, int]) -> str:
    weight = generator.standard_normal(shape, np.float32) * np.float32(shape[0] ** -0.5)
    return graph.add("MatMul", [name, graph.constant(f"w_{output}", weight)], output)

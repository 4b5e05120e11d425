"""A step of decoding with a cache of keys and values, written node by node as exporters write it, with random weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

_WIDTH, _HEADS, _SHARED_HEADS, _HEAD, _INNER, _LAYERS = 896, 14, 2, 64, 4864, 4
"""The layers of Qwen2 with half a billion parameters."""

_OPSET = 17
_EPSILON = 1e-6
_BASE = 1e6
_PAST, _MANY = 512, 8
_FLOAT, _INT = TensorProto.FLOAT, TensorProto.INT64


@dataclass
class _Graph:
    """Nodes and constants so far; ``op`` adds a node and names its output."""

    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: list[TensorProto] = field(default_factory=list)
    generator: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        name = f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], name, **attributes))
        return name

    def number(self, value: Any, dtype: type = np.int64) -> str:
        self.constants.append(numpy_helper.from_array(np.array(value, dtype), f"constant_{len(self.constants)}"))
        return self.constants[-1].name

    def weight(self, *shape: int) -> str:
        scale = np.float32(shape[0] ** -0.5)
        return self.number(self.generator.standard_normal(shape, np.float32) * scale, np.float32)

    def length(self, value: str, axis: int) -> str:
        return self.op("Unsqueeze", self.op("Gather", self.op("Shape", value), self.number(axis)), self.number([0]))


def write_step(path: Path) -> None:
    """Writes four layers: hidden state `[batch, rows, 896]` and cached keys and values in and out; no embedding, no vocabulary."""
    graph = _Graph()
    hidden, cos_sin = "hidden", _turns(graph)
    mask, presents = _mask(graph), []
    for layer in range(_LAYERS):
        attended, present = _attention(graph, _normalized(graph, hidden), layer, cos_sin, mask)
        hidden = graph.op("Add", hidden, attended)
        hidden = graph.op("Add", hidden, _gated(graph, _normalized(graph, hidden)))
        presents += present
    _save(path, graph, hidden, presents)


def step_feeds() -> Iterator[tuple[str, Mapping[str, np.ndarray[Any, Any]]]]:
    """One new token after 512 cached ones, for one sequence and for several at once, each with its name."""
    for batch, label in ((1, "one sequence"), (_MANY, "eight sequences")):
        generator = np.random.default_rng(1)
        shapes = {"hidden": (batch, 1, _WIDTH)} | dict.fromkeys(_cache("past"), (batch, _SHARED_HEADS, _PAST, _HEAD))
        yield label, {name: generator.standard_normal(shape, np.float32) for name, shape in shapes.items()}


def _cache(when: str) -> list[str]:
    return [f"{when}.{layer}.{kind}" for layer in range(_LAYERS) for kind in ("key", "value")]


def _normalized(graph: _Graph, x: str) -> str:
    mean = graph.op("ReduceMean", graph.op("Pow", x, graph.number(2, np.float32)), axes=[-1])
    root = graph.op("Sqrt", graph.op("Add", mean, graph.number(_EPSILON, np.float32)))
    scaled = graph.op("Mul", x, graph.op("Div", graph.number(1, np.float32), root))
    return graph.op("Mul", graph.number(1 + graph.generator.standard_normal(_WIDTH) / 8, np.float32), scaled)


def _turns(graph: _Graph) -> tuple[str, str]:
    """Cosine and sine `[1, 1, rows, 64]` of the new positions."""
    past, rows = graph.length("past.0.key", 2), graph.length("hidden", 1)
    place = graph.op("Add", _range(graph, rows), past)
    column = graph.op("Cast", graph.op("Unsqueeze", graph.op("Unsqueeze", place, graph.number([0])), graph.number([2])), to=_FLOAT)
    angle = graph.op("Mul", column, graph.number(_BASE ** -(np.arange(0, _HEAD, 2) / _HEAD), np.float32))
    both = graph.op("Concat", angle, angle, axis=-1)
    cos, sin = (graph.op("Unsqueeze", graph.op(kind, both), graph.number([1])) for kind in ("Cos", "Sin"))
    return cos, sin


def _range(graph: _Graph, length: str) -> str:
    return graph.op("Range", graph.number(0), graph.op("Squeeze", length), graph.number(1))


def _mask(graph: _Graph) -> str:
    """What is added to the scores `[1, 1, rows, keys]`: a key counts where it is not later than the query."""
    past, rows = graph.length("past.0.key", 2), graph.length("hidden", 1)
    keys = graph.op("Unsqueeze", _range(graph, graph.op("Add", past, rows)), graph.number([0, 1, 2]))
    queries = graph.op("Unsqueeze", graph.op("Add", _range(graph, rows), past), graph.number([0, 1, 3]))
    zero, lowest = graph.number(0, np.float32), graph.number(np.finfo(np.float32).min, np.float32)
    return graph.op("Where", graph.op("LessOrEqual", keys, queries), zero, lowest)


def _projected(graph: _Graph, x: str, heads: int) -> str:
    """Query, key or value `[batch, heads, rows, 64]`."""
    width = heads * _HEAD
    bias = graph.number(graph.generator.standard_normal(width), np.float32)
    biased = graph.op("Add", bias, graph.op("MatMul", x, graph.weight(_WIDTH, width)))
    shape = graph.op("Concat", graph.length(x, 0), graph.length(x, 1), graph.number([-1]), graph.number([_HEAD]), axis=0)
    return graph.op("Transpose", graph.op("Reshape", biased, shape), perm=[0, 2, 1, 3])


def _turned(graph: _Graph, x: str, cos_sin: tuple[str, str]) -> str:
    axis, half, end = graph.number([3]), graph.number([_HEAD // 2]), graph.number([2**63 - 1])
    first, second = graph.op("Slice", x, graph.number([0]), half, axis), graph.op("Slice", x, half, end, axis)
    crossed = graph.op("Concat", graph.op("Neg", second), first, axis=-1)
    return graph.op("Add", graph.op("Mul", x, cos_sin[0]), graph.op("Mul", crossed, cos_sin[1]))


def _repeated(graph: _Graph, x: str) -> str:
    """Keys or values, each head for all heads of queries that share it."""
    batch, keys = graph.length(x, 0), graph.length(x, 2)
    heads, group, width = graph.number([_SHARED_HEADS]), graph.number([_HEADS // _SHARED_HEADS]), graph.number([_HEAD])
    copies = graph.op("Expand", graph.op("Unsqueeze", x, graph.number([2])), graph.op("Concat", batch, heads, group, keys, width, axis=0))
    return graph.op("Reshape", copies, graph.op("Concat", batch, graph.number([_HEADS]), keys, width, axis=0))


def _attention(graph: _Graph, x: str, layer: int, cos_sin: tuple[str, str], mask: str) -> tuple[str, list[str]]:
    query = _turned(graph, _projected(graph, x, _HEADS), cos_sin)
    key = _turned(graph, _projected(graph, x, _SHARED_HEADS), cos_sin)
    value = _projected(graph, x, _SHARED_HEADS)
    present = [graph.op("Concat", f"past.{layer}.{kind}", new, axis=-2) for kind, new in (("key", key), ("value", value))]
    keys, values = (_repeated(graph, cached) for cached in present)
    factor = graph.number(_HEAD**-0.25, np.float32)
    across = graph.op("Mul", graph.op("Transpose", keys, perm=[0, 1, 3, 2]), factor)
    scores = graph.op("Add", graph.op("MatMul", graph.op("Mul", query, factor), across), mask)
    read = graph.op("MatMul", graph.op("Softmax", scores, axis=-1), values)
    flat = graph.op("Concat", graph.length(x, 0), graph.length(x, 1), graph.number([_WIDTH]), axis=0)
    joined = graph.op("Reshape", graph.op("Transpose", read, perm=[0, 2, 1, 3]), flat)
    return graph.op("MatMul", joined, graph.weight(_WIDTH, _WIDTH)), present


def _gated(graph: _Graph, x: str) -> str:
    gate, up = (graph.op("MatMul", x, graph.weight(_WIDTH, _INNER)) for _ in range(2))
    return graph.op("MatMul", graph.op("Mul", graph.op("Mul", gate, graph.op("Sigmoid", gate)), up), graph.weight(_INNER, _WIDTH))


def _save(path: Path, graph: _Graph, hidden: str, presents: list[str]) -> None:
    for made, name in zip((hidden, *presents), ("hidden_out", *_cache("present")), strict=True):
        graph.op("Identity", made)
        graph.nodes[-1].output[0] = name
    states = [helper.make_tensor_value_info(name, _FLOAT, ["batch", "rows", _WIDTH]) for name in ("hidden", "hidden_out")]
    caches = [
        [helper.make_tensor_value_info(name, _FLOAT, ["batch", _SHARED_HEADS, length, _HEAD]) for name in _cache(length)]
        for length in ("past", "present")
    ]
    made = helper.make_graph(graph.nodes, "step", [states[0], *caches[0]], [states[1], *caches[1]], graph.constants)
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=8)
    path.write_bytes(model.SerializeToString())

"""Hands a model in flight to the runtime: as bytes where it is small, its weights beside the bytes or in a file where it is large."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

Array = np.ndarray[Any, Any]

IN_MEMORY_BYTES = 16 * 2**20
"""Weights up to this size travel as bytes; protobuf copies them three times on the way, so larger ones travel apart."""

_INLINE_BYTES = 1024
"""Smaller tensors stay in the model file, since the runtime's shape inference reads them there."""
_APART = "apart"
"""Where a weight lies that is no part of the bytes: there is no such file."""


@dataclass(frozen=True)
class Parts:
    """A model in two parts.

    Attributes:
        content: all but the large weights.
        weights: the large ones by name, as they lie in memory or in a file that is mapped.
    """

    content: bytes
    weights: dict[str, Array]


def weight_bytes(model: ir.Model) -> int:
    """Sum of the sizes of all initializers in bytes, subgraphs included."""
    tensors = (value.const_value for graph in model.graphs() for value in graph.initializers.values())
    return sum(tensor.nbytes for tensor in tensors if tensor is not None)


def to_bytes(model: ir.Model) -> bytes:
    """Serializes a model with all its weights inside; the model stays as it was and weights stay mapped.

    Raises:
        ValueError: the model is larger than protobuf's 2 GiB.
    """
    proto = ir.to_proto(model)
    _embed(model.graph, proto.graph)
    for function, function_proto in zip(model.functions.values(), proto.functions, strict=True):
        _embed_attributes(function, function_proto.node)
    content: bytes = proto.SerializeToString()
    return content


def to_parts(model: ir.Model) -> Parts | None:
    """Takes the large weights out of a model, without a copy; None where what stays is large: in subgraphs, or of types numpy lacks."""
    taken = {name: value for name, value in model.graph.initializers.items() if _can_go(value, model.graph)}
    rest = weight_bytes(model) - sum(value.const_value.nbytes for value in taken.values() if value.const_value is not None)
    if rest > IN_MEMORY_BYTES:
        return None
    tensors = {name: value.const_value for name, value in taken.items()}
    weights = {name: np.require(tensor.numpy(), requirements=["C", "A"]) for name, tensor in tensors.items() if tensor is not None}
    with _apart(taken.values()):
        return Parts(to_bytes(model), weights)


def to_folder(model: ir.Model) -> tempfile.TemporaryDirectory[str]:
    """Saves a model as ``model.onnx`` and ``model.data`` in a new temporary folder, which the caller owns."""
    folder = tempfile.TemporaryDirectory(prefix="graphopt-", ignore_cleanup_errors=True)
    ir.save(model, Path(folder.name) / "model.onnx", external_data="model.data", size_threshold_bytes=_INLINE_BYTES)
    return folder


def _can_go(value: ir.Value, graph: ir.Graph) -> bool:
    tensor = value.const_value
    if tensor is None or tensor.nbytes < _INLINE_BYTES or value in graph.inputs or not value.uses():
        return False  # the runtime forgets what nobody uses before it looks for what lies apart
    return tensor.dtype.itemsize >= 1 and tensor.dtype.numpy().isbuiltin == 1 and tensor.dtype != ir.DataType.STRING


@contextlib.contextmanager
def _apart(values: Iterable[ir.Value]) -> Iterator[None]:
    """Initializers that say for a while that they lie elsewhere."""
    held = [(value, value.const_value) for value in values]
    try:
        for value, tensor in held:
            assert tensor is not None, "it can go"
            shape = ir.Shape(tensor.shape.numpy())
            value.const_value = ir.ExternalTensor(_APART, 0, tensor.nbytes, tensor.dtype, shape=shape, name=value.name or "")
        yield
    finally:
        for value, tensor in held:
            value.const_value = tensor


def _embed(graph: ir.Graph, proto: onnx.GraphProto) -> None:
    for tensor_proto in proto.initializer:
        tensor = graph.initializers[tensor_proto.name].const_value
        if isinstance(tensor, ir.ExternalTensor) and tensor.location != _APART:
            _inline(tensor, tensor_proto)
    _embed_attributes(graph, proto.node)


def _embed_attributes(nodes: Iterable[ir.Node], protos: Iterable[onnx.NodeProto]) -> None:
    for node, node_proto in zip(nodes, protos, strict=True):
        for attribute_proto in node_proto.attribute:
            value = node.attributes[attribute_proto.name].value
            if isinstance(value, ir.Graph):
                _embed(value, attribute_proto.g)
            elif isinstance(value, ir.ExternalTensor):
                _inline(value, attribute_proto.t)
            elif attribute_proto.graphs and isinstance(value, (list, tuple)):
                for graph, graph_proto in zip(value, attribute_proto.graphs, strict=True):
                    _embed(graph, graph_proto)


def _inline(tensor: ir.ExternalTensor, proto: onnx.TensorProto) -> None:
    proto.ClearField("external_data")
    proto.data_location = onnx.TensorProto.DEFAULT
    proto.raw_data = tensor.tobytes()

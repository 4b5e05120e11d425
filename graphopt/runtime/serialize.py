"""Hands a model in flight to the runtime: as bytes where it is small, as files where it is large."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path

import onnx
import onnx_ir as ir

IN_MEMORY_BYTES = 16 * 2**20
"""Weights up to this size travel as bytes; protobuf copies them three times on the way, so larger ones are faster through a file."""

_INLINE_BYTES = 1024
"""Smaller tensors stay in the model file, since the runtime's shape inference reads them there."""


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


def to_folder(model: ir.Model) -> tempfile.TemporaryDirectory[str]:
    """Saves a model as ``model.onnx`` and ``model.data`` in a new temporary folder, which the caller owns."""
    folder = tempfile.TemporaryDirectory(prefix="graphopt-", ignore_cleanup_errors=True)
    ir.save(model, Path(folder.name) / "model.onnx", external_data="model.data", size_threshold_bytes=_INLINE_BYTES)
    return folder


def _embed(graph: ir.Graph, proto: onnx.GraphProto) -> None:
    for tensor_proto in proto.initializer:
        tensor = graph.initializers[tensor_proto.name].const_value
        if isinstance(tensor, ir.ExternalTensor):
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

"""Hands a model in flight to the runtime: as bytes where it is small, its weights beside the bytes or in files where it is large."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from graphopt.files.weights import private_map

Array = np.ndarray[Any, Any]

IN_MEMORY_BYTES = 2**20
"""Weights up to this size travel as bytes; protobuf and the runtime copy them several times on the way, so larger ones travel apart."""
_MOST_BYTES = 16 * 2**20
"""What cannot travel apart may be of this size among the bytes."""

_INLINE_BYTES = 1024
"""Smaller tensors stay in the model file, since the runtime's shape inference reads them there."""
_APART = "apart"
"""Where a weight in memory is said to lie: there is no such file."""


class _Elsewhere(ir.ExternalTensor):
    """A weight that is no part of the bytes."""


@dataclass(frozen=True)
class Parts:
    """A model in parts.

    Attributes:
        content: all but the large weights.
        weights: the large ones in memory, by name.
        folder: what the content names files of the others relative to; None where there are none. The runtime maps what it needs of
            them, and lets go of what it has packed into a form of its own.
    """

    content: bytes
    weights: dict[str, Array]
    folder: Path | None


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
    taken = {value: tensor for value in model.graph.initializers.values() if (tensor := value.const_value) and _can_go(value, model.graph)}
    if weight_bytes(model) - sum(tensor.nbytes for tensor in taken.values()) > _MOST_BYTES:
        return None
    files = {value: Path(tensor.path).resolve() for value, tensor in taken.items() if isinstance(tensor, ir.ExternalTensor)}
    folder = _common_folder(files.values())
    weights, elsewhere = dict[str, Array](), dict[ir.Value, ir.TensorProtocol]()
    for value, tensor in taken.items():
        name, location, offset = value.name or "", _APART, 0
        if folder is not None and isinstance(tensor, ir.ExternalTensor):
            location, offset = files[value].relative_to(folder).as_posix(), tensor.offset or 0
        else:
            weights[name] = np.require(tensor.numpy(), requirements=["C", "A"])
        shape = ir.Shape(tensor.shape.numpy())
        elsewhere[value] = _Elsewhere(location, offset, tensor.nbytes, tensor.dtype, shape=shape, name=name, base_dir=folder or "")
    with _standing_in(elsewhere):
        return Parts(to_bytes(model), weights, folder)


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


def _common_folder(files: Collection[Path]) -> Path | None:
    """The folder that all files lie below; None where there are none, or no such folder."""
    try:
        return Path(os.path.commonpath([file.parent for file in files])) if files else None
    except ValueError:  # on several drives
        return None


@contextlib.contextmanager
def _standing_in(tensors: Mapping[ir.Value, ir.TensorProtocol]) -> Iterator[None]:
    """Initializers that hold other tensors for a while."""
    held = {value: value.const_value for value in tensors}
    try:
        for value, tensor in tensors.items():
            value.const_value = tensor
        yield
    finally:
        for value, before in held.items():
            value.const_value = before


def _embed(graph: ir.Graph, proto: onnx.GraphProto) -> None:
    for tensor_proto in proto.initializer:
        tensor = graph.initializers[tensor_proto.name].const_value
        if isinstance(tensor, ir.ExternalTensor) and not isinstance(tensor, _Elsewhere):
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
    proto.raw_data = private_map(tensor).tobytes()

"""States: digests that tell whether a value is still computed as it was when statistics were taken of it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.files.weights import private_map
from graphopt.graph.layers import Layer, Layout

_WHOLE = 1 << 16
_PIECES = 64
_PIECE = 512


class States(Mapping[str, str]):
    """A digest for each value of a model's main graph: of the nodes that compute it, their attributes and their constants.

    Names of nodes and values do not matter, nor does what comes after the value. Of constants larger than 64 KiB, type, shape and
    64 evenly spaced pieces are read, which any quantization, pruning or rotation of them changes.
    """

    def __init__(self, model: ir.Model) -> None:
        self._versions = dict(model.opset_imports)
        self._functions = model.functions
        self._tensors: dict[int, str] = {}
        self._digests: dict[ir.Value, str] = {}
        self._values: dict[str, ir.Value] = {}
        for value in model.graph.inputs:
            self._digests[value] = _digest("input", value.name)
        self._enter(model.graph)
        for value in (*model.graph.inputs, *model.graph.initializers.values(), *(v for node in model.graph for v in node.outputs)):
            self._values[value.name or ""] = value

    def __getitem__(self, name: str) -> str:
        return self._digests[self._values[name]]

    def __iter__(self) -> Any:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def of_layer(self, layer: Layer) -> str:
        """A digest of a layer's unfolded input; the layer's weight does not matter, only how it is applied."""
        kernel = layer.stored_shape[2:] if layer.layout in (Layout.CONV, Layout.CONV_TRANSPOSE) else layer.stored_shape[:-2]
        unfolding = (layer.layout.name, layer.index, layer.groups, layer.shape[2], kernel, self._attributes(layer.node))
        return _digest("layer", self._digests[layer.input], *unfolding)

    def _enter(self, graph: ir.Graph) -> None:
        for value in graph.initializers.values():
            if value not in self._digests and value.const_value is not None:
                self._digests[value] = self._tensor(value.const_value)
        for node in graph:
            parts = self._node(node)
            for index, output in enumerate(node.outputs):
                self._digests[output] = _digest(*parts, index)

    def _node(self, node: ir.Node) -> tuple[object, ...]:
        inputs = [None if value is None else self._digests.get(value, "?") for value in node.inputs]
        function = self._functions.get(node.op_identifier())
        body = None if function is None else [(inner.op_identifier(), self._attributes(inner)) for inner in function]
        return node.op_type, node.domain, self._versions.get(node.domain), inputs, self._attributes(node), body

    def _attributes(self, node: ir.Node) -> list[tuple[str, str]]:
        return sorted((name, self._attribute(value)) for name, value in node.attributes.items())

    def _attribute(self, attribute: ir.Attr) -> str:
        value = attribute.value
        if isinstance(value, ir.Graph):
            return self._graph(value)
        if isinstance(value, ir.TensorProtocol):
            return self._tensor(value)
        if isinstance(value, (list, tuple)) and value and isinstance(value[0], ir.Graph):
            return _digest(*map(self._graph, value))
        return repr(value) if attribute.ref_attr_name is None else f"={attribute.ref_attr_name}"

    def _graph(self, graph: ir.Graph) -> str:
        for index, value in enumerate(graph.inputs):
            self._digests[value] = _digest("parameter", index)
        self._enter(graph)
        return _digest(*(self._digests.get(value, "?") for value in graph.outputs))

    def _tensor(self, tensor: ir.TensorProtocol) -> str:
        found = self._tensors.get(id(tensor))
        if found is None:
            found = self._tensors[id(tensor)] = _digest("constant", tensor.dtype, tuple(tensor.shape.numpy()), _content(tensor))
        return found


def _content(tensor: ir.TensorProtocol) -> str:
    if tensor.dtype == ir.DataType.STRING:
        return repr(tensor.numpy().tolist())
    array = (private_map(tensor) if isinstance(tensor, ir.ExternalTensor) else tensor).numpy()  # its pages go with it
    data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    if data.size > _WHOLE:
        starts = np.linspace(0, data.size - _PIECE, _PIECES).astype(np.int64)
        data = np.concatenate([data[start : start + _PIECE] for start in starts])
    return hashlib.sha256(data.tobytes()).hexdigest()


def _digest(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:24]

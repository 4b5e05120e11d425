"""Data flow: a model as nodes and the values between them, constants aside, whatever all of them are called."""

from __future__ import annotations

import functools
import hashlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from graphopt.files.weights import private_map
from graphopt.graph.view import operator_of

Place = tuple[ir.Node, int]
"""A node and the number of one of its inputs."""

_CHOSEN = 2048
"""Elements of a constant that are enough to tell it from others."""

TELLING = 16
"""Elements from which on a constant is unlikely to be the same by chance."""

_GRAPHS = frozenset({ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS})


class Flow:
    """The nodes of a model's main graph and of its subgraphs; ``Constant`` nodes are constants, not nodes.

    What a subgraph gives back counts as further inputs of the node that holds it.

    Attributes:
        model: the model; stays as it is.
        nodes: each after those that it depends on.
        inputs: of each node.
        sources: values that no node makes and that are no constants, each with what it is known by.
        sinks: outputs of the model, each with what it is known by.
        users: where each value is read.
        fed: inputs of the model, in the order by which they are known.
        outputs: of the model, likewise.
        domains: of its operators.

    Args:
        model: see above.
        like: a model to be compared with: where both have inputs (outputs) of the same names, its order is taken, else their own.
    """

    def __init__(self, model: ir.Model, like: Flow | None = None) -> None:
        self.model = model
        self.nodes = [node for node in _inner_first(model.graph) if not is_constant_node(node)]
        self.inputs: Mapping[ir.Node, Sequence[ir.Value | None]] = {node: (*node.inputs, *_given_back(node)) for node in self.nodes}
        self.fed: Sequence[ir.Value] = _numbered(
            [value for value in model.graph.inputs if value.const_value is None], like.fed if like else ()
        )
        self.outputs: Sequence[ir.Value] = _numbered(model.graph.outputs, like.outputs if like else ())
        self.domains = {"" if node.domain == "ai.onnx" else node.domain for node in self.nodes}
        self.sources: dict[ir.Value, tuple[Any, ...]] = {value: ("input", number) for number, value in enumerate(self.fed)}
        for node in self.nodes:
            for number, body in enumerate(bodies_of(node)):
                self.sources |= {inner: ("body", operator_of(node), number, index) for index, inner in enumerate(body.inputs)}
        self.sinks: dict[ir.Value, list[int]] = defaultdict(list)
        for number, value in enumerate(self.outputs):
            self.sinks[value].append(number)
        self.users: dict[ir.Value, list[Place]] = defaultdict(list)
        for node, values in self.inputs.items():
            for position, each in enumerate(values):
                if each is not None:
                    self.users[each].append((node, position))

    @functools.cache  # noqa: B019  # a flow lives as long as the comparison that asks it
    def constant(self, value: ir.Value | None) -> ir.TensorProtocol | None:
        """The tensor of a constant, or None for anything else."""
        if value is None or value in self.sources:
            return None
        return ir.convenience.get_const_tensor(value)

    @functools.cache  # noqa: B019  # as above
    def digest(self, value: ir.Value) -> bytes:
        """Tells constants apart by type, shape and content."""
        tensor = self.constant(value)
        assert tensor is not None
        return digest_of(tensor)

    @functools.cache  # noqa: B019  # as above
    def direction(self, value: ir.Value) -> np.ndarray[Any, Any]:
        """Elements of a constant, evenly chosen, as a vector of length 1: tells which of several a changed one comes from."""
        tensor = self.constant(value)
        assert tensor is not None
        if tensor.dtype == ir.DataType.STRING or tensor.size == 0:
            return np.zeros(1)
        held = private_map(tensor) if isinstance(tensor, ir.ExternalTensor) else tensor
        chosen = held.numpy().reshape(-1)[:: max(tensor.size // _CHOSEN, 1)].astype(np.float64)
        length = float(np.linalg.norm(chosen))
        return chosen / length if length and np.isfinite(length) else np.zeros_like(chosen)

    @functools.cache  # noqa: B019  # as above
    def attributes(self, node: ir.Node) -> Mapping[str, Any]:
        """What a node's attributes say, comparable, the schema's defaults filled in; subgraphs are left out."""
        own = {name: _plain(found) for name, found in node.attributes.items() if found.type not in _GRAPHS}
        domain = "" if node.domain == "ai.onnx" else node.domain
        return {**_defaults(node.op_type, domain, self.model.opset_imports.get(domain, 1)), **own}


def bodies_of(node: ir.Node) -> Iterator[ir.Graph]:
    """The subgraphs of a node, by the names of the attributes that hold them."""
    for _, found in sorted(node.attributes.items()):
        if found.type == ir.AttributeType.GRAPH:
            yield found.as_graph()
        elif found.type == ir.AttributeType.GRAPHS:
            yield from found.as_graphs()


def weights_of(flow: Flow, node: ir.Node) -> Iterator[tuple[ir.Value, ir.TensorProtocol]]:
    """The constants of a node that tell it from others."""
    for value in flow.inputs[node]:
        tensor = flow.constant(value)
        if value is not None and tensor is not None and tensor.size >= TELLING:
            yield value, tensor


def weight_type(flow: Flow, value: ir.Value) -> tuple[object, ...]:
    """Element type and shape of a constant."""
    tensor = flow.constant(value)
    return () if tensor is None else (tensor.dtype, *tensor.shape.numpy())


def is_constant_node(node: ir.Node) -> bool:
    """Whether a node does nothing but hold a constant."""
    return node.op_type == "Constant" and node.domain in ("", "ai.onnx")


def digest_of(tensor: ir.TensorProtocol) -> bytes:
    """Sixteen bytes that stand for a tensor's type, shape and content."""
    digest = hashlib.blake2b(f"{tensor.dtype}{list(tensor.shape)}".encode(), digest_size=16)
    if tensor.dtype == ir.DataType.STRING:
        digest.update(repr(tensor.numpy().tolist()).encode())
        return digest.digest()
    held = private_map(tensor) if isinstance(tensor, ir.ExternalTensor) else tensor
    digest.update(np.ascontiguousarray(held.numpy()).reshape(-1).view(np.uint8).data)
    return digest.digest()


def _inner_first(graph: ir.Graph) -> Iterator[ir.Node]:
    for node in graph:
        for body in bodies_of(node):
            yield from _inner_first(body)
        yield node


def _numbered(values: Sequence[ir.Value], like: Sequence[ir.Value]) -> Sequence[ir.Value]:
    numbers = {value.name: number for number, value in enumerate(like)}
    if numbers.keys() != {value.name for value in values}:
        return values
    return sorted(values, key=lambda value: numbers[value.name])


def _given_back(node: ir.Node) -> list[ir.Value]:
    return [value for body in bodies_of(node) for value in body.outputs]


def _plain(found: ir.Attr) -> Any:
    if found.is_ref():
        return ("reference", found.ref_attr_name)
    if found.type == ir.AttributeType.TENSOR:
        return digest_of(found.as_tensor())
    value = found.value
    return tuple(value) if isinstance(value, (list, tuple)) else value if isinstance(value, (int, float, str, bytes)) else repr(value)


@functools.cache
def _defaults(op_type: str, domain: str, opset: int) -> Mapping[str, Any]:
    if not onnx.defs.has(op_type, opset, domain):
        return {}
    schema = onnx.defs.get_schema(op_type, opset, domain)
    found = {name: ir.from_proto(each.default_value) for name, each in schema.attributes.items() if each.default_value.name}
    return {name: _plain(each) for name, each in found.items() if isinstance(each, ir.Attr)}

"""Merges what is there twice: nodes that compute the same, and initializers with the same content."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from graphopt import ledger
from graphopt.files.weights import private_map
from graphopt.graph.edits import can_stand_for, remove_node, replace_value
from graphopt.graph.view import attribute, input_of
from graphopt.ledger import Key
from graphopt.passes.base import Pass
from graphopt.passes.duplicates.share import share_transposed_tables

_DOMAINS = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft")
_RANDOM = ("Random", "Bernoulli", "Multinomial", "Dropout", "Sampling", "Sample")
_COMMUTATIVE = frozenset(("Add", "Mul", "And", "Or", "Xor", "Equal", "Max", "Min", "Sum", "BitwiseAnd", "BitwiseOr", "BitwiseXor"))
_SMALL = 64
"""Tensor attributes with more elements are told apart by identity."""
_CHUNK = 1 << 22

NodeKey = tuple[Hashable, ...]
Kind = tuple[ir.DataType, tuple[int, ...]]
TensorKey = tuple[Kind, bytes]


@dataclass(frozen=True)
class Duplicates(Pass):
    """Replaces nodes with the same operator, attributes and inputs by one, equal initializers by one, and transposed tables by one.

    Applies to deterministic operators; a subgraph may use what an outer graph has already. Exact. Linear; each weight that has
    the size of another one is read once, in pieces.
    """

    name: ClassVar[str] = "duplicates"
    steps: ClassVar[dict[str, str]] = {
        "merge-equal-initializers": "Replaces initializers of equal type, shape and bytes with one.",
        "share-transposed-tables": "Replaces an initializer that is a table of a Gather, transposed, with a Transpose of the table.",
        "merge-equal-nodes": "Replaces nodes with the same operator, attributes and inputs with one.",
    }

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Merges initializers first, so that their users can become equal."""
        merged = _merge_initializers(model.graph, {}, _candidates(model))
        shared = share_transposed_tables(model, self.name)
        return ir.passes.PassResult(model, _merge_nodes(model.graph, {}) or merged or shared)


def _merge_nodes(graph: ir.Graph, outer: dict[NodeKey, ir.Node]) -> bool:
    """Merges each node into an earlier equal one of its graph or of the graphs around it."""
    changed = False
    known = dict(outer)
    for node in graph:
        key = _node_key(node)
        first = None if key is None else known.get(key)
        if first is not None and _merge_node(node, first):
            changed = True
        elif key is not None and first is None:
            known[key] = node
        for subgraph in _subgraphs(node):
            changed |= _merge_nodes(subgraph, known)
    return changed


def _merge_node(node: ir.Node, first: ir.Node) -> bool:
    key = Key(Duplicates.name, "merge-equal-nodes", node.name or "")
    pairs = list(zip(node.outputs, first.outputs, strict=True))
    if not all(can_stand_for(old, new) for old, new in pairs) or not ledger.allow(key):
        return False
    names = [(old.name or "", new.name or "") for old, new in pairs]
    for old, new in pairs:
        replace_value(old, new)
    remove_node(node)
    merged = tuple((old, new.name or "") for (old, _), new in zip(names, first.outputs, strict=True) if old != new.name)
    ledger.record(ledger.Rewrite(key, removed=(node.name or "",), reason=f"the same as {first.name}", merged=merged))
    return True


def _node_key(node: ir.Node) -> NodeKey | None:
    """What equal nodes have in common; None for a node that must stay by itself."""
    if node.domain not in _DOMAINS or node.op_type == "Constant" or _is_random(node):
        return None
    attributes = []
    for name, item in sorted(node.attributes.items()):
        frozen = _attribute_key(item)
        if frozen is None:
            return None
        attributes.append((name, frozen))
    inputs = [id(value) for value in node.inputs]
    if node.op_type in _COMMUTATIVE:
        inputs.sort()
    return node.op_identifier(), len(node.outputs), tuple(inputs), tuple(attributes)


def _is_random(node: ir.Node) -> bool:
    if node.op_type == "Dropout" and node.domain in ("", "ai.onnx"):
        return input_of(node, 2) is not None
    if node.op_type == "BatchNormalization":
        return bool(attribute(node, "training_mode", 0))
    return any(word in node.op_type for word in _RANDOM)


def _attribute_key(item: ir.Attr) -> Hashable | None:
    """An attribute's type and value, floats bit by bit; None where it holds a graph or cannot be compared."""
    if item.is_ref() or item.value is None:
        return None
    if item.type == ir.AttributeType.TENSOR:
        tensor = item.as_tensor()
        if tensor.size > _SMALL or tensor.dtype == ir.DataType.STRING:
            return item.type, id(tensor)
        return item.type, tensor.dtype, tuple(tensor.shape), tensor.tobytes()
    if item.type in (ir.AttributeType.FLOAT, ir.AttributeType.FLOATS):
        return item.type, np.array(item.value, dtype=np.float32).tobytes()
    if item.type in (ir.AttributeType.INT, ir.AttributeType.STRING):
        return item.type, str(item.value)
    if item.type in (ir.AttributeType.INTS, ir.AttributeType.STRINGS):
        return item.type, tuple(item.value)
    return None


def _subgraphs(node: ir.Node) -> Iterator[ir.Graph]:
    for item in node.attributes.values():
        if item.type == ir.AttributeType.GRAPH:
            yield item.as_graph()
        elif item.type == ir.AttributeType.GRAPHS:
            yield from item.as_graphs()


def _merge_initializers(graph: ir.Graph, outer: dict[TensorKey, ir.Value], candidates: set[Kind]) -> bool:
    """Merges initializers into equal ones of their graph or of the graphs around it."""
    changed = False
    known = dict(outer)
    for value in list(graph.initializers.values()):
        tensor = value.const_value
        if tensor is None or value.is_graph_input() or _kind(tensor) not in candidates:
            continue
        key = (_kind(tensor), _digest(tensor))
        first = known.setdefault(key, value)
        if first is not value and not value.is_graph_output() and _merge_initializer(value, first, graph):
            changed = True
    for node in graph:
        for subgraph in _subgraphs(node):
            changed |= _merge_initializers(subgraph, known, candidates)
    return changed


def _merge_initializer(value: ir.Value, first: ir.Value, graph: ir.Graph) -> bool:
    key = Key(Duplicates.name, "merge-equal-initializers", value.name or "")
    if not _have_same_bytes(value.const_value, first.const_value) or not ledger.allow(key):
        return False
    value.replace_all_uses_with(first)
    del graph.initializers[value.name or ""]
    ledger.record(ledger.Rewrite(key, reason=f"the same as {first.name}", merged=((value.name or "", first.name or ""),)))
    return True


def _candidates(model: ir.Model) -> set[Kind]:
    """Types and shapes that more than one initializer has: only these are read. Strings are left alone."""
    tensors = [value.const_value for graph in model.graphs() for value in graph.initializers.values()]
    found = Counter(_kind(tensor) for tensor in tensors if tensor is not None and tensor.dtype != ir.DataType.STRING)
    return {kind for kind, count in found.items() if count > 1}


def _kind(tensor: ir.TensorProtocol) -> Kind:
    return ir.DataType(tensor.dtype), tuple(tensor.shape.numpy())


def _pieces(tensor: ir.TensorProtocol) -> Iterator[bytes]:
    """The content in pieces; a file map made for it is released."""
    mapped = private_map(tensor) if isinstance(tensor, ir.ExternalTensor) else None
    if tensor.dtype.bitwidth < 8:
        yield tensor.tobytes()
        return
    data = np.ascontiguousarray((mapped or tensor).numpy()).reshape(-1).view(np.uint8)
    for start in range(0, data.size, _CHUNK):
        yield data[start : start + _CHUNK].tobytes()
    del data
    if mapped is not None:
        mapped.release()


def _digest(tensor: ir.TensorProtocol) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for piece in _pieces(tensor):
        digest.update(piece)
    return digest.digest()


def _have_same_bytes(a: ir.TensorProtocol | None, b: ir.TensorProtocol | None) -> bool:
    return a is not None and b is not None and all(x == y for x, y in zip(_pieces(a), _pieces(b), strict=True))

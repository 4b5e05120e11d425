"""Every tensor of a model and the place that holds it: initializers and attributes, in subgraphs and functions too."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir

from graphopt.errors import ModelFileError

_CHUNK = 1 << 20
"""Values looked at together while a tensor is searched: bounds the memory of the search."""


@dataclass(frozen=True)
class Slot:
    """A place in a model that holds one tensor: an initializer's value, or a node's attribute.

    Attributes:
        name: the initializer's name; for an attribute, the name of the node's first output.
        holder: the value, or the node.
        attribute: the attribute's name on the node; empty for an initializer.
        index: the position in an attribute that lists tensors; None for any other.
    """

    name: str
    holder: ir.Value | ir.Node
    attribute: str = ""
    index: int | None = None

    @property
    def tensor(self) -> ir.TensorProtocol:
        """The tensor that stands here now."""
        if isinstance(self.holder, ir.Value):
            assert self.holder.const_value is not None
            return self.holder.const_value
        held: ir.TensorProtocol
        if self.index is None:
            held = self.holder.attributes[self.attribute].as_tensor()
        else:
            held = self.holder.attributes[self.attribute].as_tensors()[self.index]
        return held

    def put(self, tensor: ir.TensorProtocol) -> None:
        """Puts another tensor here; its name is left as it is."""
        if isinstance(self.holder, ir.Value):
            self.holder.const_value = tensor
            return
        old = self.holder.attributes[self.attribute]
        if self.index is None:
            self.holder.attributes[self.attribute] = ir.AttrTensor(self.attribute, tensor, doc_string=old.doc_string)
            return
        tensors = list(old.as_tensors())
        tensors[self.index] = tensor
        self.holder.attributes[self.attribute] = ir.AttrTensors(self.attribute, tensors, doc_string=old.doc_string)


def graphs_of(model: ir.Model) -> Iterator[ir.Graph | ir.Function]:
    """Yields the main graph, the functions, and every subgraph of either."""
    yield model.graph
    yield from model.graph.subgraphs()
    for function in model.functions.values():
        yield function
        yield from function.subgraphs()


def slots_of(model: ir.Model) -> Iterator[Slot]:
    """Yields every place that holds a tensor, in the model's order; initializers without data are left out."""
    for graph in graphs_of(model):
        if isinstance(graph, ir.Graph):
            for value in graph.initializers.values():
                if value.const_value is not None:
                    yield Slot(value.name or "", value)
        for node in graph:
            yield from _attribute_slots(node)


def _attribute_slots(node: ir.Node) -> Iterator[Slot]:
    for attribute in node.attributes.values():
        if attribute.is_ref() or attribute.value is None:
            continue
        name = (node.outputs[0].name if node.outputs else node.name) or ""
        if attribute.type == ir.AttributeType.TENSOR:
            yield Slot(name, node, attribute.name)
        elif attribute.type == ir.AttributeType.TENSORS:
            for index in range(len(attribute.as_tensors())):
                yield Slot(name, node, attribute.name, index)


@contextmanager
def standing_in(slots: Sequence[Slot], tensors: Sequence[ir.TensorProtocol]) -> Iterator[None]:
    """Puts other tensors into the slots for the length of a block."""
    originals = [slot.tensor for slot in slots]
    try:
        for slot, tensor in zip(slots, tensors, strict=True):
            slot.put(tensor)
        yield
    finally:
        for slot, tensor in zip(slots, originals, strict=True):
            slot.put(tensor)


def check_inline(model: ir.Model) -> None:
    """Checks that every tensor inside the model file has a known type and as much data as its shape needs.

    Raises:
        ModelFileError: naming the first tensor that does not.
    """
    for slot in slots_of(model):
        if not isinstance(slot.tensor, ir.serde.TensorProtoTensor):
            continue
        proto = slot.tensor.raw
        try:
            dtype = ir.DataType(proto.data_type)
        except ValueError as error:
            raise ModelFileError(f"tensor {slot.name!r} has the unknown element type {proto.data_type}; export the model again") from error
        size = int(np.prod(proto.dims, dtype=np.int64, initial=1))
        if dtype == ir.DataType.UNDEFINED or size < 0:
            raise ModelFileError(f"tensor {slot.name!r} has no element type or a negative length; export the model again")
        found, needed = _data_lengths(proto, dtype, size)
        if found != needed:
            raise ModelFileError(
                f"tensor {slot.name!r} holds {found} where {dtype.name}{list(proto.dims)} needs {needed}; "
                "the file is damaged or was saved without its weights"
            )


def _data_lengths(proto: onnx.TensorProto, dtype: ir.DataType, size: int) -> tuple[int, int]:
    """Length found and length needed: in bytes for raw data, else in entries of the typed field."""
    packed = (size * dtype.bitwidth + 7) // 8
    if proto.HasField("raw_data"):
        return len(proto.raw_data), packed
    fields = (proto.float_data, proto.int32_data, proto.int64_data, proto.double_data, proto.uint64_data)
    found = max(len(field) for field in fields)
    if dtype in (ir.DataType.COMPLEX64, ir.DataType.COMPLEX128):
        return found, 2 * size
    return found, packed if dtype.bitwidth in (2, 4) else size


def non_finite_weights(model: ir.Model) -> list[str]:
    """Finds constants that hold NaN, or infinities where they are no mask.

    Infinities are meant where everything else in the tensor is zero, as in an attention mask or its fill value: those are
    not reported. Data is read in pieces and file maps are released: memory stays bounded by the largest tensor.

    Returns:
        One phrase per tensor, such as ``"conv1.weight: 3 NaN, 1 infinite of 4096 values"``, in the model's order.
    """
    found = []
    for slot in slots_of(model):
        tensor = slot.tensor
        if not tensor.dtype.is_floating_point() or tensor.size == 0:
            continue
        nans, infinities, others = _count(tensor)
        if nans or (infinities and others):
            found.append(f"{slot.name}: {nans} NaN, {infinities} infinite of {tensor.size} values")
    return found


def _count(tensor: ir.TensorProtocol) -> tuple[int, int, int]:
    """Counts NaNs, infinities and finite values other than zero."""
    mapped: ir.ExternalTensor | None = None
    if isinstance(tensor, ir.ExternalTensor):
        tensor = mapped = private_map(tensor)
    nans = infinities = others = 0
    for piece in _pieces(tensor.numpy().reshape(-1)):
        finite = np.isfinite(piece)
        if not finite.all():
            nan = int(np.isnan(piece).sum())
            nans += nan
            infinities += piece.size - int(finite.sum()) - nan
        if not others:
            others = int(np.count_nonzero(piece[finite]))
        del piece
    if mapped is not None:
        mapped.release()
    return nans, infinities, others


def _pieces(values: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, values.size, _CHUNK):
        yield values[start : start + _CHUNK]


def private_map(tensor: ir.ExternalTensor) -> ir.ExternalTensor:
    """Another view of the same stored data, whose file map can be released without regard to who else reads the tensor."""
    return ir.ExternalTensor(
        tensor.location,
        tensor.offset,
        tensor.length,
        tensor.dtype,
        shape=ir.Shape(tensor.shape),
        name=tensor.name,
        base_dir=tensor.base_dir,
    )


def in_memory(tensor: ir.ExternalTensor) -> ir.TensorProtocol:
    """A copy of stored data that needs its file no more."""
    mapped = private_map(tensor)
    values = mapped.numpy().copy()
    mapped.release()
    return ir.Tensor(values, dtype=tensor.dtype, name=tensor.name, doc_string=tensor.doc_string, metadata_props=dict(tensor.metadata_props))


def stored_slots(model: ir.Model) -> Iterator[tuple[Slot, ir.ExternalTensor]]:
    """Yields the places whose tensors lie in data files, with these tensors."""
    for slot in slots_of(model):
        tensor = slot.tensor
        if isinstance(tensor, ir.ExternalTensor):
            yield slot, tensor

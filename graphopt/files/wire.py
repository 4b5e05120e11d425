"""A model file with its weights inside, written piece by piece: memory stays bounded by the largest tensor.

Protobuf builds a whole message in memory before it writes it, two to three times the model's size in all. Here the message
without its large initializers is built as usual, and their bytes are put where protobuf would have put them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import onnx
import onnx_ir as ir

from graphopt.errors import ModelFileError
from graphopt.files.atomic import PendingFile
from graphopt.files.external import THRESHOLD, write_tensor
from graphopt.files.weights import Slot, in_memory, standing_in, stored_slots

LIMIT = (1 << 31) - 1
"""Bytes that a protobuf message, and so a model file, may have."""

_GRAPH, _INITIALIZER, _RAW_DATA = 7, 5, 9
"""Numbers of the fields ``ModelProto.graph``, ``GraphProto.initializer`` and ``TensorProto.raw_data``."""


def write_inline(model: ir.Model, file: PendingFile) -> None:
    """Writes a model with all of its weights inside.

    Args:
        model: stays as it is.
        file: where the bytes go.

    Raises:
        ModelFileError: the file would pass the 2 GiB that protobuf allows, or a tensor gave another number of bytes than its
            type and shape promise.
    """
    streamed = [slot for value in model.graph.initializers.values() if _is_streamed(slot := Slot(value.name or "", value))]
    # The stand-ins have no data, so that building the message costs nothing.
    stand_ins = [ir.ExternalTensor("", None, None, s.tensor.dtype, shape=ir.Shape(s.tensor.shape.numpy()), name=s.name) for s in streamed]
    tensors = {slot.name: slot.tensor for slot in streamed}
    placed = set(streamed)
    others = [(slot, tensor) for slot, tensor in stored_slots(model) if slot not in placed]  # in subgraphs, or small
    with standing_in([*streamed, *(slot for slot, _ in others)], [*stand_ins, *(in_memory(tensor) for _, tensor in others)]):
        proto = to_message(model)
    pieces = _initializers(proto, tensors)
    graph_head, graph_tail = _split(proto.graph, _INITIALIZER)
    proto.ClearField("graph")
    head, tail = _split(proto, _GRAPH)
    graph_size = len(graph_head) + len(graph_tail) + sum(_length(piece) for piece in pieces)
    size = len(head) + len(tail) + graph_size
    if size + 16 > LIMIT:
        raise ModelFileError(f"{file.name}: {size} bytes are more than a single model file can hold; keep the weights as external data")
    file.write(head + _prefix(_GRAPH, graph_size) + graph_head)
    for start, tensor, end in pieces:
        file.write(start)
        if tensor is not None:
            write_tensor(tensor, file)
        file.write(end)
    file.write(graph_tail + tail)


def to_message(model: ir.Model) -> onnx.ModelProto:
    """The model as protobuf has it, without what goes without saying: types of initializers, and the name of the standard domain."""
    proto = ir.to_proto(model)
    for imported in (*proto.opset_import, *(each for function in proto.functions for each in function.opset_import)):
        if not imported.domain:
            imported.ClearField("domain")
    initializers = {tensor.name for tensor in proto.graph.initializer}
    kept = [info for info in proto.graph.value_info if info.name not in initializers or info.metadata_props or info.doc_string]
    proto.graph.ClearField("value_info")
    proto.graph.value_info.extend(kept)
    return proto


_Piece = tuple[bytes, ir.TensorProtocol | None, bytes]
"""An initializer: the bytes before its data, the tensor that gives the data, the bytes after it."""


def _is_streamed(slot: Slot) -> bool:
    if not isinstance(slot.holder, ir.Value) or slot.holder.const_value is None:
        return False
    tensor = slot.tensor
    if tensor.dtype == ir.DataType.STRING or tensor.nbytes <= THRESHOLD:
        return False
    # Typed fields (float_data and the like) stay as they came.
    return not isinstance(tensor, ir.serde.TensorProtoTensor) or tensor.raw.HasField("raw_data")


def _initializers(proto: onnx.ModelProto, tensors: Mapping[str, ir.TensorProtocol]) -> list[_Piece]:
    """The initializers' bytes, in order; takes them out of the message."""
    pieces: list[_Piece] = []
    for entry in proto.graph.initializer:
        tensor = tensors.get(entry.name)
        if tensor is None:
            body = entry.SerializeToString(deterministic=True)
            pieces.append((_prefix(_INITIALIZER, len(body)) + body, None, b""))
            continue
        entry.ClearField("data_location")
        entry.ClearField("external_data")
        if tensor.doc_string:
            entry.doc_string = tensor.doc_string
        for key, value in sorted(tensor.metadata_props.items()):
            entry.metadata_props.add(key=key, value=value)
        head, tail = _split(entry, _RAW_DATA)
        head += _prefix(_RAW_DATA, tensor.nbytes)
        pieces.append((_prefix(_INITIALIZER, len(head) + tensor.nbytes + len(tail)) + head, tensor, tail))
    proto.graph.ClearField("initializer")
    return pieces


def _length(piece: _Piece) -> int:
    start, tensor, end = piece
    return len(start) + (0 if tensor is None else tensor.nbytes) + len(end)


_Message = TypeVar("_Message", onnx.ModelProto, onnx.GraphProto, onnx.TensorProto)


def _split(message: _Message, number: int) -> tuple[bytes, bytes]:
    """The bytes of a message's fields below and above a field number: what protobuf writes before and after that field."""
    below, above = type(message)(), type(message)()
    below.CopyFrom(message)
    above.CopyFrom(message)
    for field, _ in message.ListFields():
        (above if field.number < number else below).ClearField(field.name)
    return below.SerializeToString(deterministic=True), above.SerializeToString(deterministic=True)


def _prefix(number: int, length: int) -> bytes:
    """The start of a field that holds ``length`` bytes."""
    encoded = bytearray([number << 3 | 2])
    while length > 0x7F:
        encoded.append(length & 0x7F | 0x80)
        length >>= 7
    encoded.append(length)
    return bytes(encoded)

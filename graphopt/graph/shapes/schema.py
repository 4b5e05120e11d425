"""Shape inference of one node by the ONNX operator schemas, for the operators without a rule of our own."""

from __future__ import annotations

from collections.abc import Sequence

import onnx
import onnx_ir as ir
import sympy

from graphopt.graph.shapes.dims import Dim
from graphopt.graph.shapes.facts import FLOATS, INTEGERS, Fact, Operands


def infer(operands: Operands) -> Sequence[Fact]:
    """The facts that the schema gives; symbolic lengths travel through it as names.

    Raises:
        Exception: whatever onnx raises where the node is not valid or its inputs are unknown.
    """
    node = operands.node
    domain = "" if node.domain == "ai.onnx" else node.domain
    if not onnx.defs.has(node.op_type, operands.opset, domain):
        return ()
    schema = onnx.defs.get_schema(node.op_type, operands.opset, domain)
    names: dict[Dim, str] = {}
    types: dict[str, onnx.TypeProto] = {}
    data: dict[str, onnx.TensorProto] = {}
    for index, fact in enumerate(operands.facts):
        if fact is None:
            continue
        types[f"input{index}"] = _type_of(fact, names)
        tensor = _tensor_of(fact)
        if tensor is not None:
            data[f"input{index}"] = tensor
    proto = ir.to_proto(node)
    del proto.input[:], proto.output[:]
    proto.input.extend("" if fact is None else f"input{index}" for index, fact in enumerate(operands.facts))
    proto.output.extend(f"output{index}" if value.name else "" for index, value in enumerate(node.outputs))
    imports = [onnx.helper.make_opsetid(domain, operands.opset)]
    found = onnx.shape_inference.infer_node_outputs(schema, proto, types, data, opset_imports=imports)
    lengths = {name: dim for dim, name in names.items()}
    return [_fact_of(found.get(name), lengths, operands) for name in (f"output{index}" for index in range(len(node.outputs)))]


def _type_of(fact: Fact, names: dict[Dim, str]) -> onnx.TypeProto:
    if fact.dtype is None:
        raise ValueError("the element type of an input is unknown")
    shape = None
    if fact.shape is not None:
        shape = [dim if isinstance(dim, int) else names.setdefault(dim, f"d{len(names)}") for dim in fact.shape]
    return onnx.helper.make_tensor_type_proto(fact.dtype.value, shape)


def _tensor_of(fact: Fact) -> onnx.TensorProto | None:
    """A wholly known content as a tensor."""
    if fact.content is None or fact.dtype is None or any(e is None or isinstance(e, sympy.Basic) for e in fact.content.flat):
        return None
    if fact.dtype not in FLOATS and fact.dtype not in INTEGERS:
        return None
    tensor: onnx.TensorProto = onnx.numpy_helper.from_array(fact.content.astype(fact.dtype.numpy()))
    return tensor


def _fact_of(found: onnx.TypeProto | None, lengths: dict[str, Dim], operands: Operands) -> Fact:
    if found is None or not found.HasField("tensor_type"):
        return Fact()
    tensor = found.tensor_type
    dtype = ir.DataType(tensor.elem_type) if tensor.elem_type else None
    if not tensor.HasField("shape"):
        return Fact(dtype)
    return Fact(dtype, tuple(_length(d, lengths, operands) for d in tensor.shape.dim))


def _length(dim: onnx.TensorShapeProto.Dimension, lengths: dict[str, Dim], operands: Operands) -> Dim:
    if dim.HasField("dim_value"):
        return int(dim.dim_value)
    known = lengths.get(dim.dim_param)
    return operands.fresh() if known is None else known

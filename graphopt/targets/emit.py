"""Quantized forms: the only writer of them, with the kernel that each is planned to run as."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.graph.edits import Builder
from graphopt.solve.grid import Quantized, into_blocks

Array = np.ndarray[Any, Any]

MATMUL_NBITS = "com.microsoft::MatMulNBits"
DYNAMIC_QUANTIZE_MATMUL = "com.microsoft::DynamicQuantizeMatMul"
DYNAMIC_QUANTIZE_LSTM = "com.microsoft::DynamicQuantizeLSTM"
GATHER_BLOCK_QUANTIZED = "com.microsoft::GatherBlockQuantized"

BITS = (2, 4, 8)
"""Bits that MatMulNBits has kernels for."""
BLOCKS = (16, 32, 64, 128, 256)
"""Blocks that MatMulNBits has kernels for."""

_DOMAIN = "com.microsoft"
_INTEGERS = 4
"""Products are summed in integers. The attribute's default dequantizes, for 2 and 8 bits at every call: far slower than float."""


def matmul_nbits(op: Builder, data: ir.Value, weight: Quantized, bias: Array | None = None, wish: str = "") -> ir.Value:
    """Makes ``data W^T + bias`` of a weight in blocks; planned as :data:`MATMUL_NBITS`.

    Args:
        op: makes nodes and constants.
        data: ``[..., K]`` float32.
        weight: one group, ``[1, N, K]``, 2, 4 or 8 bits, one scale per block of 16 to 256 inputs.
        bias: ``[N]`` float32.
        wish: the name that the weight should resemble.

    Returns:
        ``[..., N]`` float32.
    """
    scheme = weight.grid.scheme
    block = scheme.per
    _, out, width = weight.codes.shape
    assert scheme.bits in BITS, "no kernel has these bits"
    assert block in BLOCKS, "no kernel has such blocks"
    assert isinstance(block, int), "one of the blocks"
    zero_point = None
    if not scheme.symmetric:
        zero_point = op.constant(_packed(weight.grid.zero_point[0], scheme.bits), _named(wish, "zero_points"))
    inputs = [
        data,
        op.constant(pack_blocks(weight, block), _named(wish, "quantized")),
        op.constant(np.ascontiguousarray(weight.grid.scale[0], np.float32), _named(wish, "scales")),
        zero_point,
        *([None, op.constant(bias.astype(np.float32))] if bias is not None else []),
    ]
    while inputs[-1] is None:
        inputs.pop()
    attributes = {"K": width, "N": out, "bits": scheme.bits, "block_size": block, "accuracy_level": _INTEGERS}
    return op.op("MatMulNBits", *inputs, domain=_DOMAIN, **attributes)


def dynamic_quantize_matmul(op: Builder, data: ir.Value, weight: Quantized, bias: Array | None = None, wish: str = "") -> ir.Value:
    """Makes ``data W^T + bias``, the data quantized to 8 bits at each call; planned as :data:`DYNAMIC_QUANTIZE_MATMUL`.

    Args:
        op: makes nodes and constants.
        data: ``[..., K]`` float32.
        weight: one group, ``[1, N, K]``, symmetric, stored in int8, one positive scale per output channel.
        bias: ``[N]`` float32.
        wish: the name that the weight should resemble.

    Returns:
        ``[..., N]`` float32.
    """
    scheme = weight.grid.scheme
    assert scheme.symmetric, "unsigned weights run several times slower"
    assert scheme.per == "channel", "one scale per output channel"
    inputs = [
        data,
        op.constant(np.ascontiguousarray(weight.codes[0].T), _named(wish, "quantized")),
        op.constant(np.ascontiguousarray(weight.grid.scale[0, :, 0], np.float32), _named(wish, "scales")),
        *([None, op.constant(bias.astype(np.float32))] if bias is not None else []),
    ]
    return op.op("DynamicQuantizeMatMul", *inputs, domain=_DOMAIN)


def pack_blocks(weight: Quantized, block: int) -> Array:
    """Codes as MatMulNBits reads them: ``uint8 [N, blocks, block * bits / 8]``, the first code in the lowest bits.

    Signed codes move up by half their range, the zero point that the operator takes where none is given; the last block is filled up
    with zero points, so that what fills it weighs nothing.

    Args:
        weight: one group, ``[1, N, K]``.
        block: inputs that share a scale.
    """
    grid, width = weight.grid, weight.codes.shape[-1]
    missing = -width % block
    codes = weight.codes.astype(np.int16)
    if missing:
        last = np.broadcast_to(grid.zero_point[..., -1:], (*codes.shape[:2], missing))
        codes = np.concatenate([codes, last.astype(np.int16)], axis=2)
    parts = (codes - grid.scheme.low).reshape(codes.shape[1], -1, block)
    return _packed(parts, grid.scheme.bits)


def _packed(codes: Array, bits: int) -> Array:
    """Codes from 0 on, along the last axis, into bytes; what is missing of the last byte is 0."""
    per_byte = 8 // bits
    filled = into_blocks(codes.astype(np.uint8).reshape(1, -1, codes.shape[-1]), per_byte)
    shifts = np.arange(per_byte, dtype=np.uint8) * np.uint8(bits)
    packed: Array = np.bitwise_or.reduce(filled << shifts, axis=-1)
    return np.ascontiguousarray(packed.reshape(*codes.shape[:-1], -1))


def _named(wish: str, part: str) -> str:
    return f"{wish}/{part}" if wish else ""


def dynamic_quantize_lstm(op: Builder, node: ir.Node, weight: Quantized, recurrence: Quantized) -> Sequence[ir.Value]:
    """Makes an LSTM whose data and state are quantized to 8 bits at each step; planned as :data:`DYNAMIC_QUANTIZE_LSTM`.

    Args:
        op: makes nodes and constants.
        node: the LSTM that it replaces, data ``[steps, batch, in]``; its other inputs and its attributes are taken over.
        weight: ``W [directions, 4 * hidden, in]``, symmetric, stored in int8, one positive scale per row.
        recurrence: ``R [directions, 4 * hidden, hidden]``, likewise.

    Returns:
        As many outputs as the LSTM has.
    """
    inputs = [*node.inputs, *[None] * (8 - len(node.inputs))]
    for index, part in ((1, weight), (2, recurrence)):
        assert part.grid.scheme.symmetric, "signed weights"
        assert part.grid.scheme.per == "channel", "one scale per row"
        replaced = node.inputs[index]
        name = "" if replaced is None else replaced.name or ""
        inputs[index] = op.constant(np.ascontiguousarray(part.codes.transpose(0, 2, 1)), _named(name, "quantized"))
        scale = np.ascontiguousarray(part.grid.scale[..., 0], np.float32)
        inputs += [op.constant(scale, _named(name, "scales")), op.constant(np.zeros(scale.shape, np.int8), _named(name, "zero_points"))]
    attributes = {name: attribute for name, attribute in node.attributes.items() if name != "layout"}
    return op.ops("DynamicQuantizeLSTM", *inputs, outputs=len(node.outputs), domain=_DOMAIN, **attributes)


def stored_integers(op: Builder, codes: Array, scale: Array, wish: str = "") -> ir.Value:
    """Makes the float constant ``codes * scale`` of stored integers, which the runtime folds when it loads the model.

    Not a DequantizeLinear: that one is never folded, and where nothing fuses with it it runs at each call.

    Args:
        op: makes nodes and constants.
        codes: int8, or int4 of ``ml_dtypes`` (opset 21).
        scale: float32 that broadcasts to the shape of the codes.
        wish: the name that the constants should resemble.

    Returns:
        float32 of the shape of the codes.
    """
    cast = op.op("Cast", op.constant(codes, _named(wish, "quantized")), to=ir.DataType.FLOAT.value)
    return op.op("Mul", cast, op.constant(scale, _named(wish, "scales")))


def stored_half(op: Builder, array: Array, wish: str = "") -> ir.Value:
    """Makes a float32 constant of a stored float16 one; the runtime folds the Cast when it loads the model.

    Args:
        op: makes nodes and constants.
        array: float16.
        wish: the name that the constant should resemble.
    """
    return op.op("Cast", op.constant(array, _named(wish, "half")), to=ir.DataType.FLOAT.value)


QLINEAR_CONV = "QLinearConv"
"""A convolution of codes, as the standard defines it."""
NHWC_QLINEAR_CONV = "com.microsoft::QLinearConv"
"""What the runtime makes of it: channels last."""
QLINEAR_MATMUL = "QLinearMatMul"
QGEMM = "com.microsoft::QGemm"


def qlinear(operator: str) -> str:
    """The kernel that an operator between dequantize and quantize runs as: ``Add``, ``Mul``, ``Concat``, pools, activations."""
    return f"{_DOMAIN}::QLinear{operator}"


@dataclass(frozen=True)
class Codes:
    """Numbers as 8-bit codes: ``x = (code - zero_point) * scale``, one scale for all or, in a vector, one per index of an axis.

    Attributes:
        scale: constant, float32.
        zero_point: constant, uint8.
    """

    scale: ir.Value
    zero_point: ir.Value


def quantize(op: Builder, value: ir.Value, codes: Codes) -> ir.Value:
    """Makes the codes of a float32 value: uint8, since int8 ones lose most kernels on CPUs."""
    return op.op("QuantizeLinear", value, codes.scale, codes.zero_point)


def dequantize(op: Builder, value: ir.Value, codes: Codes, axis: int | None = None) -> ir.Value:
    """Makes the float32 value of codes; ``axis`` is that of scales in a vector."""
    return op.op("DequantizeLinear", value, codes.scale, codes.zero_point, axis=axis)


def quantized_weight(op: Builder, stored: Array, scale: Array, axis: int, wish: str = "") -> ir.Value:
    """Makes a float32 weight of constant codes, for a Conv, Gemm or MatMul between dequantize and quantize.

    Zero points are 0; QGemm wants them all the same.

    Args:
        op: makes nodes and constants.
        stored: int8, as the operator stores it.
        scale: ``[out]`` float32, positive.
        axis: of the output channels in ``stored``.
        wish: the name that the weight should resemble.
    """
    codes = op.constant(np.ascontiguousarray(stored), _named(wish, "quantized"))
    scales = op.constant(np.ascontiguousarray(scale, np.float32), _named(wish, "scales"))
    zero_points = op.constant(np.zeros(scale.shape, np.int8), _named(wish, "zero_points")) if stored.ndim == 2 else None
    return op.op("DequantizeLinear", codes, scales, *([zero_points] if zero_points else []), axis=axis)


@dataclass(frozen=True)
class PackedTable:
    """A table ``[rows, width]`` in unsigned integers, packed as GatherBlockQuantized reads it.

    Attributes:
        codes: ``uint8 [rows, width * bits / 8]``.
        scales: ``float32 [rows, blocks]``.
        width: elements of a row.
        bits: of an element.
        block: elements that share a scale.
    """

    codes: ir.Value
    scales: ir.Value
    width: int
    bits: int
    block: int


def packed_table(op: Builder, weight: Quantized, wish: str = "") -> PackedTable:
    """Makes the constants of a table.

    Args:
        op: makes nodes and constants.
        weight: one group, ``[1, rows, width]``, symmetric, 2, 4 or 8 bits, one scale per row or per block of at least 16; rows fill
            whole bytes.
        wish: the name that the constants should resemble.
    """
    scheme, width = weight.grid.scheme, weight.codes.shape[-1]
    assert scheme.symmetric, "the operator's own zero point"
    assert width * scheme.bits % 8 == 0, "rows fill whole bytes"
    block = scheme.per if isinstance(scheme.per, int) else 1 << max(4, (width - 1).bit_length())
    codes = op.constant(_packed(weight.codes[0].astype(np.int16) - scheme.low, scheme.bits), _named(wish, "quantized"))
    scales = op.constant(np.ascontiguousarray(weight.grid.scale[0], np.float32), _named(wish, "scales"))
    return PackedTable(codes, scales, width, scheme.bits, block)


def gather_block_quantized(op: Builder, table: PackedTable, indices: ir.Value) -> ir.Value:
    """Makes float32 rows of a table; planned as :data:`GATHER_BLOCK_QUANTIZED`.

    Args:
        op: makes nodes and constants.
        table: the table.
        indices: int32 or int64 of any shape, negative ones from the end.

    Returns:
        ``[*indices, width]`` float32.
    """
    attributes = {"bits": table.bits, "block_size": table.block, "gather_axis": 0, "quantize_axis": 1}
    return op.op("GatherBlockQuantized", table.codes, indices, table.scales, domain=_DOMAIN, **attributes)


def table_matmul_nbits(op: Builder, data: ir.Value, table: PackedTable, bias: ir.Value | None = None) -> ir.Value:
    """Makes ``data table^T + bias`` of a table that is also gathered from; planned as :data:`MATMUL_NBITS`.

    Args:
        op: makes nodes and constants.
        data: ``[..., width]`` float32.
        table: its blocks fill the rows.
        bias: ``[rows]`` float32.

    Returns:
        ``[..., rows]`` float32.
    """
    assert table.width % table.block == 0, "blocks fill the rows"
    rows = table.scales.const_value
    assert rows is not None, "a constant"
    shape = np.array([0, table.width // table.block, table.block * table.bits // 8], np.int64)
    blocks = op.op("Reshape", table.codes, op.constant(shape))
    inputs = [data, blocks, table.scales, *([None, None, bias] if bias is not None else [])]
    attributes = {"K": table.width, "N": int(rows.shape.numpy()[0]), "bits": table.bits, "block_size": table.block}
    return op.op("MatMulNBits", *inputs, domain=_DOMAIN, accuracy_level=_INTEGERS, **attributes)


def table_dynamic_matmul(op: Builder, data: ir.Value, table: PackedTable, bias: ir.Value | None = None) -> ir.Value:
    """Makes ``data table^T + bias`` of a table that is also gathered from; planned as :data:`DYNAMIC_QUANTIZE_MATMUL`.

    The runtime turns the unsigned table into the signed, transposed weight of the operator when it loads the model.

    Args:
        op: makes nodes and constants.
        data: ``[..., width]`` float32; quantized to 8 bits at each call.
        table: 8 bits, one positive scale per row.
        bias: ``[rows]`` float32.

    Returns:
        ``[..., rows]`` float32.
    """
    assert table.bits == 8, "stored in bytes"
    assert table.block >= table.width, "one scale per row"
    signed = op.op("Sub", op.op("Cast", table.codes, to=ir.DataType.FLOAT.value), op.constant(np.array(128, np.float32)))
    weight = op.op("Transpose", op.op("Cast", signed, to=ir.DataType.INT8.value), perm=[1, 0])
    scales = op.op("Reshape", table.scales, op.constant(np.array([-1], np.int64)))
    return op.op("DynamicQuantizeMatMul", data, weight, scales, *([None, bias] if bias is not None else []), domain=_DOMAIN)


def folded_matmul(op: Builder, data: ir.Value, weight: Quantized, bias: Array | None = None, wish: str = "") -> ir.Value:
    """Makes ``data W^T + bias`` of a weight in blocks that the runtime unpacks into float when it loads the model.

    Takes the bytes of :func:`matmul_nbits` and a float layer's time. Of operators that the runtime folds at any opset from 11 on.

    Args:
        op: makes nodes and constants.
        data: ``[..., K]`` float32.
        weight: one group, ``[1, N, K]``, 2, 4 or 8 bits, one scale per block of inputs.
        bias: ``[N]`` float32.
        wish: the name that the weight should resemble.

    Returns:
        ``[..., N]`` float32.
    """
    grid, (_, out, width) = weight.grid, weight.codes.shape
    block, per_byte = grid.scheme.block(width), 8 // grid.scheme.bits
    codes = weight.codes[0].astype(np.int16).T - grid.scheme.low
    filled = np.concatenate([codes, np.zeros((-width % (block * per_byte), out), np.int16)])
    planes = filled.reshape(per_byte, -1, out).astype(np.uint8)  # a byte holds rows that lie far apart: planes need no interleaving
    shifts = np.arange(per_byte, dtype=np.uint8)[:, None, None] * np.uint8(grid.scheme.bits)
    packed = op.constant(np.bitwise_or.reduce(planes << shifts, axis=0), _named(wish, "quantized"))
    unpacked = _unpacked(op, packed, grid.scheme.bits)
    blocks = op.op("Reshape", unpacked, op.constant(np.array([-1, block, out], np.int64)))
    missing = filled.shape[0] // block - grid.scale.shape[2]
    scale = np.pad(grid.scale[0].T, ((0, missing), (0, 0)))[:, None]
    zero_point = np.pad(grid.zero_point[0].T.astype(np.int16) - grid.scheme.low, ((0, missing), (0, 0)))[:, None].astype(np.uint8)
    if (zero_point == zero_point.flat[0]).all():
        zero_point = zero_point[:1, :, :1]
    shifted = op.op(
        "Sub",
        op.op("Cast", blocks, to=ir.DataType.FLOAT.value),
        op.op("Cast", op.constant(zero_point, _named(wish, "zero_points")), to=ir.DataType.FLOAT.value),
    )
    scaled = op.op("Mul", shifted, op.constant(np.ascontiguousarray(scale, np.float32), _named(wish, "scales")))
    matrix = op.op("Reshape", scaled, op.constant(np.array([-1, out], np.int64)))
    if filled.shape[0] > width:
        matrix = op.op("Slice", matrix, *(op.constant(np.array([number], np.int64)) for number in (0, width, 0)))
    product = op.op("MatMul", data, matrix)
    return product if bias is None else op.op("Add", product, op.constant(bias.astype(np.float32)))


def _unpacked(op: Builder, packed: ir.Value, bits: int) -> ir.Value:
    """The codes of bytes, plane after plane along the first axis, those in the lowest bits first."""
    if bits == 8:
        return packed
    shifted = [
        packed if shift == 0 else op.op("BitShift", packed, op.constant(np.array(shift, np.uint8)), direction="RIGHT")
        for shift in range(0, 8, bits)
    ]
    above = op.constant(np.array(1 << bits, np.uint8))
    return op.op("Concat", *(op.op("Mod", part, above) for part in shifted[:-1]), shifted[-1], axis=0)

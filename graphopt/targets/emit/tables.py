"""Tables that rows are gathered from, and products with them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphopt.graph.edits import Builder
from graphopt.solve.grid import Quantized
from graphopt.targets.emit.packing import DOMAIN, INTEGERS, named, packed


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
    codes = op.constant(packed(weight.codes[0].astype(np.int16) - scheme.low, scheme.bits), named(wish, "quantized"))
    scales = op.constant(np.ascontiguousarray(weight.grid.scale[0], np.float32), named(wish, "scales"))
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
    return op.op("GatherBlockQuantized", table.codes, indices, table.scales, domain=DOMAIN, **attributes)


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
    return op.op("MatMulNBits", *inputs, domain=DOMAIN, accuracy_level=INTEGERS, **attributes)


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
    return op.op("DynamicQuantizeMatMul", data, weight, scales, *([None, bias] if bias is not None else []), domain=DOMAIN)

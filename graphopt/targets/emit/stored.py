"""Weights in fewer bytes that the runtime makes float again when it loads the model."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphopt.graph.edits import Builder
from graphopt.solve.grid import Quantized
from graphopt.targets.emit.packing import Array, named


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
    cast = op.op("Cast", op.constant(codes, named(wish, "quantized")), to=ir.DataType.FLOAT.value)
    return op.op("Mul", cast, op.constant(scale, named(wish, "scales")))


def stored_half(op: Builder, array: Array, wish: str = "") -> ir.Value:
    """Makes a float32 constant of a stored float16 one; the runtime folds the Cast when it loads the model.

    Args:
        op: makes nodes and constants.
        array: float16.
        wish: the name that the constant should resemble.
    """
    return op.op("Cast", op.constant(array, named(wish, "half")), to=ir.DataType.FLOAT.value)


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
    packed = op.constant(np.bitwise_or.reduce(planes << shifts, axis=0), named(wish, "quantized"))
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
        op.op("Cast", op.constant(zero_point, named(wish, "zero_points")), to=ir.DataType.FLOAT.value),
    )
    scaled = op.op("Mul", shifted, op.constant(np.ascontiguousarray(scale, np.float32), named(wish, "scales")))
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

"""Codes in bytes, and the names of the runtime's packed operators."""

from __future__ import annotations

from typing import Any

import numpy as np

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

DOMAIN = "com.microsoft"
"""Of the runtime's own operators."""
INTEGERS = 4
"""Products are summed in integers. The attribute's default dequantizes, for 2 and 8 bits at every call: far slower than float."""


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
    return packed(parts, grid.scheme.bits)


def packed(codes: Array, bits: int) -> Array:
    """Codes from 0 on, along the last axis, into bytes; what is missing of the last byte is 0."""
    per_byte = 8 // bits
    filled = into_blocks(codes.astype(np.uint8).reshape(1, -1, codes.shape[-1]), per_byte)
    shifts = np.arange(per_byte, dtype=np.uint8) * np.uint8(bits)
    packed: Array = np.bitwise_or.reduce(filled << shifts, axis=-1)
    return np.ascontiguousarray(packed.reshape(*codes.shape[:-1], -1))


def named(wish: str, part: str) -> str:
    """The name of a part of what is wished for; none for no wish."""
    return f"{wish}/{part}" if wish else ""

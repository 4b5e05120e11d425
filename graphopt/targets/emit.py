"""Quantized forms: the only writer of them, with the kernel that each is planned to run as."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.graph.edits import Builder
from graphopt.solve.grid import Quantized, into_blocks

Array = np.ndarray[Any, Any]

MATMUL_NBITS = "com.microsoft::MatMulNBits"
DYNAMIC_QUANTIZE_MATMUL = "com.microsoft::DynamicQuantizeMatMul"

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

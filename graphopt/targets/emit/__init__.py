"""Quantized and packed forms: the only writer of them, with the kernel that each is planned to run as."""

from __future__ import annotations

from graphopt.targets.emit.codebooks import Shared, codes_per_byte, stored_codebook
from graphopt.targets.emit.integers import (
    NHWC_QLINEAR_CONV,
    QGEMM,
    QLINEAR_CONV,
    QLINEAR_MATMUL,
    Codes,
    dequantize,
    qlinear,
    quantize,
    quantized_bias,
    quantized_weight,
)
from graphopt.targets.emit.layers import dynamic_quantize_lstm, dynamic_quantize_matmul, matmul_nbits
from graphopt.targets.emit.packing import (
    BITS,
    BLOCKS,
    DYNAMIC_QUANTIZE_LSTM,
    DYNAMIC_QUANTIZE_MATMUL,
    GATHER_BLOCK_QUANTIZED,
    MATMUL_NBITS,
    pack_blocks,
)
from graphopt.targets.emit.stored import folded_matmul, stored_half, stored_integers
from graphopt.targets.emit.tables import (
    PackedTable,
    gather_block_quantized,
    packed_table,
    table_dynamic_matmul,
    table_matmul_nbits,
)

__all__ = [
    "BITS",
    "BLOCKS",
    "DYNAMIC_QUANTIZE_LSTM",
    "DYNAMIC_QUANTIZE_MATMUL",
    "GATHER_BLOCK_QUANTIZED",
    "MATMUL_NBITS",
    "NHWC_QLINEAR_CONV",
    "QGEMM",
    "QLINEAR_CONV",
    "QLINEAR_MATMUL",
    "Codes",
    "PackedTable",
    "Shared",
    "codes_per_byte",
    "dequantize",
    "dynamic_quantize_lstm",
    "dynamic_quantize_matmul",
    "folded_matmul",
    "gather_block_quantized",
    "matmul_nbits",
    "pack_blocks",
    "packed_table",
    "qlinear",
    "quantize",
    "quantized_bias",
    "quantized_weight",
    "stored_codebook",
    "stored_half",
    "stored_integers",
    "table_dynamic_matmul",
    "table_matmul_nbits",
]

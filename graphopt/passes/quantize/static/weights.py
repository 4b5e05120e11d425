"""Weights of integer layers: codes, and scales with which the bias fits into the sums."""

from __future__ import annotations

from typing import Any

import numpy as np

from graphopt.solve.grid import Grid, Quantized

Array = np.ndarray[Any, Any]

_LARGEST = float(1 << 28)
"""Sums are 32-bit integers; three bits are left for the products and for a later correction of the bias."""


def with_room(weight: Array, quantized: Quantized, bias: Array | None, input_scale: float) -> Quantized:
    """Coarser scales where the bias, in units of the sums, would leave the range of 32-bit integers.

    That happens in channels whose weights are next to zero: a batch normalization that switched them off leaves only the bias.

    Args:
        weight: ``[groups, out, in]``, what was quantized.
        quantized: symmetric, one scale per output channel.
        bias: ``[groups * out]``; None for zeros.
        input_scale: of the codes that the layer reads.
    """
    if bias is None:
        return quantized
    least = (np.abs(bias) / (input_scale * _LARGEST)).reshape(*weight.shape[:2], 1)
    is_small = quantized.grid.scale < least
    if not is_small.any():
        return quantized
    scale = np.where(is_small, least, quantized.grid.scale).astype(np.float32)
    grid = Grid(scale, quantized.grid.zero_point, quantized.grid.scheme)
    return Quantized(np.where(is_small, grid.quantize(weight), quantized.codes), grid)

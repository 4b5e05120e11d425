"""Polishing a quantized weight in the metric: other codes by coordinate descent (arXiv:2309.01885), other scales by least squares.

What GPTQ decides once, the first columns without knowing the last, is reconsidered with all others known: 5 to 20 % less error.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from graphopt.solve.choice import best_of
from graphopt.solve.column import descend_columns
from graphopt.solve.gptq import FixedGrid
from graphopt.solve.grid import Grid, Quantized, into_blocks
from graphopt.solve.metric import Metric, working_dtype

Array = np.ndarray[Any, Any]

MEMORY = 1 << 24
"""Numbers that the systems of one solve for scales may hold together."""


def polish(weight: Array, metric: Metric, quantized: Quantized, rounds: int = 2) -> Quantized:
    """Lowers the error of a quantized weight further, in rounds of new scales for the codes and new codes for the scales.

    No row's error rises. Zero points stay.

    Args:
        weight: ``[groups, out, K]``, the target.
        metric: of the layer's inputs; without a Gram matrix nothing happens.
        quantized: where to begin.
        rounds: each costs about as much as GPTQ's loop.
    """
    if metric.gram is None:
        return quantized
    target = weight.astype(working_dtype(weight))
    damped = metric.gram.astype(target.dtype)
    np.einsum("gkk->gk", damped)[...] += metric.ridge[:, None].astype(target.dtype)
    for _ in range(rounds):
        quantized = best_of(target, metric, [quantized, _fit_scales(target, damped, quantized)])
        quantized = best_of(target, metric, [quantized, _descend(target, damped, quantized)])
    return best_of(target, metric, [quantized, _fit_scales(target, damped, quantized)])


def _descend(target: Array, gram: Array, quantized: Quantized) -> Quantized:
    """Each column in turn to the best codes, given all others."""
    grid = quantized.grid
    scale, zero_point = (np.broadcast_to(part, target.shape) for part in grid.columns(target.shape[2]))
    onto = FixedGrid(target.shape, scale, zero_point, grid.scheme)
    descend_columns(target, quantized.weight.astype(target.dtype), gram, onto)
    return Quantized(np.ascontiguousarray(np.swapaxes(onto.codes, 1, 2)), grid)


def _fit_scales(target: Array, gram: Array, quantized: Quantized) -> Quantized:
    """The scales of least error for the codes: a linear system a row (one for all where a tensor has one scale)."""
    grid, width = quantized.grid, target.shape[2]
    steps = quantized.codes - grid.columns(width)[1].astype(target.dtype)
    if grid.scheme.per == "tensor":
        seen = steps @ gram
        below = float(np.sum(seen * steps, dtype=np.float64))
        if below <= 0:
            return quantized
        scale = np.full((1, 1, 1), np.sum(seen * target, dtype=np.float64) / below, np.float32)
    else:
        rows = max(1, MEMORY // max(1, target.shape[0] * grid.scale.shape[2] * max(grid.scale.shape[2], width)))
        parts = range(0, target.shape[1], rows)
        systems = [
            _solve_scales(target[:, r : r + rows], gram, steps[:, r : r + rows], grid.scale[:, r : r + rows], grid.scheme.block(width))
            for r in parts
        ]
        scale = np.concatenate(systems, axis=1)
    kept = np.sign(scale) == np.sign(grid.scale)  # a scale that changes its sign is no scale
    return Quantized(quantized.codes, Grid(np.where(kept.all(axis=2, keepdims=True), scale, grid.scale), grid.zero_point, grid.scheme))


def _solve_scales(target: Array, gram: Array, steps: Array, scale: Array, block: int) -> Array:
    """Scales ``[groups, out, blocks]`` float32 of least error for integer steps ``[groups, out, K]``."""
    width = target.shape[2]
    blocks = scale.shape[2]
    wanted = into_blocks((target @ gram) * steps, block).sum(axis=3, dtype=np.float64)
    matrix = np.empty((*wanted.shape, blocks))
    for number in range(blocks):
        part = slice(number * block, min((number + 1) * block, width))
        matrix[:, :, number] = into_blocks((steps[:, :, part] @ gram[:, part]) * steps, block).sum(axis=3, dtype=np.float64)
    # A block of zeros has no say: its scale stays.
    diagonal = np.einsum("gobb->gob", matrix)
    unused = diagonal <= 0
    wanted[unused] = scale[unused]
    diagonal[unused] = 1.0
    diagonal *= 1.0 + 1e-9
    solved: Array = np.linalg.solve(matrix, wanted[..., None])[..., 0]
    return solved.astype(np.float32)

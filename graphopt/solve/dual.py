"""Affine regression where positions are fewer than inputs: what moments would give, found among the positions.

With ``E = T - W X`` the push-through identity ``(T X^T + r W) (X X^T + r I)^-1 = W + E (X^T X + r I)^-1 X^T`` divides by a matrix of
positions by positions, and none of inputs by inputs is made.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from graphopt.solve.blas import times
from graphopt.solve.metric import ROWS, Metric
from graphopt.solve.regression import best_damping

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, eq=False)
class Pairs:
    """Inputs and wanted outputs, position by position.

    Attributes:
        inputs: ``[groups, n, K]`` float32.
        outputs: ``[groups, out, n]`` float32.
    """

    inputs: Array
    outputs: Array

    @property
    def n(self) -> int:
        """Positions."""
        return int(self.inputs.shape[1])


def regression(fit: Pairs, held: Pairs, weight: Array, *, affine: bool) -> tuple[Array, Array] | None:
    """The weight and shift that :func:`graphopt.solve.regression.regression` finds from the moments of the same positions.

    Args:
        fit: positions to fit.
        held: positions that were kept out.
        weight: ``[groups, out, K]``, the present one.
        affine: a shift may be added to the outputs; else it is zero.

    Returns:
        ``[groups, out, K]`` and ``[groups, out]``, float64; None where the present weight without a shift is no worse.
    """
    if not fit.n or not held.n:
        return None
    x, t = np.concatenate([fit.inputs, held.inputs], axis=1), np.concatenate([fit.outputs, held.outputs], axis=2)
    rows = slice(None, None, max(1, weight.shape[1] // ROWS))
    some = _missing(weight[:, rows], x, t[:, rows])
    means = x.mean(axis=1, dtype=np.float64) if affine else np.zeros((x.shape[0], x.shape[2]))
    if affine:
        x -= means[:, None].astype(x.dtype)
    kernel = times(x, x.swapaxes(1, 2)).astype(np.float64)

    seen, rest = slice(None, fit.n), slice(fit.n, None)
    near, wanted = _centred(kernel, some, _shares(x.shape[1], fit.n if affine else 0))

    def error_of(damping: float) -> float:
        found = _divided(near[:, seen, seen], wanted[:, :, seen], damping, x.shape[2])
        return _squares(wanted[:, :, rest] - times(found, near[:, seen, rest]))

    best, error = best_damping(error_of)
    if not error < _squares(some[:, :, rest]):
        return None
    shares = _shares(x.shape[1], x.shape[1] if affine else 0)
    found = _divided(*_centred(kernel, _missing(weight, x, t), shares), best, x.shape[2])
    new = weight + times(found.astype(x.dtype), x).astype(np.float64)
    return new, t @ shares - np.einsum("gok,gk->go", new, means)


def _missing(weight: Array, x: Array, t: Array) -> Array:
    """What a weight leaves of the wanted outputs: float64."""
    return t.astype(np.float64) - times(weight.astype(x.dtype), x.swapaxes(1, 2))


def _shares(positions: int, of: int) -> Array:
    """What each position has in the mean that is taken away: that of the first few, or none at all."""
    shares = np.zeros(positions)
    shares[:of] = 1.0 / max(of, 1)
    return shares


def _centred(kernel: Array, missing: Array, shares: Array) -> tuple[Array, Array]:
    """Both as they are once a mean over positions is taken from inputs and outputs."""
    if not shares.any():
        return kernel, missing
    mean = kernel @ shares
    return kernel - mean[:, :, None] - mean[:, None] + (mean @ shares)[:, None, None], missing - (missing @ shares)[:, :, None]


def _divided(kernel: Array, missing: Array, damping: float, width: int) -> Array:
    """``E (X^T X + r I)^-1``, where r is a share of the mean diagonal of ``X X^T``, which has the same trace."""
    return Metric(kernel, damping * kernel.shape[1] / width).divided(missing)


def _squares(array: Array) -> float:
    return float(np.einsum("gon,gon->", array, array))

"""Bias correction (arXiv:1906.04721): an approximation's mean error at the output, taken back by the bias."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def corrected_bias(bias: Array | None, weight: Array, approximation: Array, mean: Array, mean_now: Array | None = None) -> Array:
    """The bias with which the mean output is the original's: ``b + W mean - What mean_now``.

    Args:
        bias: ``[groups, out]``, or None for zeros.
        weight: ``[groups, out, K]``, the original.
        approximation: ``[groups, out, K]``.
        mean: ``[groups, K]``, the mean of the original inputs.
        mean_now: the mean of the inputs that the layer sees now; None where they are the same.

    Returns:
        ``[groups, out]`` float32; float64 where the weight is.
    """
    now = mean if mean_now is None else mean_now
    before = np.einsum("gok,gk->go", weight, mean, dtype=np.float64)
    after = np.einsum("gok,gk->go", approximation, now, dtype=np.float64)
    corrected: Array = before - after if bias is None else bias + before - after
    return corrected.astype(np.float64 if weight.dtype == np.float64 else np.float32)

"""Cross-layer equalization (arXiv:1906.04721): channels between two layers scaled so that both weights use one grid well."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

LIMIT = 1e4
"""Scales stay within this factor of 1."""


def equalizing_scales(produced: Array, consumed: Array) -> Array:
    """The scales after which each channel has the same range in both weights: ``sqrt(produced / consumed)``.

    The producer's rows (and its bias) are divided by them, the consumer's columns multiplied; right where what lies between is
    positively homogeneous (Relu, LeakyRelu, pooling, nothing). For chains (convolution, depthwise, convolution) call it for each
    pair in turn, with the ranges as they then are, until the scales stay near 1.

    Args:
        produced: ``[channels]``, largest magnitude in each of the producer's rows.
        consumed: ``[channels]``, largest magnitude in each of the consumer's columns.

    Returns:
        ``[channels]`` float64, positive; 1 for a channel that one of the two weights does not use.
    """
    alive = (produced > 0) & (consumed > 0)
    ratio = np.where(alive, produced, 1.0).astype(np.float64) / np.where(alive, consumed, 1.0)
    return np.clip(np.sqrt(ratio), 1 / LIMIT, LIMIT)

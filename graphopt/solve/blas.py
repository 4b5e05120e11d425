"""Products by the library that also factorizes and solves.

numpy brings a library of its own, with threads of its own, which spin for a while after each product: on few cores the next factorization
waits for them, ten times as long as it takes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.linalg import get_blas_funcs

Array = np.ndarray[Any, Any]


def times(left: Array, right: Array) -> Array:
    """``left right`` of two matrices ``[m, k]`` and ``[k, n]``, or of stacks of them: ``[m, n]`` in their common dtype."""
    if left.ndim > 2:
        return np.stack([times(*pair) for pair in zip(left, right, strict=True)])
    (multiply,) = get_blas_funcs(("gemm",), (left, right))
    product: Array = multiply(1.0, right.T, left.T).T  # rows of ours are columns of its own
    return product

"""Which operators and kernels the installed runtime has; the only user of its private registry."""

from __future__ import annotations

import functools
import importlib

from graphopt.errors import RuntimeUnavailableError

Operator = tuple[str, str]
"""Domain and operator; the standard domain is the empty string."""


@functools.cache
def registered_operators() -> frozenset[Operator]:
    """Every operator that the runtime has a schema for, whatever its version.

    ``get_all_operator_schema`` is private to onnxruntime and present from 1.20 to 1.31.

    Raises:
        RuntimeUnavailableError: ONNX Runtime is not installed.
    """
    try:
        state = importlib.import_module("onnxruntime.capi.onnxruntime_pybind11_state")
    except ImportError as error:
        raise RuntimeUnavailableError(
            "ONNX Runtime is not installed; install it: pip install graphopt[cpu], or graphopt[gpu] for CUDA"
        ) from error
    return frozenset((schema.domain, schema.name) for schema in state.get_all_operator_schema())

"""Runs with element types that NumPy lacks (bfloat16, float8), which the runtime carries but does not convert."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from typing import Any

import numpy as np


def is_extension(array: Any) -> bool:
    """Whether an array's element type comes from ml_dtypes."""
    return isinstance(array, np.ndarray) and array.dtype.isbuiltin != 1 and array.dtype.kind not in "OSU"


def is_extension_type(name: str) -> bool:
    """Whether the runtime's type `name`, such as ``tensor(bfloat16)``, has no counterpart in NumPy."""
    return name.startswith(("tensor(bfloat", "tensor(float8"))


def run(runtime: Any, native: Any, feed: Mapping[str, np.ndarray]) -> list[Any]:
    """Runs an ``InferenceSession`` by way of ``OrtValue``; outputs in its order, with the element types of ml_dtypes."""
    values = {name: _to_value(runtime.OrtValue, array) for name, array in feed.items()}
    return [_to_numpy(value) for value in native.run_with_ort_values(None, values)]


def _to_value(make: Any, array: np.ndarray) -> Any:
    import onnx_ir as ir

    if not is_extension(array):
        return make.ortvalue_from_numpy(array)
    return make.ortvalue_from_numpy_with_onnx_type(np.ascontiguousarray(array), int(ir.DataType.from_numpy(array.dtype)))


def _to_numpy(value: Any) -> Any:
    import onnx_ir as ir

    if not is_extension_type(value.data_type()):
        return value.numpy()
    dtype = ir.DataType(value.element_type()).numpy()
    content = ctypes.string_at(value.data_ptr(), int(np.prod(value.shape())) * dtype.itemsize)
    return np.frombuffer(content, dtype).reshape(value.shape())

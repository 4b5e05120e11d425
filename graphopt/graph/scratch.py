"""A folder for weights that passes compute, so that a model larger than memory can be rewritten."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

_SMALLEST = 1 << 20
"""Bytes from which a tensor goes to a file: smaller ones are not worth a file of their own."""

_folder: ContextVar[Path | None] = ContextVar("scratch", default=None)


@contextlib.contextmanager
def scratch(folder: Path | None) -> Iterator[None]:
    """Lets :func:`tensor_of` use a folder, which must outlive the models that are made meanwhile; None keeps all in memory."""
    token = _folder.set(folder)
    try:
        yield
    finally:
        _folder.reset(token)


def tensor_of(array: np.ndarray[Any, Any], name: str) -> ir.TensorProtocol:
    """A tensor that holds an array: in memory, or in a file of its own where it is large and a folder was given.

    Args:
        array: any dtype that ONNX has; elements of less than a byte are packed.
        name: of the tensor.
    """
    whole = np.ascontiguousarray(array) if array.ndim else array
    folder = _folder.get()
    if folder is None or whole.nbytes < _SMALLEST:
        return ir.tensor(whole, name=name)
    path = folder / f"{secrets.token_hex(8)}.weight"
    dtype = ir.DataType.from_numpy(whole.dtype)
    if dtype.bitwidth < 8:
        packed = ir.tensor(whole).tobytes()
        path.write_bytes(packed)
        length = len(packed)
    else:
        whole.tofile(path)
        length = whole.nbytes
    return ir.ExternalTensor(path.name, 0, length, dtype, shape=ir.Shape(whole.shape), name=name, base_dir=folder)

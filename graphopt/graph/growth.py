"""What a rewrite with new constants adds to the file."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from graphopt.graph.view import Array, View

_SLACK = 1024
"""Bytes that a rewrite which removes a node may add: about what the node and its constant took in the file."""


def grown_bytes(new: Sequence[Array | None], freed: Sequence[ir.Value | None], view: View) -> int:
    """Bytes that a rewrite adds to the file: its new constants less the old ones that only the rewritten nodes use."""
    gone = {value for value in freed if value is not None and view.is_constant(value) and view.is_private(value)}
    tensors = [ir.convenience.get_const_tensor(value) for value in gone]
    return sum(array.nbytes for array in new if array is not None) - sum(tensor.nbytes for tensor in tensors if tensor is not None)


def is_affordable(new: Sequence[Array | None], freed: Sequence[ir.Value | None], view: View) -> bool:
    """Whether a rewrite leaves the file as small as it was."""
    return grown_bytes(new, freed, view) <= _SLACK

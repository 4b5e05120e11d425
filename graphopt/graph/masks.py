"""What is certain about attention masks: whether a row can be hidden whole, and which masks are causal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphopt.graph.shapes import dims
from graphopt.graph.shapes.dims import Dim
from graphopt.graph.view import View

_VIEWS = ("Reshape", "Unsqueeze", "Squeeze", "Expand", "Identity", "Transpose", "Tile", "Slice")
"""Operators whose results hold elements of their first input and no others."""
_DEEPEST = 16
_LARGEST = 1 << 24
"""Constants with more elements are not read for a proof."""
_LARGEST_NUMBER = {ir.DataType.FLOAT16: 65504.0, ir.DataType.BFLOAT16: 3.3895e38, ir.DataType.FLOAT: 3.4028234663852886e38}
_LOWEST_MASK = {ir.DataType.FLOAT16: -32768.0, ir.DataType.BFLOAT16: -3.3895e38, ir.DataType.FLOAT: -3.4028234663852886e38}
"""What may be added to scores of ordinary size without reaching minus infinity: of float32 all, since rounding swallows the scores."""


def bounds(value: ir.Value | None, view: View, depth: int = 0) -> tuple[float, float] | None:
    """Numbers between which all elements of a value surely lie, by interval arithmetic; None where there is no such proof."""
    if value is None or depth > _DEEPEST:
        return None
    if view.is_constant(value):
        return _constant_bounds(value, view)
    node = view.producer(value, *_VIEWS, "Cast", "Where", "Gather", "Add", "Sub", "Mul")
    if view.dtype(value) == ir.DataType.BOOL:
        return 0.0, 1.0
    if node is None:
        return None
    operands = node.inputs[1:] if node.op_type == "Where" else node.inputs[:1] if node.op_type not in ("Add", "Sub", "Mul") else node.inputs
    known = [found for operand in operands if (found := bounds(operand, view, depth + 1)) is not None]
    if len(known) < len(operands):
        return None
    if node.op_type == "Where":
        return min(low for low, _ in known), max(high for _, high in known)
    if len(known) == 1:
        return _cast(known[0], view.dtype(value)) if node.op_type == "Cast" else known[0]
    (a, b), (c, d) = known
    if node.op_type == "Add":
        return a + c, b + d
    if node.op_type == "Sub":
        return a - d, b - c
    with np.errstate(all="ignore"):
        products = [float(np.float64(x) * y) for x in (a, b) for y in (c, d)]
    return (min(products), max(products)) if all(p == p for p in products) else None  # noqa: PLR0124  # NaN differs from itself


def _cast(interval: tuple[float, float], dtype: ir.DataType | None) -> tuple[float, float] | None:
    """An interval in another type: numbers beyond its largest one become infinite."""
    limit = np.inf if dtype == ir.DataType.DOUBLE else None if dtype is None else _LARGEST_NUMBER.get(dtype)
    if limit is None:  # integers wrap around
        return None
    low, high = interval
    return (low if low >= -limit else -np.inf), (high if high <= limit else np.inf)


def leaves_finite(lowest: float, dtype: ir.DataType | None) -> bool:
    """Whether scores of ordinary size stay finite when a number is added to them that is at least ``lowest``."""
    return dtype is not None and lowest >= _LOWEST_MASK.get(dtype, _LOWEST_MASK[ir.DataType.FLOAT])


def _constant_bounds(value: ir.Value, view: View) -> tuple[float, float] | None:
    tensor = ir.convenience.get_const_tensor(value)
    array = None if tensor is None or not 0 < tensor.size <= _LARGEST else view.constant(value)
    if array is None or array.dtype.kind not in "fiub":
        return None
    low, high = float(array.min()), float(array.max())
    return (low, high) if low <= high else None


def why_row_may_vanish(masks: Sequence[ir.Value], view: View) -> str:
    """Why added masks [..., queries, keys] may set a whole row to minus infinity; empty where they surely do not.

    Scores themselves are taken to be finite and far smaller than the largest number of their type.
    """
    if len(masks) == 1:
        return _why_row_may_vanish(masks[0], view)
    intervals = [bounds(mask, view) for mask in masks]
    lowest = sum(-np.inf if interval is None else interval[0] for interval in intervals)
    finite = all(leaves_finite(lowest, view.dtype(mask)) for mask in masks)
    return "" if finite else "several masks together may hide whole rows"


def _why_row_may_vanish(mask: ir.Value, view: View) -> str:
    interval = bounds(mask, view)
    if interval is not None and leaves_finite(interval[0], view.dtype(mask)):
        return ""
    if view.is_constant(mask):
        return "" if interval is not None and _each_row_has(mask, view, np.isfinite) else "the constant mask hides a whole row"
    node = view.producer(mask, "Where", "Expand")
    if node is not None and node.op_type == "Expand":
        return "it is spread out" if node.inputs[0] is None else _why_row_may_vanish(node.inputs[0], view)
    if node is None:
        return "the mask is computed in a way that is not understood"
    shown, hidden = bounds(node.inputs[1], view), bounds(node.inputs[2], view)
    condition = node.inputs[0]
    if condition is not None and shown is not None and np.isfinite(shown[0]) and shows_a_key(condition, view):
        return ""
    if hidden is not None and np.isfinite(hidden[0]) and (opposite := view.producer(condition, "Not")) is not None:
        inner = opposite.inputs[0]
        return "" if inner is not None and shows_a_key(inner, view) else "which keys it hides depends on the data"
    return "which keys the mask hides depends on the data, and it hides them with minus infinity"


def shows_a_key(condition: ir.Value, view: View) -> bool:
    """Whether each row of a condition [..., queries, keys] surely has a true element."""
    if view.is_constant(condition):
        return _each_row_has(condition, view, lambda array: array)
    return causal_offset(condition, view) is not None


def _each_row_has(value: ir.Value, view: View, test: np.ufunc | type | object) -> bool:
    array = view.constant(value)
    return array is not None and array.ndim > 0 and callable(test) and bool(np.all(np.any(test(array), axis=-1)))


def causal_offset(condition: ir.Value | None, view: View) -> Dim | None:
    """The position of the first query where a condition says "key position <= query position" with keys from 0; else None."""
    node = view.producer(condition, "LessOrEqual", "GreaterOrEqual", "Not", "Expand")
    if node is None:
        return None
    if node.op_type == "Expand":
        return causal_offset(node.inputs[0], view)
    if node.op_type == "Not":
        node = view.producer(node.inputs[0], "Greater", "Less")
        if node is None:
            return None
    keys, queries = node.inputs if node.op_type in ("LessOrEqual", "Greater") else (node.inputs[1], node.inputs[0])
    key, query = positions(keys, view), positions(queries, view)
    if key is None or query is None or key.axis != -1 or query.axis != -2 or key.first != 0 or not dims.at_least(query.first, 0):
        return None
    return query.first


@dataclass(frozen=True)
class Positions:
    """Consecutive integers along one axis.

    Attributes:
        axis: -1 or -2.
        first: the first of them.
    """

    axis: int
    first: Dim


def positions(value: ir.Value | None, view: View) -> Positions | None:
    """A value as consecutive integers along its last or last but one axis, all other axes being of length 1."""
    shape, source = view.shape(value), value
    while (step := view.producer(source, "Reshape", "Unsqueeze", "Squeeze", "Cast", "Identity")) is not None:
        source = step.inputs[0]
    first = _first_of_range(source, view)
    length = None if source is None else view.shape(source)
    if first is None or shape is None or length is None or len(length) != 1:
        return None
    padded = (1, 1, *shape)
    for axis in (-1, -2):
        if padded[axis] == length[0] and all(dim == 1 for place, dim in enumerate(padded) if place != len(padded) + axis):
            return Positions(axis, first)
    return None


def _first_of_range(value: ir.Value | None, view: View) -> Dim | None:
    node = view.producer(value, "Range", "Add")
    if node is None:
        return None
    if node.op_type == "Range":
        return _number(node.inputs[0], view) if view.scalar(node.inputs[2]) == 1 else None
    for vector, offset in (node.inputs, tuple(reversed(node.inputs))):
        shift = _number(offset, view)
        start = None if shift is None else _first_of_range(vector, view)
        if shift is not None and start is not None:
            return dims.add(start, shift)
    return None


def _number(value: ir.Value | None, view: View) -> Dim | None:
    """The content of an integer scalar, which may be an expression in the model's lengths."""
    content = None if value is None else view.shapes.content(value)
    if content is None or content.size != 1:
        return None
    number = content.reshape(-1)[0]
    return None if number is None or isinstance(number, (bool, np.generic)) else number

"""Rules that merge chains of elementwise operators with constants."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from graphopt.graph.edits import Builder
from graphopt.graph.growth import grown_bytes
from graphopt.graph.view import Array, View
from graphopt.passes.rules import Change, Miss, rule

_FLOATS = (ir.DataType.FLOAT16, ir.DataType.FLOAT, ir.DataType.DOUBLE)
_MANTISSA = {ir.DataType.FLOAT16: 10, ir.DataType.FLOAT: 23, ir.DataType.DOUBLE: 52}
"""Bits of the fraction."""
_NODE = 64
"""Bytes that a constant may add: about what the node that goes took in the file."""
_LARGEST = 1 << 20
"""Constants with more elements are left alone: merging them saves little of what reading them costs."""


def merge_added_constants(node: ir.Node, view: View) -> Change | Miss | None:
    """Replaces (x + a) + b, (x - a) + b and their kin with x + c.

    When the inner result has no other use, and neither constant is so large that adding it takes half of the digits of a number
    near 1: x + a - a may be meant to round x. Rounding-level; one node less.
    """
    return _merge(node, view, {"Add": 1, "Sub": -1}, _sum)


def merge_multiplied_constants(node: ir.Node, view: View) -> Change | Miss | None:
    """Replaces (x * a) * b, (x / a) * b and their kin with x * c, or with x / c where both divide.

    When the inner result has no other use and c is finite and nowhere newly zero. Floats only. Rounding-level; one node less.
    """
    return _merge(node, view, {"Mul": 1, "Div": -1}, _product)


Combine = Callable[[Array, Array, int, int], Array | None]


def _merge(node: ir.Node, view: View, signs: dict[str, int], combine: Combine) -> Change | Miss | None:
    outer = _operands(node, view)
    inner_node = None if outer is None else view.producer(outer[0], *signs)
    inner = None if inner_node is None else _operands(inner_node, view)
    if outer is None or inner is None or inner_node is None:
        return None
    if view.dtype(inner[0]) not in _FLOATS:
        return Miss("only floats can be regrouped")
    if not view.is_private(inner_node.outputs[0]):
        return Miss("the inner result has other uses")
    a, b, value = inner[1], outer[1], inner[0]
    sign_a, sign_b = signs[inner_node.op_type], signs[node.op_type]
    with np.errstate(all="ignore"):
        merged = combine(a, b, sign_a, sign_b)
    if merged is None or merged.nbytes > a.nbytes + b.nbytes:
        return Miss("the merged constant overflows, vanishes or is larger, or adding one of them rounds")
    divides = sign_a < 0 and sign_b < 0
    operator = next(name for name, sign in signs.items() if sign == (-1 if divides else 1))
    constants = [operand for operand in (*inner_node.inputs, *node.inputs) if view.is_constant(operand)]
    if grown_bytes([merged], constants, view) > _NODE:
        return Miss("a constant is used elsewhere too, and would be there twice")
    return Change(lambda op: _apply(op, operator, value, merged))


def _apply(op: Builder, operator: str, value: ir.Value, constant: Array) -> ir.Value:
    return op.op(operator, value, op.constant(constant))


def _sum(a: Array, b: Array, sign_a: int, sign_b: int) -> Array | None:
    """The constant c of x + c, or of x - c where both are subtracted."""
    total = a.astype(np.float64) + b if sign_a == sign_b else b.astype(np.float64) * sign_b + a.astype(np.float64) * sign_a
    dtype = ir.DataType.from_numpy(a.dtype)
    return None if rounds_when_added(a, dtype) or rounds_when_added(b, dtype) else _checked(total, a.dtype)


def rounds_when_added(constant: Array, dtype: ir.DataType) -> bool:
    """Whether a constant is so large that adding it in a float type takes half of the digits of a number near 1."""
    largest = float(np.max(np.abs(constant), initial=0))
    return largest * largest > 2.0 ** _MANTISSA.get(dtype, 8)


def _product(a: Array, b: Array, sign_a: int, sign_b: int) -> Array | None:
    """The constant c of x * c, or of x / c where both divide."""
    wide_a, wide_b = a.astype(np.float64), b.astype(np.float64)
    total = wide_a * wide_b if sign_a == sign_b else wide_b / wide_a if sign_a < 0 else wide_a / wide_b
    found = _checked(total, a.dtype)
    return None if found is None or not np.all((np.abs(found) >= np.finfo(a.dtype).tiny) | (found == 0) & (total == 0)) else found


def _checked(total: Array, dtype: np.dtype[np.generic]) -> Array | None:
    rounded = total.astype(dtype)
    return rounded if np.all(np.isfinite(rounded)) else None


def _operands(node: ir.Node, view: View) -> tuple[ir.Value, Array] | None:
    """The operand that is not constant and the constant one; for Sub and Div the constant must be the second."""
    first, second = node.inputs
    if first is None or second is None:
        return None
    if view.is_constant(second) and not view.is_constant(first):
        value, constant = first, second
    elif view.is_constant(first) and not view.is_constant(second) and node.op_type in ("Add", "Mul"):
        value, constant = second, first
    else:
        return None
    tensor = ir.convenience.get_const_tensor(constant)
    array = None if tensor is None or tensor.size > _LARGEST else view.constant(constant)
    return None if array is None else (value, array)


RULES = (
    rule(merge_added_constants, "Add", "Sub"),
    rule(merge_multiplied_constants, "Mul", "Div"),
)
"""The table of this module."""

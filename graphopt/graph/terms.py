"""Arithmetic read back from nodes: products, and polynomials with constant coefficients, in whatever order they were written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.polynomial import polynomial

from graphopt.graph.view import Array, View

_DEEPEST = 8
_HIGHEST = 3
"""Bounds of what is read: nodes on one path, and the degree of a polynomial."""

_CANCELLED = 16.0
"""How many times as large as their sum coefficients may be."""

_PRECISE = (ir.DataType.FLOAT, ir.DataType.DOUBLE)


@dataclass(frozen=True)
class Product:
    """A factor times some leaves.

    Attributes:
        factor: the product of all constants with one element.
        leaves: what is multiplied besides, left to right.
        inner: the results in between; each is used once.
    """

    factor: float
    leaves: tuple[ir.Value, ...]
    inner: tuple[ir.Value, ...]


@dataclass(frozen=True)
class Polynomial:
    """A polynomial c₀ + c₁ x + c₂ x² + c₃ x³.

    Attributes:
        coefficients: lowest degree first, no trailing zeros.
        inner: the results in between, the polynomial's own value included.
    """

    coefficients: tuple[float, ...]
    inner: tuple[ir.Value, ...]


def product_of(node: ir.Node, view: View) -> Product:
    """What a Mul, or a Div by a constant, multiplies; results that other nodes use too are leaves."""
    return _product(node.outputs[0], view, _DEEPEST)


def _product(value: ir.Value, view: View, depth: int) -> Product:
    constant = view.scalar(value)
    if constant is not None:
        return Product(constant, (), ())
    node = view.producer(value, "Mul", "Div")
    inner = () if depth == _DEEPEST else (value,)
    if node is None or depth == 0 or (inner and not view.is_private(value)):
        return Product(1.0, (value,), ())
    first, second = node.inputs
    divisor = view.scalar(second) if node.op_type == "Div" else None
    if first is None or second is None or (node.op_type == "Div" and not divisor):
        return Product(1.0, (value,), ())
    left = _product(first, view, depth - 1)
    if divisor:
        return Product(left.factor / divisor, left.leaves, left.inner + inner)
    right = _product(second, view, depth - 1)
    return Product(left.factor * right.factor, left.leaves + right.leaves, left.inner + right.inner + inner)


def polynomial_of(value: ir.Value, variable: ir.Value, view: View) -> Polynomial | None:
    """A value as a polynomial of another one; None where it is none, or none of a degree of 3 or less."""
    return _polynomial(value, variable, view, _DEEPEST)


def _polynomial(value: ir.Value | None, variable: ir.Value, view: View, depth: int) -> Polynomial | None:
    if value is variable:
        return Polynomial((0.0, 1.0), ())
    constant = view.scalar(value)
    if constant is not None:
        return Polynomial((constant,), ())
    node = view.producer(value, "Add", "Sub", "Mul", "Div", "Pow", "Neg")
    if value is None or node is None or depth == 0:
        return None
    parts = [_polynomial(operand, variable, view, depth - 1) for operand in node.inputs]
    known = [part for part in parts if part is not None]
    if len(known) < len(parts):
        return None
    coefficients = _combine(node.op_type, [np.array(part.coefficients) for part in known])
    if coefficients is None or len(coefficients) > _HIGHEST + 1:
        return None
    return Polynomial(tuple(coefficients), (*(part for each in known for part in each.inner), value))


def _combine(operator: str, parts: Sequence[Array]) -> list[float] | None:
    first, second = parts[0], parts[-1]
    alone = len(second) == 1
    result: Array | None = None
    if operator == "Add":
        result = polynomial.polyadd(first, second)
    elif operator == "Sub":
        result = polynomial.polysub(first, second)
    elif operator == "Mul":
        result = polynomial.polymul(first, second)
    elif operator == "Neg":
        result = -first
    elif operator == "Div" and alone and second[0]:
        result = first / second[0]
    elif operator == "Pow" and alone and second[0] in (1, 2, 3):
        result = polynomial.polypow(first, int(second[0]))
    if result is None or (operator in ("Add", "Sub") and _cancels(first, second, result)):
        return None
    return [float(coefficient) for coefficient in polynomial.polytrim(result)]


def _cancels(first: Array, second: Array, result: Array) -> bool:
    """Whether coefficients of a sum are far larger than what is left of them: then it is the rounding that counts."""
    before: Array = polynomial.polyadd(np.abs(first), np.abs(second))
    after = np.zeros_like(before)
    after[: len(result)] = np.abs(result)
    return bool(np.any(before > _CANCELLED * after))


def affine_base(value: ir.Value, view: View) -> ir.Value:
    """The value that another one is made of by Add, Sub, Mul and Div with constants of one element; results used elsewhere end the way."""
    for _ in range(_DEEPEST):
        node = view.producer(value, "Add", "Sub", "Mul", "Div")
        operands = [] if node is None else [operand for operand in node.inputs if operand is not None and view.scalar(operand) is None]
        if len(operands) != 1 or not view.is_private(value):
            break
        value = operands[0]
    return value


def are_close(found: Sequence[float], expected: Sequence[float], dtype: ir.DataType | None) -> bool:
    """Whether constants are the expected ones as far as the digits go that models hold them with in an element type."""
    tolerance = 1e-6 if dtype in _PRECISE else 1e-3
    return len(found) == len(expected) and bool(np.allclose(found, expected, rtol=tolerance, atol=tolerance * 1e-3))


def least_elements(value: ir.Value | None, view: View) -> int:
    """The fewest elements that a value is taken to have: a first axis of unknown length counts 1, any other one 16.

    Rules that trade one kernel for several ask it, for those pay from a certain size on only.
    """
    shape = view.shape(value) or ()
    return int(np.prod([dim if isinstance(dim, int) else 1 if axis == 0 else 16 for axis, dim in enumerate(shape)], dtype=np.int64))

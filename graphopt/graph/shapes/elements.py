"""Arithmetic on the elements of small tensors: lengths, booleans and float scalars that shapes are computed from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.graph.shapes import dims
from graphopt.graph.shapes.dims import Dim
from graphopt.graph.shapes.facts import FLOATS, INTEGERS, Content, Fact, Operands, content_of, with_content

Element = Any
"""A Dim, a bool, a numpy float scalar, or None for unknown."""


def truncating_divide(a: Dim, b: Dim) -> Dim | None:
    """ONNX's integer Div, which rounds towards zero."""
    if isinstance(a, int) and isinstance(b, int):
        return None if b == 0 else abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)
    exact = dims.divide_exactly(a, b)
    return exact if exact is not None or not dims.at_least(a, 0) else dims.floor_divide(a, b)


def modulo(a: Dim, b: Dim) -> Dim | None:
    """ONNX's integer Mod with the sign of the divisor, for positive divisors."""
    whole = dims.floor_divide(a, b)
    return None if whole is None else dims.subtract(a, dims.multiply(whole, b))


INTEGER_OPS: dict[str, Callable[[Dim, Dim], Dim | None]] = {
    "Add": dims.add,
    "Sub": dims.subtract,
    "Mul": dims.multiply,
    "Div": truncating_divide,
    "Mod": modulo,
    "Min": dims.minimum,
    "Max": dims.maximum,
}
FLOAT_OPS: dict[str, Callable[[Element, Element], Element]] = {
    "Add": lambda a, b: a + b,
    "Sub": lambda a, b: a - b,
    "Mul": lambda a, b: a * b,
    "Div": lambda a, b: a / b,
    "Pow": lambda a, b: a**b,
    "Min": np.minimum,
    "Max": np.maximum,
}
FLOAT_FUNCTIONS: dict[str, Callable[[Element], Element]] = {
    "Sqrt": np.sqrt,
    "Reciprocal": lambda a: type(a)(1) / a,
    "Floor": np.floor,
    "Ceil": np.ceil,
    "Neg": lambda a: -a,
}
BOOLEAN_OPS: dict[str, Callable[[bool, bool], bool]] = {
    "And": lambda a, b: a and b,
    "Or": lambda a, b: a or b,
    "Xor": lambda a, b: a != b,
    "Equal": lambda a, b: a == b,
}


def less(a: Dim, b: Dim) -> bool | None:
    """Whether a < b, where it is the same whatever the symbols are."""
    if dims.at_least(dims.subtract(b, a), 1):
        return True
    return False if dims.at_most(b, a) else None


def equal(a: Dim, b: Dim) -> bool | None:
    """Whether a == b, where it is the same whatever the symbols are."""
    if a == b:
        return True
    return False if less(a, b) or less(b, a) else None


def _negate(found: bool | None) -> bool | None:
    return None if found is None else not found


COMPARISONS: dict[str, Callable[[Dim, Dim], bool | None]] = {
    "Equal": equal,
    "Less": less,
    "Greater": lambda a, b: less(b, a),
    "LessOrEqual": lambda a, b: _negate(less(b, a)),
    "GreaterOrEqual": lambda a, b: _negate(less(a, b)),
}


def binary_content(op_type: str, dtype: ir.DataType | None, a: Content, b: Content) -> Content | None:
    """The elements of an elementwise operator's result, or None where the operator or the type is not followed."""
    if dtype in INTEGERS:
        low, high = INTEGERS[dtype]
        if op_type in COMPARISONS:
            return map_elements(COMPARISONS[op_type], a, b)
        if op_type in INTEGER_OPS:
            return map_elements(_within(INTEGER_OPS[op_type], low, high), a, b)
    elif dtype == ir.DataType.BOOL and op_type in BOOLEAN_OPS:
        return map_elements(BOOLEAN_OPS[op_type], a, b)
    elif dtype in FLOATS and op_type in FLOAT_OPS:
        return map_elements(FLOAT_OPS[op_type], a, b)
    return None


def unary_content(op_type: str, dtype: ir.DataType | None, a: Content) -> Content | None:
    """The elements of a unary operator's result, or None where the operator or the type is not followed."""
    if dtype in FLOATS and op_type in FLOAT_FUNCTIONS:
        return map_elements(FLOAT_FUNCTIONS[op_type], a)
    if dtype in INTEGERS and op_type == "Neg":
        return map_elements(lambda e: dims.multiply(e, -1), a)
    if dtype in INTEGERS and op_type == "Abs":
        return map_elements(lambda e: e if dims.at_least(e, 0) else abs(e) if isinstance(e, int) else None, a)
    if dtype == ir.DataType.BOOL and op_type == "Not":
        return map_elements(lambda e: not e, a)
    return a if op_type == "Identity" else None


def cast(operands: Operands) -> Fact:
    """Cast and CastLike; a symbolic element survives between integer types only."""
    to = operands.dtype(1) if operands.node.op_type == "CastLike" else ir.DataType(operands.attribute("to"))
    source, content = operands.dtype(), operands.content(0)
    if content is not None and to is not None:
        found = with_content(to, map_elements(lambda e: _cast_element(e, source, to), content))
        if found is not None:
            return found
    return Fact(to, operands.shape())


def where(operands: Operands) -> Content | None:
    """The elements of Where, as far as its condition is known or makes no difference."""
    condition, a, b = (operands.content(index) for index in range(3))
    if a is None or b is None:
        return None
    if condition is None:
        shape = operands.shape(0)
        if shape is None or not all(isinstance(d, int) and d <= 64 for d in shape):
            return None
        condition = np.full([int(d) for d in shape], None, dtype=object)
    choose = np.frompyfunc(lambda c, x, y: (x if c else y) if c is not None else x if x is not None and x == y else None, 3, 1)
    try:
        return content_of(choose(condition, a, b))
    except ValueError:
        return None


def map_elements(function: Callable[..., Element], *contents: Content) -> Content | None:
    """Applies a function with broadcasting; an unknown element gives an unknown one."""
    guarded = np.frompyfunc(lambda *elements: None if None in elements else function(*elements), len(contents), 1)
    try:
        with np.errstate(all="ignore"):
            return content_of(guarded(*contents))
    except ValueError:  # shapes that do not broadcast
        return None


def _within(function: Callable[[Dim, Dim], Dim | None], low: int, high: int) -> Callable[[Dim, Dim], Dim | None]:
    def bounded(a: Dim, b: Dim) -> Dim | None:
        found = function(a, b)
        return None if isinstance(found, int) and not low <= found <= high else found

    return bounded


def _cast_element(element: Element, source: ir.DataType | None, to: ir.DataType) -> Element:
    if to in INTEGERS:
        if source in FLOATS:
            if not np.isfinite(element):
                return None
            element = int(element)
        elif source == ir.DataType.BOOL:
            element = int(element)
        low, high = INTEGERS[to]
        return None if isinstance(element, int) and not low <= element <= high else element
    if to == ir.DataType.BOOL:
        if isinstance(element, int | np.floating):
            return bool(element)
        return True if dims.at_least(element, 1) else None
    if to in FLOATS and isinstance(element, int | np.floating):
        return to.numpy().type(element)
    return None

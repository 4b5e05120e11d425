"""Arithmetic in the form that takes least time: powers, divisions by constants, contractions, convolutions along one axis."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from graphopt.graph.contraction import Contraction, contraction_of
from graphopt.graph.edits import Builder
from graphopt.graph.forms import numbers_constant
from graphopt.graph.view import Array, View, attribute, operator_of
from graphopt.passes.rules import Change, Miss, Rule, TargetedPass, rule

_FLOATS = (ir.DataType.FLOAT16, ir.DataType.FLOAT, ir.DataType.DOUBLE)
_LARGEST = 1 << 20
"""Constants with more elements are left alone: a division saves little of what reading them costs."""

_FEWEST_CHANNELS = 32
"""Channels from which a depthwise convolution pays for two changes of shape around it, with a margin."""


def expand_power(node: ir.Node, view: View) -> Change | Miss | None:
    """Replaces Pow(x, 2) with x * x, Pow(x, 0.5) with Sqrt(x), Pow(x, -1) with Reciprocal(x), Pow(x, -0.5) with both.

    Not where a mean follows: the runtime recognises normalizations by their Pow; nor Sqrt of a mean plus an epsilon, of which
    it makes a normalization with an epsilon of its own where the sum is written the other way round. Rounding-level (-0 and -infinity
    to the power of 0.5 apart). x * x is 1.04 times as fast at 64 elements, 1.6 at 8192, 3 at 400,000; Sqrt 1.2, 6.7, 10.8;
    Reciprocal 1.2, 8.8, 19; both 1.03, 4.9, 7.
    """
    x, exponent = node.inputs[0], view.scalar(node.inputs[1])
    form = None if exponent is None else _POWERS.get(exponent)
    if x is None or form is None or view.dtype(x) not in _FLOATS:
        return None
    operators, build = form
    if view.rank(x) is None or (view.rank(node.inputs[1]) or 0) > (view.rank(x) or 0):
        return Miss("whether the exponent widens the shape is not known")
    if any(operator_of(use.node) == "ReduceMean" for use in node.outputs[0].uses()):
        return Miss("a mean follows: the runtime may recognise a normalization by this Pow")
    if "Sqrt" in operators and _is_shifted_mean(x, view):
        return Miss("with Sqrt, the runtime may make a normalization of it that has another epsilon, or does not load")
    if not all(view.runs(operator, x) for operator in operators):
        return Miss("the target has no kernel for it at this opset and element type")
    return Change(lambda op: build(op, x), kernels=(f"::{operators[-1]}",) if len(operators) > 1 else ())


def _is_shifted_mean(x: ir.Value, view: View) -> bool:
    """Whether a value is a mean plus something, as under the root of a normalization."""
    total = view.producer(x, "Add")
    return total is not None and any(view.producer(each, "ReduceMean") is not None for each in total.inputs)


def multiply_by_reciprocal(node: ir.Node, view: View) -> Change | Miss | None:
    """Replaces x / c with x * (1 / c), where c is a constant.

    Where 1 / c is a normal number; in float16 only where it is exact. Rounding-level. Not in front of Erf, where the runtime
    recognises Gelu. Equally fast at 64 elements, 1.3 times as fast at 8192, 2.1 at 400,000.
    """
    x, divisor = node.inputs
    dtype = view.dtype(x)
    if x is None or divisor is None or dtype not in _FLOATS or not view.is_constant(divisor) or view.is_constant(x):
        return None
    if any(operator_of(use.node) == "Erf" for use in node.outputs[0].uses()):
        return None
    tensor = ir.convenience.get_const_tensor(divisor)
    array = None if tensor is None or tensor.size > _LARGEST else view.constant(divisor)
    if array is None or not array.size or not (array.size == 1 or view.is_private(divisor)):
        return Miss("the divisor is large, or used elsewhere")
    inverse = _reciprocal(array)
    if inverse is None or (dtype == ir.DataType.FLOAT16 and not np.array_equal(inverse.astype(np.float64) * array, np.ones(array.shape))):
        return Miss("1 / c is zero, infinite or too inexact")
    return Change(lambda op: op.op("Mul", x, op.constant(inverse, divisor.name or "")))


def contract_with_matmul(node: ir.Node, view: View) -> Change | Miss | None:
    """Replaces Einsum of two operands, summed over one index or against a constant weight, with MatMul.

    Transposes before and after it where the order of the indices asks for them; indices of a constant weight are brought into
    order, and several indices that are summed or kept into one, at compile time. Rounding-level. 1.15 (128 rows) to 2 times
    as fast, up to 5.5 with a weight that Einsum would transpose at every run.
    """
    equation = attribute(node, "equation", "")
    if len(node.inputs) != 2 or node.inputs[0] is None or node.inputs[1] is None:
        return Miss(f"{equation} has not two operands")
    found = contraction_of(str(equation))
    if found is None:
        return Miss(f"{equation} is no sum of products over indices that both operands have")
    if not view.runs("MatMul", node.inputs[0]):
        return Miss("the target has no MatMul for its element type")
    first, second = node.inputs[0], node.inputs[1]
    if _broadcasts(found, first, second, view):
        return Miss("the ranks are not known, or an index that is summed may have length 1 in one operand")
    if view.is_constant(second) and view.is_private(second):
        return _weighted(found, first, second, view)
    if view.is_constant(first) and view.is_private(first):
        return _weighted(found.swapped, second, first, view)
    if not found.is_matrix_product:
        return Miss(f"{equation} is no MatMul up to the order of indices")
    plan, left, right = min(((found, first, second), (found.swapped, second, first)), key=lambda choice: choice[0].moves)
    return Change(lambda op: _product(op, plan, left, right), kernels=("::Transpose",) * plan.moves)


def widen_depthwise_convolution(node: ir.Node, view: View) -> Change | Miss | None:
    """Replaces a depthwise convolution along one axis with Unsqueeze, one along two axes, and Squeeze.

    From 32 channels on, where their number is a multiple of 4 and the weight is constant and nobody else's. Exact. The runtime
    has a blocked kernel for two axes only: 1.6 times as fast at 48 channels, 3.8 at 256 of length 50, 10 at 1536 of length 16.
    """
    weight, group = node.inputs[1], attribute(node, "group", 1)
    array_shape = view.static_shape(weight)
    if weight is None or group < 2 or array_shape is None or len(array_shape) != 3 or array_shape[:2] != (group, 1):
        return None
    if group < _FEWEST_CHANNELS or group % 4:
        return Miss(f"it pays from {_FEWEST_CHANNELS} channels on, and for multiples of 4")
    kernel = view.constant(weight) if view.is_private(weight) else None
    if kernel is None or not view.runs("com.microsoft.nchwc::Conv", node.inputs[0]):
        return Miss("the weight is shared or not constant, or there is no blocked kernel for its element type")
    widened: dict[str, Any] = {
        "kernel_shape": (1, array_shape[2]),
        "strides": (1, *attribute(node, "strides", (1,))),
        "dilations": (1, *attribute(node, "dilations", (1,))),
    }
    pads = attribute(node, "pads", ())
    if pads:
        widened["pads"] = (0, pads[0], 0, pads[1])

    def build(op: Builder) -> ir.Value:
        image = _with_axis(op, view, "Unsqueeze", node.inputs[0])
        result = op.copy(node, image, op.constant(kernel[:, :, None], weight.name or ""), *node.inputs[2:], **widened)[0]
        return _with_axis(op, view, "Squeeze", result)

    return Change(build, kernels=_BLOCKED)


_BLOCKED = (
    "::Unsqueeze",
    "com.microsoft.nchwc::ReorderInput",
    "com.microsoft.nchwc::Conv",
    "com.microsoft.nchwc::ReorderOutput",
    "::Squeeze",
)
"""What runs for a depthwise convolution along one axis that was given a second one."""

_POWERS: dict[float, tuple[tuple[str, ...], Callable[[Builder, ir.Value], ir.Value]]] = {
    2.0: (("Mul",), lambda op, x: op.op("Mul", x, x)),
    0.5: (("Sqrt",), lambda op, x: op.op("Sqrt", x)),
    -1.0: (("Reciprocal",), lambda op, x: op.op("Reciprocal", x)),
    -0.5: (("Sqrt", "Reciprocal"), lambda op, x: op.op("Reciprocal", op.op("Sqrt", x))),
}
"""Exponents, with the operators that take their place and how these are put together."""


def _reciprocal(array: Array) -> Array | None:
    """1 / c in the element type of c, where all of it are normal numbers."""
    with np.errstate(all="ignore"):
        inverse = (1 / array.astype(np.float64)).astype(array.dtype)
    limits = np.finfo(array.dtype)
    return inverse if np.all(np.isfinite(array)) and np.all((np.abs(inverse) >= limits.tiny) & (np.abs(inverse) <= limits.max)) else None


def _broadcasts(found: Contraction, first: ir.Value, second: ir.Value, view: View) -> bool:
    """Whether an index that is summed may have two lengths: Einsum then repeats the one of length 1."""
    one, other = view.shape(first) or (), view.shape(second) or ()
    if len(one) != len(found.first) or len(other) != len(found.second):
        return True
    lengths = [(one[found.first.index(index)], other[found.second.index(index)]) for index in found.summed]
    return any(a != b for a, b in lengths)


def _weighted(found: Contraction, data: ir.Value, weight: ir.Value, view: View) -> Change | Miss:
    """A contraction with a constant as MatMul with a matrix."""
    array = view.constant(weight)
    if array is None or found.batch or not found.summed:
        return Miss("the weight has indices in common with the result and with the other operand")
    sizes = dict(zip(found.second, array.shape, strict=True))
    rows, columns = ([sizes[index] for index in indices] for indices in (found.summed, found.right))
    order = [found.second.index(index) for index in found.summed + found.right]
    matrix = np.ascontiguousarray(array.transpose(order)).reshape(int(np.prod(rows)), int(np.prod(columns)))
    before, after = found.left + found.summed, found.left + found.right

    def ending_in(last: list[int], value: ir.Value, op: Builder) -> ir.Value:
        return op.op("Reshape", value, numbers_constant(op, [0] * len(found.left) + last))

    def build(op: Builder) -> ir.Value:
        value = _in_order(op, data, found.first, before)
        value = value if len(rows) == 1 else ending_in([matrix.shape[0]], value, op)
        value = op.op("MatMul", value, op.constant(matrix, weight.name or ""))
        value = value if len(columns) == 1 else ending_in(columns, value, op)
        return _in_order(op, value, after, found.result)

    moves = (found.first != before) + (found.result != after)
    views = (len(rows) != 1) + (len(columns) != 1)
    return Change(build, kernels=("::Transpose",) * moves + ("::Reshape",) * views)


def _product(op: Builder, found: Contraction, first: ir.Value, second: ir.Value) -> ir.Value:
    left = _in_order(op, first, found.first, found.batch + found.left + found.summed)
    right = _in_order(op, second, found.second, found.batch + found.summed + found.right)
    return _in_order(op, op.op("MatMul", left, right), found.batch + found.left + found.right, found.result)


def _in_order(op: Builder, value: ir.Value, indices: str, wanted: str) -> ir.Value:
    return value if indices == wanted else op.op("Transpose", value, perm=[indices.index(index) for index in wanted])


def _with_axis(op: Builder, view: View, operator: str, value: ir.Value | None) -> ir.Value:
    """Adds or takes away the axis before the last one of an image of one row."""
    return op.op(operator, value, axes=[2]) if view.opset < 13 else op.op(operator, value, numbers_constant(op, [2]))


@dataclass(frozen=True)
class Algebra(TargetedPass):
    """Replaces powers, divisions, contractions and depthwise convolutions with forms that take less time.

    Float operators of any opset, in subgraphs too. Exact, or at rounding level where a rule says so. Linear.
    """

    name: ClassVar[str] = "algebra"
    rules: ClassVar[tuple[Rule, ...]] = (
        rule(expand_power, "Pow"),
        rule(multiply_by_reciprocal, "Div"),
        rule(contract_with_matmul, "Einsum"),
        rule(widen_depthwise_convolution, "Conv", targets=("cpu",)),
    )

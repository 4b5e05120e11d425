"""Normalizations: recognised from primitives, and fused ones taken apart where the runtime's fused kernel is the slower one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from graphopt.graph.edits import Builder
from graphopt.graph.forms import axes_of, numbers_constant
from graphopt.graph.terms import least_elements
from graphopt.graph.view import Array, View, attribute, input_of
from graphopt.passes.rules import Change, Miss, Rule, TargetedPass, rule

_SUM_PAYS, _UNFUSED_RMS_PAYS = 256, 2048
"""Elements from which two vectorized kernels take less time than one scalar kernel, with a margin."""

_LARGEST_ONES = 1 << 14
"""Bytes that a vector of ones may take where there is no scale; equal ones of several places become one constant."""


@dataclass(frozen=True)
class _Normalized:
    """Numbers divided by the root of their mean square along the last axis.

    Attributes:
        data: what is normalized.
        epsilon: what is added to the mean square.
        centered: whether the mean is subtracted first.
        scale: what is multiplied with the inverse root already, or None.
        nodes: all that compute it.
    """

    data: ir.Value
    epsilon: float
    centered: bool
    scale: ir.Value | None
    nodes: tuple[ir.Node, ...]


@dataclass(frozen=True)
class _Inverse:
    """1 / sqrt(mean(s²) + epsilon).

    Attributes:
        squared: s.
        epsilon: what is added.
        nodes: all that compute it.
    """

    squared: ir.Value
    epsilon: float
    nodes: tuple[ir.Node, ...]


@dataclass(frozen=True)
class _Affine:
    """A normalization with what comes behind it.

    Attributes:
        core: the normalization.
        data: what is normalized, in the element type of the result.
        scale: a vector, or None.
        shift: a vector, or None.
        nodes: all that compute it.
    """

    core: _Normalized
    data: ir.Value
    scale: ir.Value | None
    shift: ir.Value | None
    nodes: tuple[ir.Node, ...]


def recognize_normalization(node: ir.Node, view: View) -> Change | Miss | None:
    """Replaces (x - mean) / sqrt(variance + epsilon) * scale + shift with LayerNormalization, x / sqrt(mean(x²) + eps) * scale with RMS.

    In every spelling (Pow or Mul for the square; Sqrt with Div, with Reciprocal, or a negative Pow; operands in any order;
    casts to float32 around it; without scale or shift) along the last axis, where nothing in between is used elsewhere. The
    second becomes RMSNormalization where the target runs it (opset 23), on ONNX Runtime at other opsets
    SimplifiedLayerNormalization. Rounding-level. 1.5 times as fast for one row of 64, 2.1 for 128 rows of 768 (RMS), where
    the runtime does not recognise the spelling itself.
    """
    found = _affine_at(node, view)
    if found is None or _is_continued(node, found, view):
        return None
    if not _is_closed(found.nodes, node):
        return Miss("a result in between is used elsewhere")
    if view.shape(found.data) is None or view.shape(found.data) != view.shape(node.outputs[0]):
        return Miss("whether a constant widens the shape is not known")
    width = (view.shape(found.data) or (None,))[-1]
    dtype = view.dtype(found.data)
    if found.scale is None and not (isinstance(width, int) and dtype is not None and width * dtype.itemsize <= _LARGEST_ONES):
        return Miss("it has no scale, and a vector of ones would be large")
    operator = _operator(found, view)
    if operator is None:
        return Miss("the target has no kernel for it at this opset and element type")

    def build(op: Builder) -> ir.Value:
        assert dtype is not None
        ones = np.ones(width if isinstance(width, int) else 0, dtype.numpy())
        scale = op.constant(ones) if found.scale is None else _flat(op, found.scale, view)
        shift = [] if found.shift is None else [_flat(op, found.shift, view)]
        return op.op(operator, found.data, scale, *shift, axis=-1, epsilon=found.core.epsilon)

    return Change(build)


def sum_before_normalization(node: ir.Node, view: View) -> Change | Miss | None:
    """Replaces Add in front of a LayerNormalization with Sum.

    From 256 elements on, where neither operand is constant. Exact. ONNX Runtime makes Add and LayerNormalization one kernel
    that is not vectorized; of Sum it does not. The two take 1.35 (one row of 384) to 8 times (128 rows of 768) less time.
    """
    total, (first, second) = node.outputs[0], node.inputs
    if not any(use.idx == 0 and view.producer(use.node.outputs[0], "LayerNormalization") is not None for use in total.uses()):
        return None
    if view.is_constant(first) or view.is_constant(second):
        return None
    if view.opset < 8 or not view.runs("Sum", total):
        return Miss("there is no Sum for it at this opset and element type")
    if least_elements(total, view) < _SUM_PAYS:
        return Miss(f"it pays from {_SUM_PAYS} elements on")
    return Change(lambda op: op.op("Sum", first, second), kernels=("::LayerNormalization",))


def split_skip_normalization(node: ir.Node, view: View) -> Change | Miss | None:
    """Replaces SkipLayerNormalization with Sum and LayerNormalization, SkipSimplifiedLayerNormalization with Add and the RMS form.

    From 256 and 2048 elements on, where mean and deviation are not asked for. Rounding-level. The fused kernels are not
    vectorized: 1.35 (one row of 384) to 8 times (128 rows of 768), and 1.1 (one row of 2048) to 2.1 times as fast.
    """
    data, skip, scale = node.inputs[:3]
    centered = node.op_type == "SkipLayerNormalization"
    shift, bias = (input_of(node, 3), input_of(node, 4)) if centered else (None, input_of(node, 3))
    least, adding = (_SUM_PAYS, "Sum") if centered else (_UNFUSED_RMS_PAYS, "Add")
    operator = "LayerNormalization" if centered else _rms_operator(data, view)
    if any(output.uses() or output.is_graph_output() for output in node.outputs[1:3]):
        return Miss("its mean or deviation is used")
    if view.opset < 8 or operator is None or not (view.runs(operator, data) and view.runs(adding, data)):
        return Miss("there are no kernels for the parts at this opset and element type")
    if least_elements(data, view) < least:
        return Miss(f"it pays from {least} elements on")

    def build(op: Builder) -> Sequence[ir.Value | None]:
        total = op.op(adding, data if bias is None else op.op("Add", data, bias), skip)
        parameters = [scale] if shift is None else [scale, shift]
        result = op.op(operator, total, *parameters, axis=-1, epsilon=attribute(node, "epsilon", 1e-12))
        return [result, None, None, total][: len(node.outputs)]

    return Change(build, kernels=(f"::{adding}", f"::{operator}"))


def split_group_normalization(node: ir.Node, view: View) -> Change | Miss | None:
    """Replaces GroupNormalization with Reshape, InstanceNormalization, Reshape, Mul and Add.

    From opset 21 on, where scale and shift are constant. Rounding-level. The runtime has no kernel for it and makes 29
    nodes of it: 2 times as fast at 64 channels of 28 x 28, 2.7 at 128 channels of 1 x 1.
    """
    x, groups, shape = node.inputs[0], attribute(node, "num_groups", 0), view.shape(node.inputs[0])
    scale, shift = (view.constant(value) for value in node.inputs[1:3])
    names = [value.name or "" for value in node.inputs if value is not None]
    if x is None or view.opset < 21 or groups < 1:
        return None
    if shape is None or len(shape) < 3 or scale is None or shift is None:
        return Miss("the rank is not known, or scale and shift are not constant")
    if not view.runs("InstanceNormalization", x):
        return Miss("there is no InstanceNormalization for its element type")
    columns = (-1,) + (1,) * (len(shape) - 2)
    known = [0, *(dim if isinstance(dim, int) else -1 for dim in shape[1:])]

    def build(op: Builder) -> ir.Value:
        target = op.op("Shape", x) if known.count(-1) > 1 else numbers_constant(op, known)
        ones = np.ones(groups, dtype=scale.dtype)
        grouped = op.op("Reshape", x, numbers_constant(op, (0, groups, -1)))
        epsilon = attribute(node, "epsilon", 1e-5)
        normal = op.op("InstanceNormalization", grouped, op.constant(ones), op.constant(ones * 0), epsilon=epsilon)
        scaled = op.op("Mul", op.op("Reshape", normal, target), op.constant(scale.reshape(columns), names[1]))
        return op.op("Add", scaled, op.constant(shift.reshape(columns), names[2]))

    return Change(build, kernels=("::InstanceNormalization",))


def _affine_at(node: ir.Node, view: View) -> _Affine | None:
    """The normalization whose result a node makes, with the vectors at the node itself."""
    if node.op_type == "Add":
        for value, shift in (node.inputs, node.inputs[::-1]):
            inner = view.producer(value, "Mul")
            scaled = None if inner is None else _affine_at(inner, view)
            if scaled is not None and scaled.core.centered and _is_vector(shift, scaled.data, view):
                return _Affine(scaled.core, scaled.data, scaled.scale, shift, (*scaled.nodes, node))
        return None
    core = _normalized_at(node, view)
    if core is not None:
        return _Affine(core, core.data, core.scale, None, core.nodes)
    for value, scale in (node.inputs, node.inputs[::-1]) if node.op_type == "Mul" else ():
        cast = view.producer(value, "Cast")
        made = view.producer(value if cast is None else cast.inputs[0], "Div", "Mul")
        core = None if made is None else _normalized_at(made, view)
        data = None if core is None else core.data if cast is None else _before_cast(core, view)
        if core is not None and core.scale is None and data is not None and _is_vector(scale, data, view):
            return _Affine(core, data, scale, None, (*core.nodes, *(() if cast is None else (cast,)), node))
    return None


def _before_cast(core: _Normalized, view: View) -> ir.Value | None:
    """What was cast to be normalized."""
    cast = view.producer(core.data, "Cast")
    return None if cast is None else cast.inputs[0]


def _normalized_at(node: ir.Node, view: View) -> _Normalized | None:
    """s / sqrt(…), s * (1 / sqrt(…)) or s * (scale / sqrt(…)), as a normalization of s or of what s was centered from."""
    for s, divisor in (node.inputs, node.inputs[::-1]) if node.op_type == "Mul" else (node.inputs,):
        scale: ir.Value | None = None
        if node.op_type == "Div":
            inverse = _inverse_of_root(divisor, view)
        else:
            inverse, scale = _inverse_with_scale(divisor, view)
        if s is None or inverse is None or inverse.squared is not s or (scale is not None and not _is_vector(scale, s, view)):
            continue
        nodes = (*inverse.nodes, node)
        centered = view.producer(s, "Sub")
        mean = None if centered is None else view.producer(centered.inputs[1], "ReduceMean")
        if centered is not None and mean is not None and mean.inputs[0] is centered.inputs[0] and _is_over_last_axis(mean, view):
            data = centered.inputs[0]
            assert data is not None
            return _Normalized(data, inverse.epsilon, True, scale, (mean, centered, *nodes))
        return _Normalized(s, inverse.epsilon, False, scale, nodes)
    return None


def _inverse_with_scale(value: ir.Value | None, view: View) -> tuple[_Inverse | None, ir.Value | None]:
    """1 / sqrt(…), or that times something."""
    direct, product = _inverse(value, view), view.producer(value, "Mul")
    if direct is not None or product is None:
        return direct, None
    for factor, scale in (product.inputs, product.inputs[::-1]):
        inverse = _inverse(factor, view)
        if inverse is not None:
            return _Inverse(inverse.squared, inverse.epsilon, (*inverse.nodes, product)), scale
    return None, None


def _inverse(value: ir.Value | None, view: View) -> _Inverse | None:
    """Reciprocal(root), 1 / root, or a negative power."""
    node = view.producer(value, "Reciprocal", "Div", "Pow")
    if node is None:
        return None
    if node.op_type == "Pow":
        return _with_node(_mean_square(node.inputs[0], view), node) if view.scalar(node.inputs[1]) == -0.5 else None
    if node.op_type == "Div" and view.scalar(node.inputs[0]) != 1:
        return None
    return _with_node(_inverse_of_root(node.inputs[-1], view), node)


def _inverse_of_root(root: ir.Value | None, view: View) -> _Inverse | None:
    """The inverse of sqrt(mean(s²) + epsilon), given that root."""
    node = view.producer(root, "Sqrt", "Pow")
    if node is None or (node.op_type == "Pow" and view.scalar(node.inputs[1]) != 0.5):
        return None
    return _with_node(_mean_square(node.inputs[0], view), node)


def _with_node(inverse: _Inverse | None, node: ir.Node) -> _Inverse | None:
    return None if inverse is None else _Inverse(inverse.squared, inverse.epsilon, (*inverse.nodes, node))


def _mean_square(value: ir.Value | None, view: View) -> _Inverse | None:
    """The s and the epsilon of mean(s²) + epsilon; exporters leave out an epsilon that is nearly zero."""
    total = view.producer(value, "Add")
    if total is None:
        return _mean_square_plus(value, 0.0, view)
    for averaged, epsilon in (total.inputs, total.inputs[::-1]):
        number = view.scalar(epsilon)
        if number is not None:
            return _with_node(_mean_square_plus(averaged, number, view), total)
    return None


def _mean_square_plus(value: ir.Value | None, epsilon: float, view: View) -> _Inverse | None:
    mean = view.producer(value, "ReduceMean")
    square = None if mean is None else view.producer(mean.inputs[0], "Pow", "Mul")
    if mean is None or square is None or not _is_over_last_axis(mean, view):
        return None
    base, other = square.inputs
    squares = other is base if square.op_type == "Mul" else view.scalar(other) == 2
    return _Inverse(base, epsilon, (square, mean)) if base is not None and squares else None


def _is_over_last_axis(mean: ir.Node, view: View) -> bool:
    axes, rank = axes_of(mean, view), view.rank(mean.inputs[0])
    return (
        bool(attribute(mean, "keepdims", 1)) and axes is not None and len(axes) == 1 and axes[0] in (-1, -1 if rank is None else rank - 1)
    )


def _is_vector(value: ir.Value | None, data: ir.Value, view: View) -> bool:
    """Whether a value has one number for each index of the last axis, in the element type of the data."""
    shape, whole = view.static_shape(value), view.shape(data)
    if value is None or shape is None or not whole or view.dtype(value) != view.dtype(data):
        return False
    alone = len(shape) == 1 or (view.is_constant(value) and view.is_private(value) and all(dim == 1 for dim in shape[:-1]))
    return alone and shape[-1:] == whole[-1:]


def _flat(op: Builder, vector: ir.Value, view: View) -> ir.Value:
    """A vector without leading axes of length 1."""
    array: Array | None = view.constant(vector) if view.rank(vector) != 1 else None
    return vector if array is None else op.constant(array.reshape(-1), vector.name or "")


def _is_continued(node: ir.Node, found: _Affine, view: View) -> bool:
    """Whether the next node applies the missing scale or shift, so that it is the better anchor."""
    if found.shift is not None or not (found.scale is None or found.core.centered):
        return False
    value = node.outputs[0]
    user = view.only_use(value)
    if user is not None and user.op_type == "Cast" and found.scale is None:
        value = user.outputs[0]
        user = view.only_use(value)
    following = "Mul" if found.scale is None else "Add"
    if user is None or user.op_type != following or user.domain not in ("", "ai.onnx"):
        return False
    return _affine_at(user, view) is not None


def _is_closed(nodes: Sequence[ir.Node], last: ir.Node) -> bool:
    """Whether only the nodes themselves use what they compute, the last one's result apart."""
    inner = [output for node in nodes if node is not last for output in node.outputs]
    return not any(value.is_graph_output() or any(use.node not in nodes for use in value.uses()) for value in inner)


def _operator(found: _Affine, view: View) -> str | None:
    if not found.core.centered:
        return _rms_operator(found.data, view)
    return "LayerNormalization" if view.runs("LayerNormalization", found.data) else None


def _rms_operator(data: Any, view: View) -> str | None:
    return next((name for name in ("RMSNormalization", "SimplifiedLayerNormalization") if view.runs(name, data)), None)


@dataclass(frozen=True)
class Normalize(TargetedPass):
    """Replaces normalizations written in primitives with one operator, and on CPU fused ones with the quicker parts.

    Standard operators of any opset, and ONNX Runtime's fused ones, in subgraphs too. At rounding level. Linear.
    """

    name: ClassVar[str] = "normalize"
    rules: ClassVar[tuple[Rule, ...]] = (
        rule(recognize_normalization, "Add", "Mul", "Div"),
        rule(sum_before_normalization, "Add", targets=("cpu",)),
        rule(
            split_skip_normalization,
            "com.microsoft::SkipLayerNormalization",
            "com.microsoft::SkipSimplifiedLayerNormalization",
            targets=("cpu",),
        ),
        rule(split_group_normalization, "GroupNormalization", targets=("cpu",)),
    )

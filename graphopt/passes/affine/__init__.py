"""Exact folding of per-channel scales and shifts into the weights and biases beside them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from graphopt.graph.edits import Builder
from graphopt.graph.growth import is_affordable
from graphopt.graph.view import Array, View, attribute
from graphopt.passes.affine import resizing
from graphopt.passes.affine.weighted import OPERATORS, Weighted, bias_of, narrowed, weighted_at
from graphopt.passes.rules import Change, Miss, Rule, RulePass, rule
from graphopt.passes.simplify.chains import rounds_when_added
from graphopt.passes.simplify.views import RESHAPES

_FLOATS = (np.dtype(np.float16), np.dtype(np.float32), np.dtype(np.float64))
_LONGEST_WALK = 6


@dataclass(frozen=True)
class Scaling:
    """y = x * scale + shift along one axis.

    Attributes:
        node: the operator that computes it.
        data: x.
        scale: float64 [channels] or [1].
        shift: likewise.
    """

    node: ir.Node
    data: ir.Value
    scale: Array
    shift: Array

    @property
    def constants(self) -> list[ir.Value | None]:
        """The operands other than x."""
        return [value for value in self.node.inputs if value is not self.data]


def fold_scaling_into_weight(node: ir.Node, view: View) -> Change | Miss | None:
    """Replaces BatchNormalization, or * / + - with a constant per channel, behind a Conv, ConvTranspose, Gemm or MatMul with new weights.

    When the constants do not vary along other axes, the weight is nobody else's, and the result in between is not used
    elsewhere. An Add right behind a MatMul stays. Rounding-level; one node less.
    """
    value = next((v for v in node.inputs if view.producer(v, *OPERATORS, "Add") is not None), None)
    weighted = weighted_at(view.producer(value), view)
    if weighted is None or value is None:
        return None
    if isinstance(weighted, Miss):
        return weighted if scaling_at(node, value, -1, view) is not None else None
    scaling = scaling_at(node, value, weighted.channel_axis, view)
    if not isinstance(scaling, Scaling):
        return scaling
    if weighted.node.op_type == "MatMul" and node.op_type in ("Add", "Sub") and np.all(scaling.scale == 1):
        return None  # the runtime adds a bias as cheaply as it would fold one
    if not view.is_private(value):
        return Miss("the result before it is used elsewhere")
    return _scaled_outputs(weighted, scaling, view)


def fold_scalar_through_views(node: ir.Node, view: View) -> Change | Miss | None:
    """Replaces c * view(x @ W + b) with view(x @ (c W) + c b), where view is a chain of Reshape, Transpose and their kin.

    When c is one number and nothing in between is used elsewhere; also for x / c. Rounding-level; one node less.
    """
    if view.opset < 7 or len(node.inputs) != 2:
        return None
    value, constant = (node.inputs[0], node.inputs[1]) if view.is_constant(node.inputs[1]) else (node.inputs[1], node.inputs[0])
    factor = view.scalar(constant)
    if value is None or factor is None or view.rank(constant) not in (0, 1) or (node.op_type == "Div" and value is not node.inputs[0]):
        return None
    walked: list[ir.Node] = []
    first: ir.Value | None = value
    while (step := view.producer(first, "Transpose", *RESHAPES)) is not None and len(walked) < _LONGEST_WALK:
        if first is None or not view.is_private(first):
            return None
        walked.append(step)
        first = step.inputs[0]
    weighted = weighted_at(view.producer(first), view)
    if not walked or first is None or not isinstance(weighted, Weighted):
        return weighted if walked and isinstance(weighted, Miss) else None
    if not view.is_private(first):
        return Miss("the result before it is used elsewhere")
    scale = np.array([1 / factor if node.op_type == "Div" else factor]) if factor else np.array([np.nan])
    change = _scaled_outputs(weighted, Scaling(node, first, scale, np.zeros(1)), view)
    if isinstance(change, Miss):
        return change

    def build(op: Builder) -> ir.Value:
        result = change.build(op)
        assert isinstance(result, ir.Value)
        for step in reversed(walked):
            result = op.copy(step, result, *step.inputs[1:])[0]
        return result

    return Change(build)


def fold_scaling_before_weight(node: ir.Node, view: View) -> Change | Miss | None:
    """Replaces BatchNormalization, or * / + - with a constant per channel, before a Conv, ConvTranspose, Gemm or MatMul with new weights.

    When its result is not used elsewhere. A shift goes into the bias: not where a convolution pads with zeros, which
    would not be shifted, nor into a MatMul without a bias. Rounding-level; one node less.
    """
    weighted = weighted_at(node, view)
    data = node.inputs[0] if weighted is None or isinstance(weighted, Miss) else weighted.data
    before = view.producer(data, *SCALINGS)
    if weighted is None or before is None or data is None:
        return None
    if isinstance(weighted, Miss):
        return weighted if node.op_type in OPERATORS else None
    if attribute(weighted.node, "transA", 0):
        return None
    inner = next((value for value in before.inputs if value is not None and not view.is_constant(value)), None)
    scaling = None if inner is None else scaling_at(before, inner, weighted.channel_axis, view)
    if not isinstance(scaling, Scaling):
        return scaling
    if not view.is_private(data):
        return Miss("the scaled value is used elsewhere")
    shifts = bool(np.any(scaling.shift != 0))
    if shifts and (reason := _why_not_shifted(weighted)):
        return Miss(reason)
    return _scaled_inputs(weighted, scaling, shifts, view)


def merge_scaling_into_batchnorm(node: ir.Node, view: View) -> Change | Miss | None:
    """Replaces BatchNormalization and a neighbouring BatchNormalization, or * / + - with a constant per channel, with one.

    When the result in between is not used elsewhere. Rounding-level; one node less.
    """
    value = next((v for v in node.inputs if v is not None and not view.is_constant(v)), None)
    before = view.producer(value, *SCALINGS)
    if value is None or before is None or "BatchNormalization" not in (node.op_type, before.op_type):
        return None
    inner_value = next((v for v in before.inputs if v is not None and not view.is_constant(v)), None)
    inner = None if inner_value is None else scaling_at(before, inner_value, 1, view)
    outer = scaling_at(node, value, 1, view)
    if not isinstance(inner, Scaling) or not isinstance(outer, Scaling):
        return None
    if not view.is_private(value):
        return Miss("the result before it is used elsewhere")
    scale, shift = inner.scale * outer.scale, inner.shift * outer.scale + outer.shift
    normalization = node if node.op_type == "BatchNormalization" else before
    variance = view.constant(normalization.inputs[4])
    if variance is None:
        return None
    kind, channels = variance.dtype, variance.shape[0]
    epsilon = float(attribute(normalization, "epsilon", 1e-5))
    # Mean 0, and the variance that is there: the division by its root is undone in the scale.
    wide = np.broadcast_to(scale * np.sqrt(variance.astype(np.float64) + epsilon), (channels,))
    arrays = [narrowed(wide, kind), narrowed(np.broadcast_to(shift, (channels,)), kind), np.zeros(channels, kind), variance]
    if any(array is None for array in arrays):
        return Miss("the merged constants leave the range of their type")
    return Change(lambda op: op.copy(normalization, inner.data, *(op.constant(a) for a in arrays if a is not None))[0])


def merge_matmuls(node: ir.Node, view: View) -> Change | Miss | None:
    """Replaces (x @ W1) @ W2 with x @ (W1 W2).

    When that takes fewer multiplications, and neither the weights nor the result in between are used elsewhere. Rounding-level.
    """
    outer, inner = weighted_at(node, view), weighted_at(view.producer(node.inputs[0], "MatMul"), view)
    if not isinstance(outer, Weighted) or not isinstance(inner, Weighted):
        return None
    first, second = view.constant(inner.weight), view.constant(outer.weight)
    if first is None or second is None or first.dtype not in _FLOATS or not view.is_private(outer.data):
        return None
    (inputs, rank), outputs = first.shape, second.shape[1]
    if inputs * outputs >= inputs * rank + rank * outputs:
        return Miss("the product of the weights would take more multiplications")
    product = narrowed(first.astype(np.float64) @ second.astype(np.float64), first.dtype)
    if product is None:
        return Miss("the product of the weights leaves the range of its type")
    return Change(lambda op: op.op("MatMul", inner.data, op.constant(product, inner.weight.name or "")))


def fold_gemm_factors(node: ir.Node, view: View) -> Change | Miss | None:
    """Replaces Gemm's alpha and beta with a scaled weight and bias.

    When weight and bias are constant and nobody else's. Rounding-level; spares the runtime the products.
    """
    alpha, beta = float(attribute(node, "alpha", 1.0)), float(attribute(node, "beta", 1.0))
    weighted = weighted_at(node, view)
    if not isinstance(weighted, Weighted) or (alpha == 1 and (beta == 1 or weighted.bias is None)):
        return None
    weight = view.constant(weighted.weight)
    if weight is None or weight.dtype not in _FLOATS:
        return None
    scaled, bias = narrowed(weight.astype(np.float64) * alpha, weight.dtype), bias_of(weighted, view)
    new_bias = None if bias is None else narrowed(bias, weight.dtype)
    if scaled is None or (bias is not None and new_bias is None):
        return Miss("the scaled weights leave the range of their type")
    if not is_affordable([scaled, new_bias], [weighted.weight, weighted.bias], view):
        return Miss("the bias is shared")
    inputs = [scaled] if new_bias is None else [scaled, new_bias]
    return Change(lambda op: op.copy(node, weighted.data, *map(op.constant, inputs), alpha=None, beta=None)[0])


SCALINGS = ("BatchNormalization", "Mul", "Div", "Add", "Sub")


def scaling_at(node: ir.Node, data: ir.Value, axis: int, view: View) -> Scaling | Miss | None:
    """A node as a scale and a shift per channel of one of its inputs.

    A shift that takes half of the digits of a number near 1 is refused: it may be meant to round, or to be taken away again, and
    in a bias it would be added to what has been rounded already.

    Args:
        node: one of ``SCALINGS``.
        data: the input that is scaled.
        axis: the channels' axis: 1 or -1.
        view: the model.
    """
    found, dtype = _scaling_of(node, data, axis, view), view.dtype(data)
    if isinstance(found, Scaling) and dtype is not None and rounds_when_added(found.shift, dtype):
        return Miss("the shift is so large that adding it rounds")
    return found


def _scaling_of(node: ir.Node, data: ir.Value, axis: int, view: View) -> Scaling | Miss | None:
    if node.op_type == "BatchNormalization":
        return _batchnorm_scaling(node, data, axis, view)
    if node.op_type not in SCALINGS:
        return None
    first = node.inputs[0] is data
    constant, rank = node.inputs[1 if first else 0], view.rank(data)
    if constant is None or not view.is_constant(constant) or rank is None:
        return None
    vector = _per_channel(constant, rank, axis % rank, view)
    if vector is None:
        return None
    one, none = np.ones(1), np.zeros(1)
    if node.op_type == "Mul":
        return Scaling(node, data, vector, none)
    if node.op_type == "Div":
        return Scaling(node, data, 1 / vector, none) if first and np.all(vector != 0) else None
    if node.op_type == "Add" or first:
        return Scaling(node, data, one, vector if node.op_type == "Add" else -vector)
    return Scaling(node, data, -one, vector)


def _batchnorm_scaling(node: ir.Node, data: ir.Value, axis: int, view: View) -> Scaling | Miss | None:
    rank = view.rank(data)
    if node.inputs[0] is not data or (axis == -1 and rank != 2):
        return None
    if attribute(node, "training_mode", 0) or any(output.uses() or output.is_graph_output() for output in node.outputs[1:]):
        return Miss("it trains")
    if not attribute(node, "spatial", 1):
        return Miss("it normalizes each element by itself")
    arrays = [view.constant(value) for value in node.inputs[1:5]]
    scale, shift, mean, variance = (None if array is None else array.astype(np.float64) for array in arrays)
    if scale is None or shift is None or mean is None or variance is None:
        return Miss("its statistics are not constant")
    spread = variance + float(attribute(node, "epsilon", 1e-5))
    if not np.all(spread > 0):
        return Miss("a variance is not positive")
    factor = scale / np.sqrt(spread)
    return Scaling(node, data, factor, shift - mean * factor)


def _per_channel(constant: ir.Value, rank: int, axis: int, view: View) -> Array | None:
    """A float constant that varies along one axis at most, as float64 [channels] or [1]."""
    shape = view.static_shape(constant)
    if shape is None or len(shape) > rank:
        return None
    full = (1,) * (rank - len(shape)) + shape
    if any(dim != 1 for position, dim in enumerate(full) if position != axis):
        return None
    array = view.constant(constant)
    return None if array is None or array.dtype not in _FLOATS else array.reshape(-1).astype(np.float64)


def _scaled_outputs(weighted: Weighted, scaling: Scaling, view: View) -> Change | Miss:
    weight, bias = view.constant(weighted.weight), bias_of(weighted, view)
    if weight is None or weight.dtype not in _FLOATS:
        return Miss("the weight is not of a float type")
    if scaling.scale.size not in (1, weighted.outputs(weight)) or scaling.shift.size not in (1, weighted.outputs(weight)):
        return Miss("the constant widens the shape")
    total = scaling.shift if bias is None else bias * scaling.scale + scaling.shift
    return _rebuilt(weighted, weighted.data, weighted.scaled_outputs(weight, scaling.scale), total, scaling, view)


def _scaled_inputs(weighted: Weighted, scaling: Scaling, shifts: bool, view: View) -> Change | Miss:
    weight, bias = view.constant(weighted.weight), bias_of(weighted, view)
    if weight is None or weight.dtype not in _FLOATS:
        return Miss("the weight is not of a float type")
    if scaling.scale.size not in (1, weighted.inputs(weight)) or scaling.shift.size not in (1, weighted.inputs(weight)):
        return Miss("the constant widens the shape")
    total = np.zeros(1) if bias is None else bias
    if shifts:
        total = total + weighted.response(weight, scaling.shift) * float(attribute(weighted.node, "alpha", 1.0))
    return _rebuilt(weighted, scaling.data, weighted.scaled_inputs(weight, scaling.scale), total, scaling, view)


def _rebuilt(weighted: Weighted, data: ir.Value, weight: Array, bias: Array, scaling: Scaling, view: View) -> Change | Miss:
    """The operator with new constants, in the float type of the old weight."""
    old = view.constant(weighted.weight)
    assert old is not None
    new_weight = narrowed(weight, old.dtype)
    needs_bias = weighted.bias is not None or bool(np.any(bias != 0))
    new_bias = narrowed(np.ascontiguousarray(np.broadcast_to(bias, (weighted.outputs(old),))), old.dtype) if needs_bias else None
    if new_weight is None or (needs_bias and new_bias is None):
        return Miss("the scaled weights leave the range of their type")
    if not is_affordable([new_weight, new_bias], [weighted.weight, weighted.bias, *scaling.constants], view):
        return Miss("the bias is shared")
    return Change(lambda op: weighted.rebuild(op, data, new_weight, new_bias))


def _why_not_shifted(weighted: Weighted) -> str:
    """Why a constant added to the data is no constant in the result; empty where it is one."""
    node = weighted.node
    if node.op_type == "MatMul" and weighted.bias is None:
        return "a MatMul has no bias that could take the shift"
    if node.op_type == "ConvTranspose":
        return "a shift before a ConvTranspose is not constant at its borders"
    if node.op_type != "Conv":
        return ""
    pads: tuple[int, ...] = attribute(node, "pads", ())
    padded = any(pads) or attribute(node, "auto_pad", "NOTSET") not in ("NOTSET", "VALID")
    return "the convolution pads with zeros, which would not be shifted" if padded else ""


@dataclass(frozen=True)
class Affine(RulePass):
    """Replaces scales and shifts with constants per channel by changed weights and biases.

    Applies beside Conv, ConvTranspose, Gemm and MatMul with constant weights of their own, before or behind. Rounding-level.
    Each changed weight is read and written once.
    """

    name: ClassVar[str] = "affine"
    rules: ClassVar[tuple[Rule, ...]] = (
        rule(fold_scaling_into_weight, *SCALINGS),
        rule(fold_scalar_through_views, "Mul", "Div"),
        rule(fold_scaling_before_weight, *OPERATORS, "Add"),
        rule(merge_scaling_into_batchnorm, *SCALINGS),
        rule(merge_matmuls, "MatMul"),
        rule(fold_gemm_factors, "Gemm"),
        *resizing.RULES,
    )

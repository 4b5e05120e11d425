"""Operators with a constant weight as affine rewrites see them: channels in, channels out, a bias."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphopt.graph.edits import Builder
from graphopt.graph.view import Array, View, attribute, input_of
from graphopt.passes.rules import Miss

OPERATORS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


@dataclass(frozen=True)
class Weighted:
    """A Conv, ConvTranspose, Gemm, or MatMul with the Add of its bias.

    Attributes:
        node: the operator.
        data: what it is applied to.
        weight: the constant.
        bias: a constant vector over the output channels (or of one element), or None.
        group: of a convolution, else 1.
        last: the node that makes the result: the operator, or the Add behind a MatMul.
    """

    node: ir.Node
    data: ir.Value
    weight: ir.Value
    bias: ir.Value | None
    group: int
    last: ir.Node

    @property
    def channel_axis(self) -> int:
        """The axis of the channels in the data and in the result."""
        return 1 if self.node.op_type.startswith("Conv") else -1

    def scaled_outputs(self, weight: Array, scale: Array) -> Array:
        """The weight with each output channel multiplied; ``scale`` has shape [outputs] or [1]."""
        return weight * self._over_outputs(weight, scale.astype(_wide(weight.dtype)))

    def scaled_inputs(self, weight: Array, scale: Array) -> Array:
        """The weight with what each input channel contributes multiplied; ``scale`` has shape [inputs] or [1]."""
        return weight * self._over_inputs(weight, scale.astype(_wide(weight.dtype)))

    def response(self, weight: Array, shift: Array) -> Array:
        """What a constant per input channel adds to each output channel, away from borders: float64 [outputs]; not for ConvTranspose."""
        contribution = weight.astype(np.float64) * self._over_inputs(weight, shift.astype(np.float64))
        axes = tuple(axis for axis in range(weight.ndim) if axis != self._output_axis)
        return np.asarray(contribution.sum(axis=axes))

    def outputs(self, weight: Array) -> int:
        """The number of output channels."""
        factor = self.group if self.node.op_type == "ConvTranspose" else 1
        return int(weight.shape[self._output_axis]) * factor

    def inputs(self, weight: Array) -> int:
        """The number of input channels."""
        factor = self.group if self.node.op_type == "Conv" else 1
        return int(weight.shape[1 - self._output_axis]) * factor

    def rebuild(self, op: Builder, data: ir.Value, weight: Array, bias: Array | None) -> ir.Value:
        """Makes the operator with other data, weight and bias (None: without one)."""
        new_weight = op.constant(weight, self.weight.name or "")
        bias_name = None if self.bias is None else self.bias.name
        new_bias = None if bias is None else op.constant(bias, bias_name or f"{self.weight.name}/bias")
        if self.node.op_type == "MatMul":
            product = op.op("MatMul", data, new_weight)
            return product if new_bias is None else op.op("Add", product, new_bias)
        inputs = [data, new_weight] if new_bias is None else [data, new_weight, new_bias]
        return op.copy(self.node, *inputs, **({"beta": None} if self.node.op_type == "Gemm" else {}))[0]

    @property
    def _output_axis(self) -> int:
        if self.node.op_type == "Conv":
            return 0
        return 1 - attribute(self.node, "transB", 0)

    def _over_outputs(self, weight: Array, vector: Array) -> Array:
        """A vector over the output channels in a shape that broadcasts against the weight."""
        if vector.size == 1:
            return vector.reshape((1,) * weight.ndim)
        if self.node.op_type == "ConvTranspose":
            rows = np.repeat(vector.reshape(self.group, -1), weight.shape[0] // self.group, axis=0)
            return rows.reshape(rows.shape + (1,) * (weight.ndim - 2))
        return _along(vector, self._output_axis, weight.ndim)

    def _over_inputs(self, weight: Array, vector: Array) -> Array:
        """A vector over the input channels in a shape that broadcasts against the weight."""
        if vector.size == 1:
            return vector.reshape((1,) * weight.ndim)
        if self.node.op_type == "Conv":
            rows = np.repeat(vector.reshape(self.group, -1), weight.shape[0] // self.group, axis=0)
            return rows.reshape(rows.shape + (1,) * (weight.ndim - 2))
        return _along(vector, 1 - self._output_axis, weight.ndim)


def weighted_at(node: ir.Node | None, view: View) -> Weighted | Miss | None:
    """The operator with a constant weight whose result a node makes."""
    if node is None or node.domain not in ("", "ai.onnx"):
        return None
    if node.op_type == "Add":
        return _matmul_with_bias(node, view)
    if node.op_type not in OPERATORS:
        return None
    data, weight, bias = node.inputs[0], node.inputs[1], input_of(node, 2)
    if data is None or weight is None or not view.is_constant(weight):
        return None
    if not view.is_private(weight):
        return Miss(f"the weight {weight.name} is shared")
    rank = view.rank(weight)
    if node.op_type in ("Gemm", "MatMul") and rank != 2:
        return None
    if bias is not None and _bias_vector(bias, view) is None:
        return Miss("the bias is no constant vector")
    return Weighted(node, data, weight, bias, attribute(node, "group", 1), node)


def bias_of(weighted: Weighted, view: View) -> Array | None:
    """The bias as float64 [outputs] or [1], what Gemm multiplies it with included; None where there is none."""
    vector = None if weighted.bias is None else _bias_vector(weighted.bias, view)
    return None if vector is None else vector * float(attribute(weighted.node, "beta", 1.0))


def narrowed(exact: Array, dtype: np.dtype[np.generic]) -> Array | None:
    """An array in a model's float type; None where it overflows or loses its accuracy to underflow."""
    with np.errstate(all="ignore"):
        found = exact.astype(dtype, copy=False)
    largest = _magnitude(exact)
    if not np.isfinite(largest) or not np.isfinite(_magnitude(found)):
        return None
    if found.dtype == exact.dtype:
        return found
    return found if _magnitude(found - exact) <= largest * float(np.finfo(np.dtype(dtype.name)).eps) else None


def _magnitude(array: Array) -> float:
    """The largest absolute value, NaN where there is one; without a copy of the array, which may be large."""
    return float(max(np.max(array, initial=0.0), -np.min(array, initial=0.0)))


def _matmul_with_bias(node: ir.Node, view: View) -> Weighted | Miss | None:
    for position in (0, 1):
        product, bias = node.inputs[position], node.inputs[1 - position]
        matmul = view.producer(product, "MatMul")
        if matmul is None or product is None or bias is None or not view.is_constant(bias) or not view.is_private(product):
            continue
        found = weighted_at(matmul, view)
        if not isinstance(found, Weighted):
            return found
        vector, shape = _bias_vector(bias, view), view.static_shape(found.weight)
        if vector is None or shape is None or vector.size not in (1, shape[1]) or len(view.shape(bias) or ()) > 1:
            return None
        return Weighted(matmul, found.data, found.weight, bias, 1, node)
    return None


def _bias_vector(value: ir.Value, view: View) -> Array | None:
    """A constant of shape [n], [1, n] or () as float64 [n]."""
    shape = view.static_shape(value)
    if not view.is_constant(value) or shape is None or any(dim != 1 for dim in shape[:-1]):
        return None
    array = view.constant(value)
    return None if array is None else array.reshape(-1).astype(np.float64)


def _along(vector: Array, axis: int, rank: int) -> Array:
    return vector.reshape([-1 if position == axis else 1 for position in range(rank)])


def _wide(dtype: np.dtype[np.generic]) -> np.dtype[np.generic]:
    """The type to compute in: float32 for float16, else the type itself, so that memory stays at one more copy of a weight."""
    return np.dtype(np.float32) if dtype == np.float16 else dtype

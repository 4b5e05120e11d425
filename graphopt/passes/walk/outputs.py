"""What a layer puts out: as a matrix beside its unfolded input, where a constant shifts it, and the stream that it is added to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.graph.edits import Builder, Names, remove_dead
from graphopt.graph.layers import Layer, Layout
from graphopt.graph.view import View, attribute, input_of, operator_of

Array = np.ndarray[Any, Any]

_WITH_BIAS = ("Conv", "ConvTranspose", "Gemm")
_OPERATORS = (*_WITH_BIAS, "MatMul", "com.microsoft::FusedMatMul")
_BIAS = 2


@dataclass(frozen=True)
class Output:
    """The output of a layer.

    Attributes:
        shift: name of the node that adds a constant to each channel, perhaps the layer itself, and which of its inputs that is; None
            where there is no such place.
        streams: names of the computed values that it is then added to.
    """

    shift: tuple[str, int] | None
    streams: tuple[str, ...]

    def bias(self, layer: Layer) -> Array:
        """What the layer itself adds: ``[groups, out]`` float64."""
        bias = None if self.shift is None or self.shift[0] != layer.name else input_of(layer.node, _BIAS)
        tensor = None if bias is None else ir.convenience.get_const_tensor(bias)
        own = 0.0 if tensor is None else tensor.numpy().astype(np.float64).reshape(-1) * layer.bias_scale
        return np.broadcast_to(own, layer.groups * layer.shape[1]).reshape(layer.groups, -1)

    def move(self, layer: Layer, by: Array, names: Names) -> None:
        """Adds ``[groups, out]`` to the output of a layer, this one or its twin in a clone."""
        assert self.shift is not None, "it can be shifted"
        node = next(node for node in layer.graph if node.name == self.shift[0])
        slot = self.shift[1]
        old = input_of(node, slot)
        tensor = None if old is None else ir.convenience.get_const_tensor(old)
        before = 0.0 if tensor is None else tensor.numpy().astype(np.float64)
        factor = layer.bias_scale if node is layer.node else 1.0
        array = np.asarray(before + by.reshape(-1) / factor, layer.weight().dtype)
        new = Builder(node, names).constant(array, "" if old is None else old.name or "")
        if slot >= len(node.inputs):
            node.resize_inputs(slot + 1)
        node.replace_input_with(slot, new)
        if old is not None:
            remove_dead([old])


def output_of(layer: Layer, view: View) -> Output | None:
    """Where the output of a layer goes; None where it is no affine function of the input with a constant weight."""
    node = layer.node
    if operator_of(node) not in _OPERATORS:
        return None
    bias = input_of(node, _BIAS) if operator_of(node) in _WITH_BIAS else None
    if bias is not None and (not view.is_constant(bias) or not _is_vector(bias, layer)):
        return None
    has_place = operator_of(node) in _WITH_BIAS and not (operator_of(node) == "Gemm" and attribute(node, "beta", 1.0) == 0.0)
    shift, value = ((layer.name, _BIAS) if has_place and layer.index == 1 else None), node.outputs[0]
    while True:
        user = view.only_use(value)
        if user is None or operator_of(user) not in ("Add", "Sum"):
            return Output(shift, ())
        others = {slot: other for slot, other in enumerate(user.inputs) if other is not None and other is not value}
        if len(others) < len(user.inputs) - 1:  # it is added to itself
            return Output(shift, ())
        computed = tuple(other.name or "" for other in others.values() if not view.is_constant(other))
        if computed:
            return Output(shift, computed)
        is_last = layer.layout in (Layout.IN_OUT, Layout.OUT_IN) and layer.index == 1 and layer.groups == 1
        for slot, other in others.items():
            if shift is None and is_last and _is_vector(other, layer):
                shift = (user.name or "", slot)
        value = user.outputs[0]


def as_matrix(layer: Layer, y: Array, rows: Array | None) -> Array:
    """An output, or what has its shape, as ``[groups, out, positions]``, in the order of the unfolded input.

    Args:
        layer: makes it.
        y: as the operator puts it out.
        rows: ``[groups, out]``, which channels of each group to take; None for all.
    """
    if layer.layout in (Layout.CONV, Layout.CONV_TRANSPOSE):
        found = np.moveaxis(y, 1, 0).reshape(layer.groups, y.shape[1] // layer.groups, -1)
    else:
        found = _of_product(layer, y)
    return found if rows is None else np.take_along_axis(found, rows[:, :, None], axis=1)


def _of_product(layer: Layer, y: Array) -> Array:
    stack = layer.stored_shape[:-2]
    if len(layer.stored_shape) == 1:
        return y.reshape(1, 1, -1)
    if layer.index == 1:
        y = y[..., None, :] if y.ndim == 1 else y
        y = y.swapaxes(-1, -2)
    lead = y.shape[:-2]
    aligned = (*(1,) * (len(lead) - len(stack)), *stack)
    grouped = [axis for axis, length in enumerate(aligned) if length > 1]
    free = [axis for axis in range(len(lead)) if axis not in grouped]
    return y.transpose(*grouped, len(lead), *free, len(lead) + 1).reshape(layer.groups, y.shape[-2], -1)


def _is_vector(value: ir.Value, layer: Layer) -> bool:
    """Whether a constant is one number for each output channel, along the last axis, or one for all."""
    shape = () if value.shape is None else tuple(value.shape)
    width = layer.groups * layer.shape[1]
    return all(length == 1 for length in shape[:-1]) and (not shape or shape[-1] in (1, width))

"""Absorption: a factor for each channel of a value, folded exactly into the constants that make the value."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from graphopt.graph.attention import attention_at
from graphopt.graph.edits import Builder, Names, remove_dead
from graphopt.graph.view import View, attribute, input_of, operator_of

Array = np.ndarray[Any, Any]
Shapes = Mapping[str, tuple[int, ...]]

_RELABELLED = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze"})
_PASSED = frozenset({"Identity", "Relu", "LeakyRelu"})
"""Operators that give ``f(x) / s`` for ``x / s`` where ``s`` is positive, element by element."""
_NORMALIZATIONS = frozenset({"LayerNormalization", "SimplifiedLayerNormalization", "RMSNormalization"})
_ATTENTIONS = frozenset({"Attention", "com.microsoft::MultiHeadAttention"})
"""Operators whose third input holds the values, of which each row of the result is a mean."""
_VALUES = 2
_MOST_LABELS = 1 << 26


@dataclass(frozen=True)
class Fold:
    """A constant that takes the factors.

    Attributes:
        node: reads it.
        slot: as which of its inputs.
        axis: of the constant, along which channels are counted; negative.
        channels: ``[length of the axis]``: the channel of the value whose factor each takes.
    """

    node: ir.Node
    slot: int
    axis: int
    channels: Array


@dataclass(frozen=True)
class Absorber:
    """Where factors on the channels of a value can go.

    Attributes:
        classes: ``[channels]``; channels of one class must have the same factor.
        folds: the constants.
    """

    classes: Array
    folds: tuple[Fold, ...]

    def apply(self, factors: Array, names: Names) -> None:
        """Multiplies the value's channels with ``factors [channels]``, the same within a class, by changing constants."""
        for fold in self.folds:
            multiply(fold.node, fold.slot, fold.axis, factors[fold.channels], names)


class NotAbsorbed(Exception):  # noqa: N818 - it is an answer, not a failure
    """Why a value cannot take factors."""


def absorber(value: ir.Value, axis: int, view: View, shapes: Shapes) -> Absorber:
    """Finds where factors on the channels of a value can go, upstream through elementwise operators, reshapes and attention.

    Args:
        value: who uses it does not matter; what makes it must be used by nothing else.
        axis: of its channels.
        view: of the model.
        shapes: of values, on any one sample.

    Raises:
        NotAbsorbed: it says why not.
    """
    return _Search(value, axis, view, shapes).result()


def multiply(node: ir.Node, slot: int, axis: int, factors: Array, names: Names) -> None:
    """Gives a node a constant of its own, multiplied along an axis (negative) with ``factors``; other users keep the old one."""
    old = node.inputs[slot]
    assert old is not None, "a constant that is multiplied is there"
    tensor = ir.convenience.get_const_tensor(old)
    assert tensor is not None, "what is multiplied is a constant"
    array = tensor.numpy()
    scaled = (array.astype(np.float64) * factors.reshape(-1, *[1] * (-axis - 1))).astype(array.dtype)
    node.replace_input_with(slot, Builder(node, names).constant(scaled, old.name or ""))
    remove_dead([old])


class _Search:
    """Walks upstream with the channels of each element: arrays that broadcast to the values' shapes."""

    def __init__(self, value: ir.Value, axis: int, view: View, shapes: Shapes) -> None:
        self._view, self._shapes = view, shapes
        self._ties: list[Array] = []
        self._folds: list[Fold] = []
        self._ways: dict[str, Callable[[ir.Node, Array], None]] = {
            **dict.fromkeys(("Mul", "Div"), self._product),
            **dict.fromkeys(("Add", "Sub", "Sum"), self._sum),
            **dict.fromkeys(("MatMul", "Gemm", "Conv"), self._linear),
            **dict.fromkeys(_NORMALIZATIONS, self._normalization),
            **dict.fromkeys(_ATTENTIONS, self._attention),
        }
        shape = self._shape(value)
        self._count = shape[axis]
        labels = np.arange(self._count).reshape(-1, *[1] * (len(shape) - 1 - axis % len(shape)))
        self._enter(value, labels.reshape((1,) * (len(shape) - labels.ndim) + labels.shape))

    def result(self) -> Absorber:
        """What was found, with channels that must share a factor joined."""
        pairs = np.concatenate([np.zeros((0, 2), np.int64), *self._ties])
        graph = coo_array((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(self._count, self._count))
        return Absorber(connected_components(graph, directed=False)[1], tuple(self._folds))

    def _enter(self, value: ir.Value, labels: Array) -> None:
        node = value.producer()
        if node is None or value is not node.outputs[0]:
            raise NotAbsorbed(f"{value.name} is made by no operator that takes factors")
        operator = operator_of(node)
        if operator in _PASSED:
            self._data(node, 0, labels)
        elif operator in _RELABELLED:
            self._data(node, 0, self._reshaped(labels, self._shape(value), self._shape(node.inputs[0])))
        elif operator == "Transpose":
            order = attribute(node, "perm", tuple(reversed(range(labels.ndim))))
            self._data(node, 0, labels.transpose(np.argsort(order)))
        elif operator == "Expand":
            self._data(node, 0, self._fitted(labels, self._shape(node.inputs[0])))
        elif operator in self._ways:
            self._ways[operator](node, labels)
        else:
            raise NotAbsorbed(f"{operator} {node.name} takes no factors")

    def _data(self, node: ir.Node, slot: int, labels: Array) -> None:
        """Goes on to an input, which must have no other use."""
        value = node.inputs[slot]
        if value is None or not self._view.is_private(value):
            raise NotAbsorbed(f"{None if value is None else value.name} is used elsewhere too")
        self._enter(value, labels)

    def _product(self, node: ir.Node, labels: Array) -> None:
        """Factors go to one side: a constant, or the first that takes them."""
        slots = range(2 if operator_of(node) == "Mul" else 1)
        constant = next((slot for slot in range(2) if self._view.is_constant(node.inputs[slot])), None)
        if constant is not None:
            if self._takes(node, constant, labels) and constant in slots:
                self._fold(node, constant, -1, self._along(labels, labels.ndim - 1))
            elif 1 - constant in slots:
                self._data(node, 1 - constant, self._fitted(labels, self._shape(node.inputs[1 - constant])))
            else:
                raise NotAbsorbed(f"{node.name} divides by a value")
            return
        refusals = []
        for slot in slots:
            mark = len(self._ties), len(self._folds)
            try:
                self._data(node, slot, self._fitted(labels, self._shape(node.inputs[slot])))
            except NotAbsorbed as refusal:
                refusals.append(str(refusal))
                del self._ties[mark[0] :], self._folds[mark[1] :]
            else:
                return
        raise NotAbsorbed(" and ".join(refusals))

    def _sum(self, node: ir.Node, labels: Array) -> None:
        """A constant vector is a bias: it takes the factors as well."""
        constant = next((slot for slot, value in enumerate(node.inputs) if self._view.is_constant(value)), None)
        if constant is None or len(node.inputs) != 2:
            raise NotAbsorbed(f"{node.name} adds values that have to be scaled alike")
        if not self._takes(node, constant, labels):
            raise NotAbsorbed(f"{node.name} adds a constant that is no vector of channels")
        self._fold(node, constant, -1, self._along(labels, labels.ndim - 1))
        self._data(node, 1 - constant, self._fitted(labels, self._shape(node.inputs[1 - constant])))

    def _linear(self, node: ir.Node, labels: Array) -> None:
        if not self._view.is_constant(node.inputs[1]):
            self._mix(node, labels)
            return
        shape = self._shape(node.inputs[1])
        if operator_of(node) == "Conv":
            axis, of_weight, out = 1, -len(shape), shape[0]
        else:
            axis = labels.ndim - 1
            of_weight = -2 if operator_of(node) == "Gemm" and attribute(node, "transB", 0) else -1
            out = shape[of_weight] if len(shape) == 2 else 0
        channels = self._along(labels, axis)
        bias = input_of(node, 2)
        takes_bias = bias is None or (self._view.is_constant(bias) and self._shape(bias)[-1:] == (out,))
        if channels.size not in (1, out) or not takes_bias:
            raise NotAbsorbed(f"{node.name} is no plain linear layer")
        channels = np.broadcast_to(channels, (out,))
        self._fold(node, 1, of_weight, channels)
        if bias is not None:
            self._fold(node, 2, -1, channels)

    def _mix(self, node: ir.Node, labels: Array) -> None:
        """A product of two values: the right one takes factors that are the same in all rows, as attention's values do."""
        if operator_of(node) != "MatMul" or labels.ndim < 2:
            raise NotAbsorbed(f"{node.name} has no constant weight")
        self._rows(node, 1, labels)

    def _attention(self, node: ir.Node, labels: Array) -> None:
        """Values take the factors of what is a mean of them, where each head has its own."""
        found = attention_at(node, self._view)
        biased = operator_of(node) != "Attention" and input_of(node, _VALUES + 1) is not None
        if found is None or found.heads != found.kv_heads or input_of(node, _VALUES) is None or biased:
            raise NotAbsorbed(f"{node.name} has heads that share values, or adds to them")
        self._rows(node, _VALUES, labels)

    def _rows(self, node: ir.Node, slot: int, labels: Array) -> None:
        """Goes on to an input ``[..., rows, channels]`` whose rows become others, and whose channels stay."""
        shape = self._shape(node.inputs[slot])
        self._data(node, slot, self._fitted(labels, (*shape[:-2], 1, shape[-1])))

    def _normalization(self, node: ir.Node, labels: Array) -> None:
        channels = self._along(labels, labels.ndim - 1)
        for slot in (1, 2):
            constant = input_of(node, slot)
            if constant is None and slot == 2:
                continue
            if not self._view.is_constant(constant) or self._shape(constant) != channels.shape:
                raise NotAbsorbed(f"{node.name} has no constant scale and bias of one axis")
            self._fold(node, slot, -1, channels)

    def _fold(self, node: ir.Node, slot: int, axis: int, channels: Array) -> None:
        self._folds.append(Fold(node, slot, axis, channels))

    def _takes(self, node: ir.Node, slot: int, labels: Array) -> bool:
        """Whether a constant operand has one element for each channel of the last axis, and no other axis."""
        shape = self._shape(node.inputs[slot])
        return 0 < len(shape) <= labels.ndim and int(np.prod(shape)) == shape[-1] == self._shape(node.outputs[0])[-1]

    def _along(self, labels: Array, axis: int) -> Array:
        """The labels along one axis ``[length]``; those that differ along other axes are tied."""
        return self._fitted(labels, tuple(labels.shape[axis] if other == axis else 1 for other in range(labels.ndim))).reshape(-1)

    def _fitted(self, labels: Array, shape: tuple[int, ...]) -> Array:
        """Labels of what broadcasts: where a shape has one element for several labels, these are tied."""
        while labels.ndim > len(shape):
            labels = self._tied(labels, 0)[0]
        for axis in range(labels.ndim):
            if shape[len(shape) - labels.ndim + axis] == 1 and labels.shape[axis] != 1:
                labels = self._tied(labels, axis)
        return labels.reshape((1,) * (len(shape) - labels.ndim) + labels.shape)

    def _tied(self, labels: Array, axis: int) -> Array:
        first = labels.take([0], axis=axis)
        pairs = np.stack([np.broadcast_to(first, labels.shape).reshape(-1), labels.reshape(-1)], axis=1)
        self._ties.append(np.unique(pairs[pairs[:, 0] != pairs[:, 1]], axis=0))
        return first

    def _reshaped(self, labels: Array, shape: tuple[int, ...], new: tuple[int, ...]) -> Array:
        if int(np.prod(shape)) > _MOST_LABELS:
            raise NotAbsorbed("the sample is too large to follow its channels through a Reshape")
        moved = np.broadcast_to(labels, shape).reshape(new)
        for axis in range(moved.ndim):
            first = moved.take([0], axis=axis)
            if (moved == first).all():
                moved = first
        return moved

    def _shape(self, value: ir.Value | None) -> tuple[int, ...]:
        tensor = None if value is None else ir.convenience.get_const_tensor(value)
        if tensor is not None:
            return tuple(tensor.shape.numpy())
        name = "" if value is None else value.name or ""
        if name not in self._shapes:
            raise NotAbsorbed(f"nobody knows the shape of {name}")
        return self._shapes[name]

"""What a rule may ask about a model: constants, shapes, producers, uses. It changes nothing."""

from __future__ import annotations

from typing import Any, Protocol, TypeVar

import numpy as np
import onnx_ir as ir

from graphopt.files.weights import private_map
from graphopt.graph.shapes.inference import Dim, Shapes, shapes_of

Array = np.ndarray[Any, Any]
T = TypeVar("T")


def operator_of(node: ir.Node) -> str:
    """``Conv`` for standard operators, ``com.microsoft::Gelu`` for others."""
    return node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}::{node.op_type}"


class Capability(Protocol):
    """What a target can run; see :class:`graphopt.targets.Target`."""

    def runs(self, operator: str, dtype: ir.DataType, opset: int) -> bool:
        """Whether a node of an operator runs in one kernel made for it."""


class View:
    """Read-only questions about a model while rules run over it.

    Attributes:
        opset: version of the standard domain.
        shapes: symbolic shapes of all values; those of new values are inferred when asked for.
    """

    def __init__(self, model: ir.Model, target: Capability | None = None) -> None:
        self.opset = model.graph.opset_imports.get("", model.graph.opset_imports.get("ai.onnx", 1))
        self._model = model
        self._target = target
        self._shapes: Shapes | None = None

    @property
    def shapes(self) -> Shapes:
        """Inferred when first asked for, shared by the passes that run one after the other."""
        if self._shapes is None:
            self._shapes = shapes_of(self._model)
        return self._shapes

    def dtype(self, value: ir.Value | None) -> ir.DataType | None:
        """The element type of a value, or None where unknown."""
        return None if value is None else value.dtype or self.shapes.dtype(value)

    def runs(self, operator: str, like: ir.Value | None) -> bool:
        """Whether the target runs an operator in a kernel of its own at the element type of ``like``."""
        dtype = self.dtype(like)
        return self._target is not None and dtype is not None and self._target.runs(operator, dtype, self.opset)

    def shape(self, value: ir.Value | None) -> tuple[Dim, ...] | None:
        """The shape of a value: integers and expressions in the input symbols; None where the rank is unknown."""
        return None if value is None else self.shapes.of(value)

    def rank(self, value: ir.Value | None) -> int | None:
        """The number of axes, or None where unknown."""
        shape = self.shape(value)
        return None if shape is None else len(shape)

    def static_shape(self, value: ir.Value | None) -> tuple[int, ...] | None:
        """The shape where every length is a known integer, else None."""
        shape = self.shape(value)
        if shape is None:
            return None
        static = tuple(dim for dim in shape if isinstance(dim, int))
        return static if len(static) == len(shape) else None

    def constant(self, value: ir.Value | None) -> Array | None:
        """The content of an initializer or of a Constant node, else None. Large ones are views of a mapped file."""
        if value is None or (value.is_graph_input() and value.is_initializer()):
            return None  # an initializer that is also an input can be fed: it is a default, not a constant
        tensor = ir.convenience.get_const_tensor(value)
        if tensor is None or tensor.dtype == ir.DataType.STRING:
            return None
        # A map of its own goes with the last array that was read from it, and its pages with it.
        return private_map(tensor).numpy() if isinstance(tensor, ir.ExternalTensor) else tensor.numpy()

    def is_constant(self, value: ir.Value | None) -> bool:
        """Whether :meth:`constant` has an answer; reads no data."""
        if value is None or value.is_graph_input():
            return False
        return ir.convenience.get_const_tensor(value) is not None

    def scalar(self, value: ir.Value | None) -> float | None:
        """The content of a constant with one element, whatever its rank."""
        if value is None or not self.is_constant(value):
            return None
        tensor = ir.convenience.get_const_tensor(value)
        if tensor is None or tensor.size != 1 or tensor.dtype == ir.DataType.STRING:
            return None
        return float(tensor.numpy().reshape(()))

    def integers(self, value: ir.Value | None) -> tuple[int, ...] | None:
        """The content of a constant integer scalar or vector."""
        array = self.constant(value)
        if array is None or array.ndim > 1 or not np.issubdtype(array.dtype, np.integer):
            return None
        return tuple(int(item) for item in array.reshape(-1))

    def producer(self, value: ir.Value | None, *operators: str) -> ir.Node | None:
        """The node that makes a value, where it is one of these operators (or any, where none is named)."""
        node = None if value is None else value.producer()
        if node is None or (operators and operator_of(node) not in operators):
            return None
        return node

    def only_use(self, value: ir.Value) -> ir.Node | None:
        """The one node that uses a value once, where no other use and no graph output needs it."""
        uses = value.uses()
        if len(uses) != 1 or value.is_graph_output():
            return None
        user: ir.Node = next(iter(uses)).node
        return user

    def is_private(self, value: ir.Value) -> bool:
        """Whether only one node input uses a value and no graph output does."""
        return len(value.uses()) == 1 and not value.is_graph_output()

    def replaced(self, old: ir.Value, new: ir.Value) -> None:
        """Tells that ``new`` stands for ``old``: they have the same shape and content."""
        if self._shapes is not None:
            self._shapes.copy(old, new)


def attribute(node: ir.Node, name: str, default: T) -> T:
    """The value of an attribute, or the default where it is absent."""
    found = node.attributes.get(name)
    if found is None or not isinstance(found, ir.Attr) or found.value is None:
        return default
    value = found.value
    if isinstance(default, tuple) and isinstance(value, (list, tuple)):
        return tuple(value)  # type: ignore[return-value]  # sequences come back as tuples, whatever onnx_ir holds
    return value  # type: ignore[no-any-return]  # the schema, not the type checker, knows the attribute's type


def input_of(node: ir.Node, index: int) -> ir.Value | None:
    """An input of a node, or None where it is absent or left empty."""
    return node.inputs[index] if index < len(node.inputs) else None

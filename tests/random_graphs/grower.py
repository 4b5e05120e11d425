"""A graph under construction: values, constants in all their forms, inputs, nodes in the form of the opset, scopes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import helper

from tests.random_graphs.choices import Choices
from tests.random_graphs.values import SYMBOLS, Shape, Size, Value, fixed, is_static

Array = np.ndarray[Any, Any]
DTYPES = {
    "float32": onnx.TensorProto.FLOAT, "float16": onnx.TensorProto.FLOAT16, "float64": onnx.TensorProto.DOUBLE,
    "int64": onnx.TensorProto.INT64, "int32": onnx.TensorProto.INT32, "bool": onnx.TensorProto.BOOL,
    "uint8": onnx.TensorProto.UINT8, "int8": onnx.TensorProto.INT8,
}  # fmt: skip
_RECENT = 7
_TAME = 60.0


@dataclass
class Model:
    """What all scopes of a model share.

    Attributes:
        choices: decides.
        opset: of the standard domain.
        kind: the float type of most values.
        numbers: makes the content of constants.
        inputs: of the main graph.
        defaults: inputs that are initializers too.
        functions: functions of the model.
        count: of names so far.
    """

    choices: Choices
    opset: int
    kind: str
    numbers: np.random.Generator
    inputs: list[Value] = field(default_factory=list)
    defaults: list[onnx.ValueInfoProto] = field(default_factory=list)
    functions: list[onnx.FunctionProto] = field(default_factory=list)
    count: int = 0

    def name(self, prefix: str) -> str:
        """A name that nothing has yet."""
        self.count += 1
        return f"{prefix}{self.count}"


class Grower:
    """One graph or subgraph under construction.

    Attributes:
        model: shared by all scopes.
        nodes: so far.
        initializers: so far.
        pool: values made in this scope, oldest first.
    """

    def __init__(self, model: Model, outer: Grower | None = None) -> None:
        self.model, self.outer = model, outer
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.pool: list[Value] = []
        self._constants: list[tuple[Value, Array]] = []

    @property
    def opset(self) -> int:
        """Version of the standard domain."""
        return self.model.opset

    @property
    def choices(self) -> Choices:
        """Decides."""
        return self.model.choices

    def inner(self) -> Grower:
        """A scope for a subgraph, which sees the values of this one."""
        return Grower(self.model, self)

    # Nodes

    def ops(
        self, op_type: str, inputs: Sequence[Value | None], results: Sequence[Value | None], domain: str = "", **attributes: Any
    ) -> None:
        """Adds a node; results without a place in the pool are passed as values of :meth:`result` all the same."""
        names = ["" if value is None else value.name for value in inputs]
        kept = {key: value for key, value in attributes.items() if value is not None}
        name = self.model.name("n") if self.choices.chance(85) else ""
        node = helper.make_node(op_type, names, ["" if r is None else r.name for r in results], name=name, domain=domain, **kept)
        if self.choices.chance(2):
            node.doc_string = "what an exporter wrote"
        self.nodes.append(node)
        self.pool.extend(result for result in results if result is not None)

    def op(
        self, op_type: str, inputs: Sequence[Value | None], shape: Shape, dtype: str = "", bound: float = -1.0, exact: bool = False,
        **attributes: Any,
    ) -> Value:  # fmt: skip
        """Adds a node with one output; type and bound are those of the first input where they are not given."""
        first = next(value for value in inputs if value is not None)
        result = self.result(shape, dtype or first.dtype, first.bound if bound < 0 else bound, exact)
        self.ops(op_type, inputs, [result], **attributes)
        return result

    def result(self, shape: Shape, dtype: str, bound: float = 4.0, exact: bool = False) -> Value:
        """A new value, yet without a node."""
        return Value(self.model.name("v"), dtype, tuple(shape), bound, exact)

    def exactly(self, op_type: str, value: Value, *others: Value | None, shape: Shape | None = None, **attributes: Any) -> Value:
        """A node that only moves or chooses elements of its first input."""
        return self.op(op_type, [value, *others], value.shape if shape is None else shape, exact=value.exact, **attributes)

    def with_axes(self, op_type: str, value: Value, axes: Sequence[int], shape: Shape, since: int, **attributes: Any) -> Value:
        """A node whose axes are an attribute before an opset and an input from it on."""
        if self.opset < since:
            return self.op(op_type, [value], shape, axes=list(axes), **attributes)
        return self.op(op_type, [value, self.integers(axes)], shape, **attributes)

    # Constants

    def constant(self, array: Array, bound: float | None = None) -> Value:
        """A constant as an initializer, a Constant node, an input with a default, or an equal one that is there already."""
        array = np.asarray(array)
        for value, content in self._constants:
            same = content.dtype == array.dtype and content.shape == array.shape and np.array_equal(content, array)
            if same and self.choices.chance(50):
                return value
        largest = float(np.max(np.abs(array.astype(np.float64)), initial=0)) if bound is None else bound
        value = Value(self.model.name("c"), str(array.dtype), fixed(*array.shape), largest, exact=True)
        tensor = helper.make_tensor(value.name, DTYPES[value.dtype], array.shape, array.tobytes(), raw=True)
        if self.choices.chance(25):
            self.nodes.append(self._constant_node(value.name, array, tensor))
        else:
            self.initializers.append(tensor)
            if self.outer is None and self.choices.chance(2):
                self.model.defaults.append(helper.make_tensor_value_info(value.name, DTYPES[value.dtype], array.shape))
        self._constants.append((value, array))
        return value

    def _constant_node(self, name: str, array: Array, tensor: onnx.TensorProto) -> onnx.NodeProto:
        short = self.opset >= 12 and array.size and self.choices.chance(50)
        if short and array.dtype == np.int64 and array.ndim < 2:
            return helper.make_node("Constant", [], [name], **{"value_ints" if array.ndim else "value_int": array.tolist()})
        if short and array.dtype == np.float32 and array.ndim < 2:
            return helper.make_node("Constant", [], [name], **{"value_floats" if array.ndim else "value_float": array.tolist()})
        return helper.make_node("Constant", [], [name], value=tensor)

    def integers(self, numbers: Sequence[int]) -> Value:
        """An int64 vector."""
        return self.constant(np.array(numbers, dtype=np.int64))

    def integer(self, number: int) -> Value:
        """An int64 scalar."""
        return self.constant(np.array(number, dtype=np.int64))

    def number(self, number: float, like: Value, rank: int = 0) -> Value:
        """A constant of one element in the type of a value."""
        return self.constant(np.full((1,) * rank, number, dtype=like.dtype))

    def weights(self, *shape: int, dtype: str = "", low: float = -1.0, high: float = 1.0) -> Value:
        """A constant of random numbers, well away from zero where both bounds are."""
        return self.constant(self.model.numbers.uniform(low, high, shape).astype(dtype or self.model.kind))

    # Operands

    def pick(self, fits: Callable[[Value], bool]) -> Value | None:
        """A recent value with a property, from this scope or from one around it."""
        found: list[Value] = []
        scope: Grower | None = self
        while scope is not None and len(found) < _RECENT:
            found.extend(value for value in reversed(scope.pool) if fits(value))
            scope = scope.outer
        return self.choices.one_of(found[:_RECENT]) if found else None

    def float_value(self, low: int = 0, high: int = 4, *, exact: bool = False, bound: float = _TAME) -> Value:
        """A float value with a rank between two bounds and numbers below a bound; made where there is none."""
        found = self.pick(lambda v: v.dtype == self.model.kind and low <= v.rank <= high and (v.exact or not exact))
        if found is None or self.choices.chance(4):
            found = self.fresh(self.choices.integer(low if self.choices.chance(20) else max(low, 1), high))
        return self.tamed(found, bound)

    def tamed(self, value: Value, bound: float) -> Value:
        """A value whose numbers stay below a bound."""
        if value.bound <= bound:
            return value
        if bound >= 1 and self.choices.chance(50):
            return self.op("Tanh", [value], value.shape, bound=1.0)
        limits = [self.number(-bound, value), self.number(bound, value)]
        return self.op("Clip", [value, *limits], value.shape, bound=bound, exact=value.exact)

    def fresh(self, rank: int, dtype: str = "", shape: Shape | None = None) -> Value:
        """A new input of the model."""
        if shape is None:
            dynamic = list(SYMBOLS.values())[: self.choices.integer(0, 3)]
            sizes: list[Size] = [*fixed(3, 4, 2, 6, 1), *dynamic, *dynamic]
            shape = tuple(self.choices.one_of(sizes) for _ in range(rank))
        value = Value(self.model.name("x"), dtype or self.model.kind, shape, exact=True)
        self.model.inputs.append(value)
        root = self
        while root.outer is not None:
            root = root.outer
        root.pool.append(value)
        return value

    def static_axes(self, value: Value) -> list[int]:
        """The axes with a static length."""
        return [axis for axis, size in enumerate(value.shape) if is_static(size)]

"""Kernels: which nodes could run in integers, on which of their values, and what they take in with them."""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphopt.graph.layers import Layer, layer_of
from graphopt.graph.view import View, attribute, input_of, operator_of
from graphopt.targets import Target
from graphopt.targets.emit import NHWC_QLINEAR_CONV, QGEMM, QLINEAR_CONV, QLINEAR_MATMUL, qlinear

_LEAST_FACTOR = 1e-6
"""What is multiplied with less, or divided by less, would leave the numbers that scales can be."""


@dataclass(frozen=True)
class Ground:
    """What a node is judged on.

    Attributes:
        view: of the model.
        target: what the model is made for.
    """

    view: View
    target: Target

    def runs(self, operator: str, dtype: ir.DataType = ir.DataType.UINT8) -> bool:
        """Whether the target has a kernel for an operator, for codes where no type is given."""
        return self.target.runs(operator, dtype, self.view.opset)


class Kind(enum.Enum):
    """What a kernel does with grids."""

    LAYER = "has a grid for its output and a weight of its own"
    ARITHMETIC = "has a grid for its output"
    MOVEMENT = "moves codes: inputs and outputs share one grid"
    SHIFT = "multiplies or adds one number: the codes stay, their grid moves"


@dataclass(frozen=True, eq=False)
class Kernel:
    """A node that can run in integers.

    Attributes:
        node: the operator.
        kind: what it does with grids.
        data: the indices of the inputs that are read as codes.
        runs_as: the kernel that is planned to run; empty where the runtime may do without one.
        absorbed: nodes after it that run inside, the first reading its output.
        ceiling: what a Relu or Clip among them cuts its output at; infinite for a Relu, None where nothing is cut off at 0.
        layer: the weight, of a layer.
        bias: the constant vector that a layer adds, in its own node or the next; None where it adds nothing.
        factor, offset: what a shift multiplies with and adds.
    """

    node: ir.Node
    kind: Kind
    data: tuple[int, ...]
    runs_as: str
    absorbed: tuple[ir.Node, ...] = ()
    ceiling: float | None = None
    layer: Layer | None = None
    bias: ir.Value | None = None
    factor: float = 1.0
    offset: float = 0.0

    @property
    def inputs(self) -> tuple[ir.Value, ...]:
        """What is read as codes, each value once."""
        return tuple(dict.fromkeys(value for index in self.data if (value := self.node.inputs[index]) is not None))

    @property
    def outputs(self) -> tuple[ir.Value, ...]:
        """What comes out as codes."""
        return tuple((self.absorbed[-1] if self.absorbed else self.node).outputs)


def kernel_of(node: ir.Node, on: Ground) -> Kernel | None:
    """The kernel that a node can run in; None where there is none, or one of its values is no float32 tensor."""
    make = _KERNELS.get(operator_of(node))
    kernel = make(node, on) if make else None
    if kernel is None or not kernel.inputs or not all(_is_float(value, on.view) for value in (*kernel.inputs, *kernel.outputs)):
        return None
    return kernel


def _is_float(value: ir.Value, view: View) -> bool:
    return view.dtype(value) == ir.DataType.FLOAT and view.rank(value) is not None


def _convolution(node: ir.Node, on: Ground) -> Kernel | None:
    layer = _usable_layer(node, on)
    bias = input_of(node, 2)
    if layer is None or not on.runs(QLINEAR_CONV) or (bias is not None and not on.view.is_constant(bias)):
        return None
    if (on.view.rank(layer.input) or 0) not in (3, 4):
        return None
    absorbed, ceiling = _cut(node.outputs[0], on.view)
    return Kernel(node, Kind.LAYER, (0,), NHWC_QLINEAR_CONV, absorbed, ceiling, layer, bias)


def _product(node: ir.Node, on: Ground) -> Kernel | None:
    """A Gemm, or a MatMul and the bias added after it: the runtime makes QGemm of both, where their data are matrices."""
    layer = _usable_layer(node, on)
    if (
        layer is None
        or layer.index != 1
        or on.view.rank(layer.input) != 2
        or len(layer.stored_shape) != 2
        or attribute(node, "transA", 0)
        or layer.scale != 1.0
    ):
        return None
    added: tuple[ir.Node, ...] = ()
    bias = input_of(node, 2)
    if operator_of(node) == "Gemm":
        if bias is not None and (layer.bias_scale != 1.0 or not _is_vector(bias, layer, on)):
            return None
    else:
        add = on.view.only_use(node.outputs[0])
        if add is not None and operator_of(add) == "Add":
            bias = next((value for value in add.inputs if _is_vector(value, layer, on)), None)
            added = (add,) if bias is not None else ()
    name = QGEMM if operator_of(node) == "Gemm" or added else QLINEAR_MATMUL
    if not on.runs(name, ir.DataType.FLOAT if name == QGEMM else ir.DataType.UINT8):  # its type variable is that of its scales
        return None
    absorbed, ceiling = _cut((added[-1] if added else node).outputs[0], on.view)
    return Kernel(node, Kind.LAYER, (0,), name, (*added, *absorbed), ceiling, layer, bias)


def _is_vector(bias: ir.Value | None, layer: Layer, on: Ground) -> bool:
    return on.view.is_constant(bias) and on.view.static_shape(bias) == (layer.shape[1],)


def _usable_layer(node: ir.Node, on: Ground) -> Layer | None:
    layer = layer_of(node)
    if layer is None or on.view.dtype(layer.value) != ir.DataType.FLOAT or not np.isfinite(layer.weight()).all():
        return None
    return layer


def _binary(node: ir.Node, on: Ground) -> Kernel | None:
    name = qlinear(operator_of(node))
    if not on.runs(name) or all(on.view.is_constant(value) for value in node.inputs):
        return None
    absorbed, ceiling = _cut(node.outputs[0], on.view)
    shift = None if absorbed else _shift(node, on)
    return shift or Kernel(node, Kind.ARITHMETIC, (0, 1), name, absorbed, ceiling)


def _shift(node: ir.Node, on: Ground) -> Kernel | None:
    """A product with one positive number, or a sum with one number."""
    for index in (0, 1):
        number, data = on.view.scalar(node.inputs[1 - index]), node.inputs[index]
        if number is None or not math.isfinite(number) or (on.view.rank(data) or 0) < (on.view.rank(node.inputs[1 - index]) or 0):
            continue
        if operator_of(node) == "Add":
            is_free = _is_own(data, on) and not (number > 0.0 and _is_cut(data, on))
            return Kernel(node, Kind.SHIFT, (index,), "", offset=number) if is_free else None
        if _LEAST_FACTOR < number < 1.0 / _LEAST_FACTOR:
            return Kernel(node, Kind.SHIFT, (index,), "", factor=number)
    return None


def _is_own(value: ir.Value | None, on: Ground) -> bool:
    """Whether nobody else reads a value, or what it is a multiple of, and would suffer from a grid that must reach further."""
    while value is not None and on.view.is_private(value):
        node = on.view.producer(value, "Mul")
        if node is None or all(on.view.scalar(part) is None for part in node.inputs):
            return True
        value = next((part for part in node.inputs if on.view.scalar(part) is None), None)
    return False


def _is_cut(value: ir.Value | None, on: Ground) -> bool:
    """Whether a value's grid may have to begin at 0: then what a positive number is added to has no code for 0."""
    node = None if value is None else value.producer()
    while node is not None:
        operator = operator_of(node)
        if operator in ("Relu", "Clip", "HardSigmoid", "Concat"):
            return True
        is_shift = operator in ("Add", "Mul") and any(on.view.scalar(part) is not None for part in node.inputs)
        if not is_shift and _KERNELS.get(operator) not in (_movement, _max_pool, _pad, _resize):
            return False
        node = next((part.producer() for part in node.inputs if part is not None and not on.view.is_constant(part)), None)
    return False


def _concat(node: ir.Node, on: Ground) -> Kernel | None:
    name = qlinear("Concat")
    return Kernel(node, Kind.ARITHMETIC, tuple(range(len(node.inputs))), name) if on.runs(name) else None


def _unary(node: ir.Node, on: Ground) -> Kernel | None:
    name = qlinear(operator_of(node))
    return Kernel(node, Kind.ARITHMETIC, (0,), name) if on.runs(name) else None


def _hard_sigmoid(node: ir.Node, on: Ground) -> Kernel | None:
    """``clip(alpha x + beta, 0, 1)``: a sum whose codes end where it is cut off."""
    name = qlinear("Add")
    if not on.runs(name) or attribute(node, "alpha", 0.2) <= 0.0 or attribute(node, "beta", 0.5) <= 0.0:
        return None
    return Kernel(node, Kind.ARITHMETIC, (0,), name, ceiling=1.0)


def _pool(node: ir.Node, on: Ground) -> Kernel | None:
    """Pools over pictures; the runtime has fast kernels for these alone."""
    if on.view.rank(node.inputs[0]) != 4 or attribute(node, "ceil_mode", 0) or any(d != 1 for d in attribute(node, "dilations", (1,))):
        return None
    return _unary(node, on)


def _movement(node: ir.Node, on: Ground) -> Kernel | None:
    return Kernel(node, Kind.MOVEMENT, (0,), "") if on.runs(operator_of(node)) else None


def _max_pool(node: ir.Node, on: Ground) -> Kernel | None:
    if on.view.rank(node.inputs[0]) != 4 or len(node.outputs) != 1:
        return None
    return _movement(node, on)


def _pad(node: ir.Node, on: Ground) -> Kernel | None:
    """Zeros are padded as zero points; any other number would need a code of its own."""
    value = input_of(node, 2)
    is_zero = value is None or on.view.scalar(value) == 0.0
    return _movement(node, on) if is_zero else None


def _resize(node: ir.Node, on: Ground) -> Kernel | None:
    return _movement(node, on) if attribute(node, "mode", "nearest") == "nearest" else None


def _cut(value: ir.Value, view: View) -> tuple[tuple[ir.Node, ...], float | None]:
    """The Relu or Clip at 0 that alone reads a value, and what it cuts off above."""
    user = view.only_use(value)
    if user is None or not isinstance(user.graph, ir.Graph) or user.graph is not value.producer().graph:  # type: ignore[union-attr]
        return (), None
    if operator_of(user) == "Relu":
        return (user,), math.inf
    if operator_of(user) != "Clip" or view.scalar(input_of(user, 1)) != 0.0:
        return (), None
    above = input_of(user, 2)
    ceiling = math.inf if above is None else view.scalar(above)
    return ((user,), ceiling) if ceiling is not None and ceiling > 0.0 else ((), None)


_KERNELS: Mapping[str, Callable[[ir.Node, Ground], Kernel | None]] = {
    "Conv": _convolution,
    **dict.fromkeys(("Gemm", "MatMul"), _product),
    **dict.fromkeys(("Add", "Mul"), _binary),
    **dict.fromkeys(("Sigmoid", "LeakyRelu"), _unary),
    "HardSigmoid": _hard_sigmoid,
    **dict.fromkeys(("AveragePool", "GlobalAveragePool"), _pool),
    "Concat": _concat,
    **dict.fromkeys(("Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Slice", "Gather", "Expand", "Tile"), _movement),
    **dict.fromkeys(("DepthToSpace", "SpaceToDepth"), _movement),
    "MaxPool": _max_pool,
    "Pad": _pad,
    "Resize": _resize,
}

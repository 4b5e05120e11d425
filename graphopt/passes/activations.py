"""Activation functions: recognised however they were exported, and written in the form that the target runs fastest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from graphopt.graph.edits import Builder
from graphopt.graph.forms import clip_bounds
from graphopt.graph.terms import affine_base, are_close, least_elements, polynomial_of, product_of
from graphopt.graph.view import View, attribute
from graphopt.passes.rules import Change, Miss, Rule, TargetedPass, rule

_GELU_ARGUMENTS = {"Erf": (0.0, 0.5**0.5), "Tanh": (0.0, (2 / np.pi) ** 0.5, 0.0, 0.044715 * (2 / np.pi) ** 0.5)}
"""The argument of the error function, or of tanh in its stead, as a polynomial of x."""

_MISH_PAYS, _PRELU_PAYS, _ELU_PAYS = 256, 512, 4096
"""Elements from which several quick kernels take less time than one slow kernel, with a margin."""

_SOFTPLUS_IS_LINEAR = 20
"""From here on log(1 + exp(x)) is x in float32; frameworks put their threshold there."""

_USED_ELSEWHERE = Miss("a result in between is used elsewhere")
_NO_KERNEL = Miss("the target has no kernel for it at this opset and element type")
_UNKNOWN_SHAPE = Miss("whether a constant widens the shape is not known")


@dataclass(frozen=True)
class _HardGate:
    """scale * HardSigmoid(x).

    Attributes:
        alpha: the slope within the bounds.
        beta: what is added to alpha * x.
        scale: the upper bound.
        inner: the results in between, its own not included.
    """

    alpha: float
    beta: float
    scale: float
    inner: tuple[ir.Value, ...]


def recognize_gelu(node: ir.Node, view: View) -> Change | Miss | None:
    """Replaces x * (1 + erf(x / sqrt(2))) / 2, or the same with tanh(sqrt(2 / pi) * (x + 0.044715 * x³)), with Gelu(x).

    In every order of operands and factors, where nothing in between is used elsewhere: Gelu where the target runs it (opset
    20), else on ONNX Runtime com.microsoft's Gelu, or FastGelu for tanh. Rounding-level. The form with erf is what the
    runtime makes at load by itself; the one with tanh is 2.1 (64 elements) to 2.5 times as fast.
    """
    product = product_of(node, view)
    if len(product.leaves) != 2:
        return None
    for x, bell in (product.leaves, product.leaves[::-1]):
        core = view.producer(affine_base(bell, view), "Erf", "Tanh")
        if core is None or core.inputs[0] is None:
            continue
        outer, inner = polynomial_of(bell, core.outputs[0], view), polynomial_of(core.inputs[0], x, view)
        if outer is None or inner is None or len(outer.coefficients) != 2:
            continue
        halves = [coefficient * product.factor for coefficient in outer.coefficients]
        if not are_close(halves, (0.5, 0.5), view.dtype(x)):
            continue
        if not are_close(inner.coefficients, _GELU_ARGUMENTS[core.op_type], view.dtype(x)):
            return Miss("its constants are not those of Gelu")
        between = (*product.inner, *outer.inner, *inner.inner, core.outputs[0])
        return _why_not(node, x, between, view) or _gelu(x, core.op_type, view)
    return None


def recognize_mish(node: ir.Node, view: View) -> Change | Miss | None:
    """Replaces x * tanh(softplus(x)) with Mish(x).

    Where the target runs Mish (opset 18), also where softplus is written log(1 + exp(x)). Exact; two nodes less.
    """
    found = _mish_chain(node, view)
    if found is None or isinstance(found, Miss):
        return found
    x = found
    return Change(lambda op: op.op("Mish", x)) if view.runs("Mish", x) else _NO_KERNEL


def expand_mish(node: ir.Node, view: View) -> Change | Miss | None:
    """Replaces Mish(x), or x * tanh(softplus(x)), with x * n / (n + 2), where n = e * (e + 2) and e = exp(min(x, 20)).

    From 256 elements on. Rounding-level at every x, and closer to the true value than the chain. The kernels for softplus
    and tanh are slow: 1.2 times as fast at 256 elements, 2.4 at 1024, 8 at 8192, 10 and more above.
    """
    found = node.inputs[0] if node.op_type == "Mish" else _mish_chain(node, view)
    if found is None or isinstance(found, Miss):
        return found
    x = found
    if view.opset < 8 or not (view.runs("Exp", x) and view.runs("Min", x)):
        return _NO_KERNEL
    if least_elements(x, view) < _MISH_PAYS:
        return Miss(f"it pays from {_MISH_PAYS} elements on")

    def build(op: Builder) -> ir.Value:
        two = _number(op, view, x, 2)
        e = op.op("Exp", op.op("Min", x, _number(op, view, x, 20)))
        n = op.op("Mul", e, op.op("Add", e, two))
        return op.op("Mul", x, op.op("Div", n, op.op("Add", n, two)))

    return Change(build, kernels=("::Min", "::Exp", "::Add", "::Mul", "::Add", "::Div", "::Mul"))


def expand_elu(node: ir.Node, view: View) -> Change | Miss | None:
    """Replaces Elu, Celu or Selu with max(x, a * (exp(min(x, 0) / b) - 1)), or with a sum of relu(x) and that where it is steeper.

    From 4096 elements on. Rounding-level (the kernels too subtract 1 from an exponential). 1.5 times as fast at 4096
    elements, 1.9 at 8192, 3 above.
    """
    x, scales = node.inputs[0], _elu_scales(node)
    if x is None or view.opset < 8 or not (view.runs("Exp", x) and view.runs("Min", x) and view.runs("Max", x)):
        return _NO_KERNEL
    if least_elements(x, view) < _ELU_PAYS:
        return Miss(f"it pays from {_ELU_PAYS} elements on")
    rise, fall, inner = scales
    if not (rise > 0 and fall > 0 and np.isfinite(inner)):
        return Miss("a factor is not positive")

    def times(op: Builder, value: ir.Value, factor: float) -> ir.Value:
        return value if factor == 1 else op.op("Mul", value, _number(op, view, x, factor))

    bounded = rise == 1 and fall * inner <= 1

    def build(op: Builder) -> ir.Value:
        below = times(op, op.op("Min", x, _number(op, view, x, 0)), inner)
        decay = times(op, op.op("Sub", op.op("Exp", below), _number(op, view, x, 1)), fall)
        if bounded:
            return op.op("Max", x, decay)
        return op.op("Add", times(op, op.op("Relu", x), rise), decay)

    products = ("::Mul",) * sum(factor != 1 for factor in scales)
    return Change(build, kernels=("::Min", "::Exp", "::Sub", *(("::Max",) if bounded else ("::Relu", "::Add")), *products))


def use_leaky_relu(node: ir.Node, view: View) -> Change | Miss | None:
    """Replaces PRelu with equal constant slopes with LeakyRelu.

    Exact. 1.3 times as fast at 64 elements, 1.6 at 512, 10 to 20 above, and a convolution before it can take it in.
    """
    x, slopes = node.inputs[0], view.constant(node.inputs[1])
    if x is None or slopes is None or not slopes.size:
        return Miss("the slopes are not constant")
    if not np.all(slopes == slopes.flat[0]):
        return None
    alpha = float(slopes.flat[0])
    return Change(lambda op: op.op("LeakyRelu", x, alpha=alpha)) if view.runs("LeakyRelu", x) else _NO_KERNEL


def expand_prelu(node: ir.Node, view: View) -> Change | Miss | None:
    """Replaces PRelu with max(x, slope * x).

    Where all slopes are constant, at most 1 and none is 0, from 512 elements on. Exact. The kernel for PRelu branches at
    each element: 1.4 times as fast at 512 elements, 7 at 12,544, 14 above.
    """
    x, slope = node.inputs
    slopes = view.constant(slope)
    if x is None or slopes is None:
        return None
    if not np.all((slopes <= 1) & (slopes != 0)):
        return Miss("a slope is more than 1, or 0")
    if view.opset < 8 or not (view.runs("Max", x) and view.runs("Mul", x)):
        return _NO_KERNEL
    if least_elements(x, view) < _PRELU_PAYS:
        return Miss(f"it pays from {_PRELU_PAYS} elements on")
    return Change(lambda op: op.op("Max", x, op.op("Mul", x, slope)), kernels=("::Max",))


def recognize_hard_sigmoid(node: ir.Node, view: View) -> Change | Miss | None:
    """Replaces clip(a * x + b, 0, c) / c with HardSigmoid(x).

    Where a, b and c are constants and nothing in between is used elsewhere. Rounding-level. 1.35 times as fast at 64
    elements, 2.4 at 400,000.
    """
    product = product_of(node, view)
    leaf = node.outputs[0] if node.op_type == "Clip" else product.leaves[0] if len(product.leaves) == 1 else None
    clipped = view.producer(leaf, "Clip")
    if leaf is None or clipped is None or clipped.inputs[0] is None:
        return None
    x = affine_base(clipped.inputs[0], view)
    if x is clipped.inputs[0]:
        return None
    factor, between = (1.0, ()) if clipped is node else (product.factor, (*product.inner, leaf))
    gate = _hard_gate(x, clipped, view)
    if gate is None or not are_close((gate.scale * factor,), (1.0,), view.dtype(x)):
        return None
    if not view.runs("HardSigmoid", x):
        return _NO_KERNEL
    return _why_not(node, x, (*between, *gate.inner), view) or Change(lambda op: _sigmoid_of(op, x, gate))


def recognize_hard_swish(node: ir.Node, view: View) -> Change | Miss | None:
    """Replaces d * x * clip(a * x + b, 0, c) with (c d) * x * HardSigmoid(x), or with HardSwish(x).

    Where a, b, c and d are constants and nothing in between is used elsewhere; HardSwish where the target runs it (opset 14)
    and the constants are its own, also for x * HardSigmoid(x). Rounding-level. 1.25 times as fast at 64 elements, 1.9 at
    400,000, and a convolution before x * HardSigmoid(x) takes it in.
    """
    product = product_of(node, view)
    if len(product.leaves) != 2:
        return None
    for x, value in (product.leaves, product.leaves[::-1]):
        made = view.producer(value, "Clip", "HardSigmoid")
        if made is not None and made.op_type == "Clip":
            gate = _hard_gate(x, made, view)
        elif made is not None and made.inputs[0] is x and view.runs("HardSwish", x):
            gate = _HardGate(attribute(made, "alpha", 0.2), attribute(made, "beta", 0.5), 1.0, ())
        else:
            gate = None
        if gate is not None:
            return _hard_swish(x, gate, product.factor, view, _why_not(node, x, (*product.inner, value, *gate.inner), view))
    return None


def recognize_softsign(node: ir.Node, view: View) -> Change | Miss | None:
    """Replaces x / (1 + |x|) with Softsign(x).

    Where nothing in between is used elsewhere. Rounding-level. 1.3 times as fast at 64 elements, 1.75 at 400,000.
    """
    x, divisor = node.inputs
    absolute = None if divisor is None else view.producer(affine_base(divisor, view), "Abs")
    if x is None or divisor is None or absolute is None or absolute.inputs[0] is not x:
        return None
    found = polynomial_of(divisor, absolute.outputs[0], view)
    if found is None or found.coefficients != (1.0, 1.0):
        return None
    if not view.runs("Softsign", x):
        return _NO_KERNEL
    return _why_not(node, x, (*found.inner, absolute.outputs[0]), view) or Change(lambda op: op.op("Softsign", x))


def drop_softplus_threshold(node: ir.Node, view: View) -> Change | Miss | None:
    """Replaces Where(x > 20, x, Softplus(x)) with Softplus(x).

    For every threshold of 20 or more: from there on softplus(x) is x, to rounding. Two nodes less.
    """
    condition, x, soft = node.inputs
    greater, made = view.producer(condition, "Greater"), view.producer(soft, "Softplus")
    if x is None or soft is None or greater is None or made is None or greater.inputs[0] is not x or made.inputs[0] is not x:
        return None
    threshold = view.scalar(greater.inputs[1])
    if threshold is None or threshold < _SOFTPLUS_IS_LINEAR or view.dtype(x) == ir.DataType.DOUBLE:
        return Miss("the threshold is low, or not constant, or the element type tells softplus(x) from x above it")
    return Change(lambda _: (soft,)) if view.shape(soft) == view.shape(node.outputs[0]) else _UNKNOWN_SHAPE


def _gelu(x: ir.Value, core: str, view: View) -> Change | Miss:
    """Gelu by the error function or by tanh."""
    if view.runs("Gelu", x):
        return Change(lambda op: op.op("Gelu", x, approximate={"Erf": None, "Tanh": "tanh"}[core]))
    operator = {"Erf": "Gelu", "Tanh": "FastGelu"}[core]
    if view.rank(x) and view.runs(f"com.microsoft::{operator}", x):  # FastGelu takes no scalars
        return Change(lambda op: op.op(operator, x, domain="com.microsoft"))
    return _NO_KERNEL


def _mish_chain(node: ir.Node, view: View) -> ir.Value | Miss | None:
    """The x of x * tanh(softplus(x))."""
    for x, gate in (node.inputs, node.inputs[::-1]):
        tanh = view.producer(gate, "Tanh")
        inner = None if tanh is None else _softplus(tanh.inputs[0], x, view)
        if x is not None and gate is not None and inner is not None:
            return _why_not(node, x, (gate, *inner), view) or x
    return None


def _softplus(value: ir.Value | None, x: ir.Value | None, view: View) -> Sequence[ir.Value] | None:
    """The results in between of softplus(x), its own included; None where a value is something else."""
    made = view.producer(value, "Softplus", "Log")
    if value is None or made is None or x is None or made.inputs[0] is None:
        return None
    if made.op_type == "Softplus":
        return (value,) if made.inputs[0] is x else None
    exponential = view.producer(affine_base(made.inputs[0], view), "Exp")
    if exponential is None or exponential.inputs[0] is not x:
        return None
    found = polynomial_of(made.inputs[0], exponential.outputs[0], view)
    return (value, *found.inner, exponential.outputs[0]) if found is not None and found.coefficients == (1.0, 1.0) else None


def _elu_scales(node: ir.Node) -> tuple[float, float, float]:
    """The factors of x above zero, of exp - 1 below, and of x within the exponential."""
    if node.op_type == "Selu":
        gamma = attribute(node, "gamma", 1.05070102214813232421875)
        return gamma, gamma * attribute(node, "alpha", 1.67326319217681884765625), 1.0
    alpha = attribute(node, "alpha", 1.0)
    return 1.0, alpha, 1.0 if node.op_type == "Elu" else 1.0 / alpha if alpha else np.inf


def _hard_gate(x: ir.Value, clipped: ir.Node, view: View) -> _HardGate | None:
    """Clip(a * x + b, 0, c), where a, b and c are constants."""
    bounds, argument = clip_bounds(clipped, view), clipped.inputs[0]
    line = None if argument is None else polynomial_of(argument, x, view)
    if bounds is None or line is None or len(line.coefficients) != 2 or bounds[0] != 0 or not 0 < bounds[1] < np.inf:
        return None
    beta, alpha = (coefficient / bounds[1] for coefficient in line.coefficients)
    return _HardGate(alpha, beta, bounds[1], line.inner)


def _hard_swish(x: ir.Value, gate: _HardGate, factor: float, view: View, problem: Miss | None) -> Change | Miss | None:
    whole = are_close((gate.scale * factor,), (1.0,), view.dtype(x))
    if whole and view.runs("HardSwish", x) and are_close((gate.alpha, gate.beta), (1 / 6, 0.5), view.dtype(x)):
        return problem or Change(lambda op: op.op("HardSwish", x))
    if not gate.inner or not (whole or factor != 1):  # it is written so already, or nothing is saved before the factor is known
        return None
    if not view.runs("HardSigmoid", x):
        return _NO_KERNEL

    def build(op: Builder) -> ir.Value:
        gated = op.op("Mul", x, _sigmoid_of(op, x, gate))
        return gated if whole else op.op("Mul", gated, _number(op, view, x, gate.scale * factor))

    return problem or Change(build)


def _sigmoid_of(op: Builder, x: ir.Value, gate: _HardGate) -> ir.Value:
    return op.op("HardSigmoid", x, alpha=gate.alpha, beta=gate.beta)


def _why_not(node: ir.Node, x: ir.Value, between: Sequence[ir.Value], view: View) -> Miss | None:
    """Why one operator cannot stand for several."""
    if not all(view.is_private(value) for value in between):
        return _USED_ELSEWHERE
    shape = view.shape(x)
    return None if shape is not None and shape == view.shape(node.outputs[0]) else _UNKNOWN_SHAPE


def _number(op: Builder, view: View, like: ir.Value, number: float) -> ir.Value:
    dtype: Any = (view.dtype(like) or ir.DataType.FLOAT).numpy()
    return op.constant(np.array(number, dtype=dtype))


@dataclass(frozen=True)
class Activations(TargetedPass):
    """Replaces activation functions, however they were exported, with the form that the target runs fastest.

    Float operators of any opset, in subgraphs too. Exact, or at rounding level where a rule says so. Linear. Sigmoid(x) * x
    stays as it is: ONNX Runtime makes one kernel of it, quantized too.
    """

    name: ClassVar[str] = "activations"
    rules: ClassVar[tuple[Rule, ...]] = (
        rule(recognize_gelu, "Mul", "Div"),
        rule(expand_mish, "Mish", "Mul", targets=("cpu",)),
        rule(recognize_mish, "Mul", targets=("portable", "cuda")),
        rule(expand_elu, "Elu", "Celu", "Selu", targets=("cpu",)),
        rule(use_leaky_relu, "PRelu"),
        rule(expand_prelu, "PRelu", targets=("cpu",)),
        rule(recognize_hard_swish, "Mul", "Div"),
        rule(recognize_hard_sigmoid, "Clip", "Mul", "Div"),
        rule(recognize_softsign, "Div"),
        rule(drop_softplus_threshold, "Where"),
    )

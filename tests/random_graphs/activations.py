"""Activation functions as exporters write them: the patterns of the pass ``activations``, and near misses of them."""

from __future__ import annotations

import numpy as np

from tests.random_graphs.grower import Grower
from tests.random_graphs.operators import Step
from tests.random_graphs.values import Value, fixed


def _calm(g: Grower) -> Value:
    return g.float_value(0, 4, bound=8)


def _times(g: Grower, *operands: Value) -> Value:
    pair = g.choices.shuffled(operands)
    wide = max(operands, key=lambda value: value.rank)
    return g.op("Mul", pair, wide.shape, bound=8.0)


def gelu(g: Grower) -> None:
    """Gelu by erf or by tanh, the factors in any order, at times with another constant."""
    x = _calm(g)
    half, one = g.number(g.choices.one_of([0.5, 0.5, 0.5, 0.25]), x), g.number(1, x)
    if g.choices.chance(50):
        root = g.number(2**0.5, x)
        argument = g.op("Div", [x, root], x.shape) if g.choices.chance(60) else _times(g, x, g.number(0.5**0.5, x))
        core = g.op("Erf", [argument], x.shape, bound=1.0)
    else:
        cube = g.op("Pow", [x, g.number(3, x)], x.shape, bound=512.0) if g.choices.chance(50) else _times(g, x, _times(g, x, x))
        line = g.op("Add", [x, _times(g, cube, g.number(0.044715, x))], x.shape, bound=32.0)
        core = g.op("Tanh", [_times(g, line, g.number((2 / np.pi) ** 0.5, x))], x.shape, bound=1.0)
    bell = g.op("Add", g.choices.shuffled([core, one]), x.shape, bound=2.0)
    if g.choices.chance(50):
        _times(g, _times(g, x, bell), half)
    else:
        _times(g, _times(g, x, half), bell)


def mish(g: Grower) -> None:
    """Mish as a chain, or as an operator."""
    x = _calm(g) if g.choices.chance(50) else g.tamed(g.fresh(2, shape=fixed(2, 200)), 4.0)
    if g.opset >= 18 and g.choices.chance(30):
        g.op("Mish", [x], x.shape)
        return
    if g.choices.chance(60):
        soft = g.op("Softplus", [x], x.shape)
    else:
        soft = g.op("Log", [g.op("Add", [g.op("Exp", [x], x.shape), g.number(1, x)], x.shape)], x.shape)
    _times(g, x, g.op("Tanh", [soft], x.shape, bound=1.0))


def softplus(g: Grower) -> None:
    """Softplus with a threshold from which on it is the identity, as torch writes it."""
    x = g.float_value(0, 4, exact=True)
    soft = g.op("Softplus", [x], x.shape)
    above = g.op("Greater", [x, g.number(g.choices.one_of([20, 20, 2]), x)], x.shape, "bool")
    g.op("Where", [above, x, soft], x.shape, x.dtype)


def hard(g: Grower) -> None:
    """HardSigmoid and HardSwish as Clips."""
    x = _calm(g)
    shifted = g.op("Add", [x, g.number(g.choices.one_of([3, 3, 2]), x)], x.shape)
    clipped = g.op("Clip", [shifted, g.number(0, x), g.number(6, x)], x.shape, bound=6.0)
    kind = g.choices.integer(0, 2)
    if kind == 0:
        g.op("Div", [clipped, g.number(6, x)], x.shape, bound=1.0)
    elif kind == 1:
        g.op("Div", [_times(g, x, clipped), g.number(6, x)], x.shape, bound=8.0)
    else:
        _times(g, x, _times(g, clipped, g.number(1 / 6, x)))


def softsign(g: Grower) -> None:
    """x / (1 + |x|)."""
    x = _calm(g)
    divisor = g.op("Add", g.choices.shuffled([g.op("Abs", [x], x.shape), g.number(1, x)]), x.shape)
    g.op("Div", [x, divisor], x.shape, bound=1.0)


def steep(g: Grower) -> None:
    """Elu, Celu, Selu and PRelu of many elements."""
    x = g.fresh(3, shape=fixed(2, 64, 40))
    name = g.choices.one_of(["Elu", "PRelu", "Selu", "PRelu", *(["Celu"] if g.opset >= 12 else [])])
    if name == "PRelu":
        slopes = g.weights(64, 1, low=0.1, high=g.choices.one_of([1.0, 1.0, 1.0, 1.0, 1.3])) if g.choices.chance(75) else g.number(0.25, x)
        g.op(name, [x, slopes], x.shape)
    else:
        alpha = None if g.choices.chance(50) else g.choices.one_of([0.5, 2.0])
        g.op(name, [x], x.shape, bound=8.0, alpha=alpha)


STEPS_OF_ACTIVATIONS: tuple[Step, ...] = (gelu, mish, hard, softsign, softplus, steep, steep, hard, mish, steep, gelu, mish)
"""All of them."""

"""Responses: what the readers of a value make of each of its numbers, which tells where its grid has to be fine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.graph.view import attribute, operator_of

Array = np.ndarray[Any, Any]

_FUNCTIONS: Mapping[str, Callable[[Array, float, float], Array]] = {
    "HardSigmoid": lambda x, alpha, beta: np.clip(alpha * x + beta, 0.0, 1.0),
    "LeakyRelu": lambda x, alpha, beta: np.where(x < 0.0, alpha * x, x),
    "Sigmoid": lambda x, alpha, beta: 0.5 + 0.5 * np.tanh(0.5 * x),
    "Tanh": lambda x, alpha, beta: np.tanh(x),
}
_ALPHA = {"HardSigmoid": 0.2, "LeakyRelu": 0.01}
"""Where a node does not say it."""
_BETA = 0.5


@dataclass(frozen=True)
class Response:
    """A function of single numbers.

    Attributes:
        operator: its name.
        alpha, beta: its attributes.
        is_gate: what it gives is multiplied with what it was given, as in HardSwish and SiLU.
    """

    operator: str
    alpha: float
    beta: float
    is_gate: bool

    def __call__(self, values: Array) -> Array:
        """The results, in the shape of the values."""
        found = _FUNCTIONS[self.operator](values, self.alpha, self.beta)
        return values * found if self.is_gate else found


def response_of(value: ir.Value) -> Response | None:
    """What all readers of a value make of it together; None where they need the number itself, or nobody knows."""
    readers = {use.node for use in value.uses()}
    functions = [node for node in readers if operator_of(node) in _FUNCTIONS]
    if len(functions) != 1 or value.is_graph_output():
        return None
    node = functions[0]
    result, products = node.outputs[0], readers - {node}
    if products and not (_are_gated(products, value, result) and {use.node for use in result.uses()} == products):
        return None
    operator = operator_of(node)
    alpha, beta = attribute(node, "alpha", _ALPHA.get(operator, 0.0)), attribute(node, "beta", _BETA)
    return Response(operator, alpha, beta, bool(products))


def _are_gated(products: set[ir.Node], value: ir.Value, result: ir.Value) -> bool:
    """Whether nodes multiply a value with what a function makes of it, which nothing else needs."""
    gated = all(operator_of(node) == "Mul" and set(node.inputs) == {value, result} for node in products)
    return gated and not result.is_graph_output()

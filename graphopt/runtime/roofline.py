"""Rooflines: what this machine can do at most, measured by the runtime itself.

Williams, Waterman and Patterson: Roofline: an insightful visual performance model, 2009.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphopt.runtime.session import SessionOptions, open_session

_WIDTH = 384
_ELEMENTS = 2**24
_SECONDS = 0.5
_OPSET = 17


@dataclass(frozen=True)
class Roofline:
    """What a machine reaches with the threads that were measured.

    Attributes:
        flops: floating-point operations a second, of a product of two square matrices in 32-bit floats.
        bandwidth: bytes a second that are read and written, of adding a number to an array larger than the caches.
    """

    flops: float
    bandwidth: float

    def attainable(self, intensity: float) -> float:
        """Operations a second that are possible at an arithmetic intensity, in operations for each byte moved."""
        return min(self.flops, intensity * self.bandwidth)


def measure_roofline(options: SessionOptions | None = None) -> Roofline:
    """Takes about a second.

    Raises:
        RuntimeUnavailableError: there is no runtime.
    """
    square = np.ones((_WIDTH, _WIDTH), np.float32)
    product = _fastest(_model("MatMul", square), {"x": square}, options)
    large = np.zeros(_ELEMENTS, np.float32)
    addition = _fastest(_model("Add", np.ones(1, np.float32)), {"x": large}, options)
    return Roofline(2 * _WIDTH**3 / product, 2 * large.nbytes / addition)


def _model(operator: str, constant: np.ndarray) -> ir.Model:
    x = ir.val("x", ir.DataType.FLOAT)
    c = ir.val("c", const_value=ir.tensor(constant, name="c"))
    node = ir.node(operator, [x, c], name="n")
    node.outputs[0].name, node.outputs[0].type = "y", ir.TensorType(ir.DataType.FLOAT)
    graph = ir.Graph([x], node.outputs, nodes=[node], initializers=[c], opset_imports={"": _OPSET}, name="roofline")
    return ir.Model(graph, ir_version=8)


def _fastest(model: ir.Model, feed: dict[str, np.ndarray], options: SessionOptions | None) -> float:
    session = open_session(model, "all", options)
    session.run(feed)
    found: list[float] = []
    end = time.perf_counter() + _SECONDS
    while not found or time.perf_counter() < end:
        start = time.perf_counter()
        session.run(feed)
        found.append(time.perf_counter() - start)
    return min(found)

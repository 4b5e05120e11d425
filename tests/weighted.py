"""Models from text with random weights."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from graphopt.graph.edits import name_nodes
from tests.helpers import parse


def weighted(text: str, weights: Mapping[str, tuple[int, ...]], opset: int = 18) -> ir.Model:
    """A model from ``(inputs) => (outputs) { nodes }`` in which some names stand for random float weights of a shape."""
    declared = "".join(f"float[{','.join(map(str, shape))}] {name}, " for name, shape in weights.items())
    model = parse(text.replace("(", f"({declared}", 1), opset)
    generator = np.random.default_rng(0)
    for name, shape in weights.items():
        value = model.graph.inputs.pop(0)
        value.const_value = ir.tensor(generator.normal(size=shape).astype(np.float32), name=name)
        model.graph.register_initializer(value)
    name_nodes(model)
    return model

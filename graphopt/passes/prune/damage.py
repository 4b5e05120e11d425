"""Damage: what narrower blocks change at the model's outputs, measured on samples."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import onnx_ir as ir
import scipy.special

from graphopt.graph.edits import Names
from graphopt.graph.layers import OPERATORS, Layer
from graphopt.graph.view import operator_of
from graphopt.runtime.session import SessionOptions, open_session

Array = np.ndarray[Any, Any]
Feed = Mapping[str, Array]
Kind = Literal["logits", "probabilities", "values"]

_VIEWS = frozenset({"Add", "Cast", "Identity", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"})


class Damage:
    """Compares variants of a model with the model itself.

    Outputs that a layer makes count by the divergence of the distributions that they are the logits of (Kullback-Leibler, in nats a
    row), those that a softmax makes by that of themselves, others by noise over signal.

    Args:
        model: the original; stays as it is.
        feeds: samples; few, since each variant runs them all.
        options: how to run.
    """

    def __init__(self, model: ir.Model, feeds: Sequence[Feed], options: SessionOptions) -> None:
        self._model, self._feeds, self._options = model, feeds, options
        self._kinds = {value.name or "": _kind(value) for value in model.graph.outputs}
        session = open_session(model, "all", options)
        self._expected = [session.run(feed) for feed in feeds]

    def of(self, weights: Iterable[tuple[Layer, Array]]) -> float:
        """The damage with other weights ``W [groups, out, in]`` in some layers, of the same shape."""
        variant = self._model.clone()
        nodes = {node.name: node for node in variant.graph}
        names = Names(variant)
        for layer, weight in weights:
            layer.on(nodes[layer.name]).assign(weight, names)
        session = open_session(variant, "all", self._options)
        total = 0.0
        for feed, expected in zip(self._feeds, self._expected, strict=True):
            found = session.run(feed)
            total += sum(_difference(self._kinds[name], expected[name], found[name]) for name in expected)
        return total / len(self._feeds)


def _kind(value: ir.Value) -> Kind:
    node = value.producer()
    if node is not None and operator_of(node) == "Softmax":
        return "probabilities"
    while node is not None and operator_of(node) in _VIEWS:
        first = node.inputs[0]
        node = None if first is None else first.producer()
    wide = value.shape is not None and value.shape.rank() > 1 and value.shape[-1] != 1
    return "logits" if node is not None and operator_of(node) in OPERATORS and "Conv" not in operator_of(node) and wide else "values"


def _difference(kind: Kind, expected: Array, found: Array) -> float:
    if expected.dtype.kind != "f":
        return float(np.mean(expected != found))
    before, after = expected.astype(np.float64), found.astype(np.float64)
    if kind == "values":
        signal = float(np.square(before).sum())
        return float(np.square(after - before).sum()) / signal if signal else 0.0
    if kind == "probabilities":
        before, after = (np.log(np.maximum(array, 1e-12)) for array in (before, after))
    before, after = scipy.special.log_softmax(before, -1), scipy.special.log_softmax(after, -1)
    return float(np.mean(np.sum(np.exp(before) * (before - after), axis=-1)))

"""Damage: what narrower blocks change at the model's outputs, measured on samples."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx_ir as ir
import scipy.special

from graphopt.graph.layers import OPERATORS, Layer, layers_of
from graphopt.graph.macs import macs_of
from graphopt.graph.unfold import unfold
from graphopt.graph.view import operator_of
from graphopt.passes.walk.line import Line, data_of, in_turn
from graphopt.runtime.session import Session, SessionOptions
from graphopt.runtime.shelf import Shelf
from graphopt.runtime.statistics.chain import prepared
from graphopt.runtime.statistics.product import Product
from graphopt.solve.thin import ThinMetric

Array = np.ndarray[Any, Any]
Feed = Mapping[str, Array]
Kind = Literal["logits", "probabilities", "values"]

Shapes = Mapping[str, tuple[int, ...]]

WORK = 2.5e12
"""Multiply-accumulates that all variants may take, about 90 seconds of one core: it decides how many samples."""
_VIEWS = frozenset({"Add", "Cast", "Identity", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"})


class Damage:
    """Compares variants of a model with the model itself; what comes before the first changed layer runs once for all of them.

    Outputs that a layer makes count by the divergence of the distributions that they are the logits of (Kullback-Leibler, in nats a
    row), those that a softmax makes by that of themselves, others by noise over signal.

    Args:
        model: the original; stays as it is.
        layers: names of the layers that variants change.
        samples: all of them tell what reaches a layer.
        few: so many of the first are run by each variant; one at least.
        options: how to run.
        folder: for what waits on the disk.
    """

    def __init__(
        self, model: ir.Model, layers: Collection[str], samples: Iterable[Feed], few: int, options: SessionOptions, folder: Path
    ) -> None:
        self._kinds = {value.name or "": _kind(value) for value in model.graph.outputs}
        self._line = Line(prepared(model), layers, options)
        self._shelf = Shelf(samples, folder / "damage")
        self._expected = [self._line.run(self._shelf[number], 0, len(self._line)) for number in range(min(few, len(self._shelf)))]
        self._product = Product(in_turn(options))
        self._at = 0

    def step(self, layer: str) -> int:
        """The place of a layer among those that variants change."""
        return self._line.steps[layer]

    def go_to(self, layers: Collection[str]) -> None:
        """All samples go on to the first of some layers; there is no way back."""
        first = min(map(self.step, layers))
        assert first >= self._at, "variants are measured in the order of their first layers"
        for number in range(len(self._shelf)):
            self._shelf[number] = self._line.run(self._shelf[number], self._at, first)
        self._at = first
        self._line.forget(first)

    def gram(self, layer: Layer) -> Array:
        """What reaches a layer, of all samples: ``X X^T [groups, K, K]`` float32."""
        groups, _, width = layer.shape
        total = np.zeros((groups, width, width), np.float32)
        for x in self._inputs(layer):
            total += self._product(x, x)
        return total

    def few_inputs(self, layer: Layer) -> Array | None:
        """``X [K, n]`` float32 of all samples, where positions are so few that this suits better than a Gram matrix; else None."""
        groups, _, width = layer.shape
        pieces, positions = [], 0
        for x in self._inputs(layer):
            positions += x.shape[2]
            if groups > 1 or not ThinMetric.suits(width, positions):
                return None
            pieces.append(x[0])
        return np.concatenate(pieces, axis=1)

    def _inputs(self, layer: Layer) -> Iterator[Array]:
        """What reaches a layer, sample by sample: ``[groups, K, positions]`` float32."""
        for number in range(len(self._shelf)):
            x = unfold(layer, data_of(layer, self._line.run(self._shelf[number], self._at, self.step(layer.name))))
            yield np.ascontiguousarray(x, np.float32)

    def of(self, weights: Mapping[str, Array]) -> float:
        """The damage of other weights ``W [groups, out, in]`` of the same shape in some layers, none before those gone to."""
        instead: dict[int, Session] = {}
        total = 0.0
        for number, expected in enumerate(self._expected):
            found = self._run(self._shelf[number], weights, instead)
            total += sum(difference(self._kinds[name], expected[name], found[name]) for name in expected)
        return total / len(self._expected)

    def _run(self, state: Feed, weights: Mapping[str, Array], instead: dict[int, Session]) -> Feed:
        """One sample through the rest; sessions of changed layers are made as the first sample gets there."""
        at = self._at
        for name in sorted(weights, key=self.step):
            state = self._line.run(state, at, self.step(name))
            at = self.step(name)
            if at not in instead:
                instead[at] = self._line.with_weight(name, weights[name], state)
            state = self._line.run(state, at, at + 1, instead)
            at += 1
        return self._line.run(state, at, len(self._line))


def differences(model: ir.Model, expected: Feed, found: Feed) -> float:
    """How far the outputs of a variant of a model are from its own, all of them together.

    Args:
        model: says what the outputs are.
        expected: its outputs by name.
        found: the variant's.
    """
    return sum(difference(_kind(value), expected[value.name or ""], found[value.name or ""]) for value in model.graph.outputs)


def samples_for(model: ir.Model, variants: Mapping[str, int], shapes: Shapes) -> int:
    """How many samples can be run by all variants within :data:`WORK`.

    Args:
        model: the original, which is run too.
        variants: names of layers, and how many variants begin there.
        shapes: of values, by name, on one sample.
    """
    costs = {layer.name: macs_of(layer.node, lambda value: shapes.get(value.name or "")) or 0 for layer in layers_of(model)}
    work = left = float(sum(costs.values()))
    for name, cost in costs.items():
        work += left * variants.get(name, 0)
        left -= cost
    return int(WORK // max(work, 1.0))


def _kind(value: ir.Value) -> Kind:
    node = value.producer()
    if node is not None and operator_of(node) == "Softmax":
        return "probabilities"
    while node is not None and operator_of(node) in _VIEWS:
        first = node.inputs[0]
        node = None if first is None else first.producer()
    wide = value.shape is not None and value.shape.rank() > 1 and value.shape[-1] != 1
    return "logits" if node is not None and operator_of(node) in OPERATORS and "Conv" not in operator_of(node) and wide else "values"


def difference(kind: Kind, expected: Array, found: Array) -> float:
    """How far an output is from what is expected.

    Args:
        kind: of the output.
        expected: of any shape.
        found: the same shape.
    """
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

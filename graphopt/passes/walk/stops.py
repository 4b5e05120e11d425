"""Stops: all samples go from one layer to the next, through a model whose layers change as they are passed, and through the original."""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.graph.layers import Layer
from graphopt.passes.base import Context
from graphopt.passes.walk.line import Line, State
from graphopt.passes.walk.outputs import Output, as_matrix
from graphopt.runtime.shelf import Shelf

Array = np.ndarray[Any, Any]

HELD_OUT = 4
"""Each fourth sample is kept out of a fit, to judge it."""


@dataclass(frozen=True, eq=False)
class Sample:
    """One sample at a layer.

    Attributes:
        now: what there is before the layer in the model that changes.
        before: the same in the original.
        wanted: what there is after it in the original.
    """

    now: State
    before: State
    wanted: State

    def target(self, layer: Layer, output: Output, rows: Array | None = None) -> Array:
        """What the layer's weight alone is to make, ``[groups, out, positions]``: its output, and what a stream that it adds to has lost.

        Args:
            layer: of the model that changes.
            output: where its output goes.
            rows: ``[groups, out]``, which of the original's output channels it still makes; None for all.
        """
        expected = self.wanted[layer.node.outputs[0].name or ""]
        target = as_matrix(layer, expected, rows)
        for stream in output.streams:
            if stream not in self.now or stream not in self.before or self.before[stream].shape != expected.shape:
                continue  # it is made later, or broadcast
            target = target + (as_matrix(layer, self.before[stream], rows) - as_matrix(layer, self.now[stream], None))
        inside = output.bias(layer)[:, :, None].astype(target.dtype)
        matrix: Array = (target - inside) / np.asarray(layer.scale, target.dtype)
        return matrix


def stops(now: ir.Model, before: ir.Model, layers: Collection[str], context: Context) -> Iterator[tuple[str, Iterator[Sample]]]:
    """Stops at layers in the order in which they run; each node runs once a sample in either model.

    Args:
        now: a ``prepared`` model; who walks may change each layer once all samples have been taken there.
        before: the original, prepared, with layers of the same names.
        layers: names of layers of the main graph.
        context: holds the samples.

    Yields:
        The name of each layer, and the samples there, all of which have to be taken before the next.
    """
    lines = Line(now, layers, context.options), Line(before, layers, context.options)
    with tempfile.TemporaryDirectory(prefix="graphopt-") as folder:
        shelves = [Shelf(context.samples, Path(folder) / side) for side in ("now", "before")]
        at = (0, 0)
        for name in sorted(layers, key=lines[0].steps.__getitem__):
            steps = lines[0].steps[name], lines[1].steps[name]
            yield name, _samples(lines, shelves, at, steps)
            at = steps[0], steps[1] + 1


def _samples(lines: tuple[Line, Line], shelves: list[Shelf], at: tuple[int, int], steps: tuple[int, int]) -> Iterator[Sample]:
    for number in range(len(shelves[0])):
        now, before = (line.run(shelf[number], *way) for line, shelf, way in zip(lines, shelves, zip(at, steps, strict=True), strict=True))
        wanted = lines[1].run(before, steps[1], steps[1] + 1)
        shelves[0][number], shelves[1][number] = now, wanted
        yield Sample(now, before, wanted)
    for line in lines:
        line.forget()  # nothing goes back

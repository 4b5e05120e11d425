"""The walk: layers are clustered one after the other, each on what the clustered ones before it make of the samples.

A layer is to make the original's outputs of the inputs that it sees now (``W* = W C H^-1``), and where it adds to a stream, what the
stream has lost as well. What its means still miss is added to its bias.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.graph.edits import Names
from graphopt.graph.layers import Layer, layers_of
from graphopt.graph.view import View
from graphopt.passes.base import Context
from graphopt.passes.walk.line import data_of
from graphopt.passes.walk.outputs import Output, output_of
from graphopt.passes.walk.stops import HELD_OUT, Sample, stops
from graphopt.runtime.statistics import LayerStatistics
from graphopt.runtime.statistics.chain import prepared
from graphopt.runtime.statistics.columns import Columns
from graphopt.runtime.statistics.positions import Positions
from graphopt.runtime.statistics.product import Product
from graphopt.solve.codebook import Clustered
from graphopt.solve.metric import Metric
from graphopt.solve.regression import Moments, regression

Array = np.ndarray[Any, Any]

_DAMPING = 0.03
"""Of the metric: more than a grid needs, since a few centroids leave errors that lean harder on each other."""

Solver = Callable[[Layer, Array, Metric], Clustered]
"""Makes codes for a layer, of a target ``[groups, out, K]`` in a metric."""


@dataclass(frozen=True, eq=False)
class Found:
    """What became of a layer.

    Attributes:
        weight: its codes.
        shift: ``[groups, out]``, to be added to its output; None where nothing can be.
        error: what changes at its output, relative to the output.
    """

    weight: Clustered
    shift: Array | None
    error: float


def walk(model: ir.Model, original: ir.Model, layers: Sequence[Layer], solve: Solver, context: Context) -> Iterator[tuple[str, Found]]:
    """Clusters layers of the main graph in the order in which they run.

    Args:
        model: with what is approximated besides; stays as it is.
        original: what is approximated, with layers of the same names.
        layers: of the model; each alone uses its weight, and has an :func:`output_of`.
        solve: makes codes.
        context: holds the samples, real ones.

    Yields:
        The name of each layer, and what became of it.
    """
    view, now = View(model), prepared(model)
    twins, elders = ({layer.name: layer for layer in layers_of(each)} for each in (now, original))
    names, product, own = Names(now), Product(context.options), {layer.name: layer for layer in layers}
    for name, samples in stops(now, prepared(original), own, context):
        output = output_of(own[name], view)
        assert output is not None, "it was asked for"
        place = _Place(own[name], output, len(context.samples))
        for number, sample in enumerate(samples):
            place.take(number, sample, product)
        found = place.solved(elders[name].weight(), solve)
        twins[name].assign(found.weight.weight, names)
        if found.shift is not None:
            output.move(twins[name], found.shift, names)
        yield name, found


class _Place:
    """A layer that is to be clustered, and what samples tell about it.

    Args:
        layer: of the model.
        output: where its output goes.
        samples: how many there are.
    """

    def __init__(self, layer: Layer, output: Output, samples: int) -> None:
        self._layer, self._output, self._samples = layer, output, samples
        self._columns, self._positions = Columns(layer), Positions(samples)
        self._fit, self._held = Moments.empty(*layer.shape), Moments.empty(*layer.shape)

    def take(self, number: int, sample: Sample, product: Product) -> None:
        """Takes in a sample; where there are few, the last fourth of each one's positions is kept out of the fit.

        Args:
            number: of the sample.
            sample: the sample.
            product: multiplies.
        """
        layer = self._layer
        array = data_of(layer, sample.now)
        self._positions.begin(number)
        drawn = self._positions.drawn(self._columns.count(array), layer.shape[2])
        x, t = self._columns.at(array, drawn), sample.target(layer, self._output)[:, :, drawn]
        t = np.ascontiguousarray(t, np.float32)
        if self._samples >= HELD_OUT:
            (self._held if number % HELD_OUT == HELD_OUT - 1 else self._fit).add(x, t, product)
        else:
            cut = drawn.size * (HELD_OUT - 1) // HELD_OUT
            for moments, part in ((self._fit, slice(None, cut)), (self._held, slice(cut, None))):
                moments.add(np.ascontiguousarray(x[:, :, part]), np.ascontiguousarray(t[:, :, part]), product)

    def solved(self, weight: Array, solve: Solver) -> Found:
        """The codes.

        Args:
            weight: the original's.
            solve: makes them.
        """
        seen = self._fit.plus(self._held)
        better = regression(self._fit, self._held, weight, affine=self._output.shift is not None) if seen.n else None
        return settled(self._layer, self._output, weight if better is None else better[0].astype(np.float32), seen, solve)


def apart(layer: Layer, output: Output, known: LayerStatistics, solve: Solver) -> Found:
    """Clusters a layer by itself, on the inputs that it has where nothing before it is changed.

    Args:
        layer: the layer.
        output: where its output goes.
        known: what samples told about its inputs.
        solve: makes codes.
    """
    weight = layer.weight()
    moments = Moments(known.n, known.total, np.einsum("gok,gk->go", weight, known.total), known.gram, weight @ known.gram)
    return settled(layer, output, weight, moments, solve)


def settled(layer: Layer, output: Output, target: Array, seen: Moments, solve: Solver) -> Found:
    """Codes for a target, and the shift that keeps the means of the wanted outputs.

    Args:
        layer: the layer.
        output: where its output goes.
        target: ``[groups, out, K]``.
        seen: moments of the inputs and the wanted outputs.
        solve: makes the codes.
    """
    affine = output.shift is not None and seen.n > 0
    metric = Metric((seen.centred() if affine else seen).gram, _DAMPING) if seen.n else Metric(None)
    found = solve(layer, target, metric)
    made = found.weight
    shift = (seen.outputs - np.einsum("gok,gk->go", made.astype(np.float64), seen.inputs)) / seen.n * layer.scale if affine else None
    return Found(found, shift, metric.relative(target, made))

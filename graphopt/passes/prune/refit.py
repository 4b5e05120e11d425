"""Refit: consumers of removed channels make the original's outputs of what is left, by least squares (``W* = W C H^-1``)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import compress, cycle
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt import ledger
from graphopt.graph.edits import Names
from graphopt.graph.layers import Layer, layers_of
from graphopt.graph.units.removal import Parts
from graphopt.passes.base import Context
from graphopt.runtime.statistics import Collector, LayerStatistics, Request
from graphopt.samples import Samples
from graphopt.solve.metric import Metric

Array = np.ndarray[Any, Any]

DAMPINGS = (0.003, 0.03, 0.3)
"""Shares of the mean diagonal to choose from, by the error on samples that were kept out."""
_FIT = (True, True, True, False)


def refit(model: ir.Model, original: ir.Model, parts: Parts, context: Context) -> int:
    """Refits all layers that lost inputs, from the first on, each on the inputs that the refitted ones before it make.

    Every fourth sample is kept out: a layer takes the damping that is best there, then fitted to all samples, and stays as it was where
    none is better.

    Args:
        model: pruned; rewritten in place.
        original: before pruning, with layers of the same names.
        parts: what stays of the weights.
        context: holds the samples, real ones.

    Returns:
        How many layers were refitted.
    """
    fitted, held = (Collector(_part(context.samples, take), context.options) for take in (_FIT, [not take for take in _FIT]))
    before = {layer.name: layer for layer in layers_of(original)}
    names, count = Names(model), 0
    for layer in list(layers_of(model)):
        kept = parts.get((layer.name, layer.index))
        if kept is None or layer.name not in before or layer.groups != before[layer.name].groups:
            continue  # a depthwise layer that lost channels sums over the same inputs in those that stay
        weight = _rows_kept(before[layer.name], layer, kept)
        if weight.shape == layer.shape:  # it lost outputs only
            continue
        request = Request(layers=(layer.name,))
        seen, unseen = (collector(model, request, original).layers.get(layer.name) for collector in (fitted, held))
        if seen is None or unseen is None or not seen.n or not unseen.n:
            ledger.note(f"prune: {layer.name} could not be refitted: its inputs were not seen")
            continue
        plain = layer.weight()
        errors = {damping: _error(weight, _solution(weight, plain, seen, damping), unseen) for damping in DAMPINGS}
        best = min(DAMPINGS, key=errors.__getitem__)
        if errors[best] < _error(weight, plain, unseen):
            layer.assign(_solution(weight, plain, seen.merge(unseen), best).astype(plain.dtype), names)
            count += 1
    return count


def _part(samples: Samples, takes: Sequence[bool]) -> Samples:
    """Some of the samples, in turn."""
    count = sum(take for take, _ in zip(cycle(takes), range(len(samples)), strict=False))
    return Samples(lambda: compress(samples, cycle(takes)), count, samples.description, is_synthetic=samples.is_synthetic)


def _rows_kept(before: Layer, now: Layer, kept: Sequence[Array | None]) -> Array:
    """The original weight with all its inputs, and the outputs that are still there: ``[groups, out, in of the original]``."""
    groups, out, width = before.shape
    rows = before.restore(np.broadcast_to(np.arange(out)[None, :, None], (groups, out, width)))
    for axis, indices in enumerate(kept):
        if indices is not None:
            rows = np.take(rows, indices, axis=axis)
    chosen = now.as_matrix(rows)[:, :, 0]
    return np.take_along_axis(before.weight(), chosen[:, :, None], axis=1)


def _solution(weight: Array, plain: Array, seen: LayerStatistics, damping: float) -> Array:
    """``(W C + r W') (H + r)^-1``: what samples do not determine stays as it is."""
    assert seen.cross is not None, "the original ran beside"
    metric = Metric(seen.gram, damping)
    wanted = weight.astype(np.float64) @ seen.cross + metric.ridge[:, None, None] * plain
    return metric.divided(wanted)


def _error(weight: Array, candidate: Array, unseen: LayerStatistics) -> float:
    """The squared error at the output, up to what no candidate changes."""
    assert unseen.cross is not None, "the original ran beside"
    weight, candidate = weight.astype(np.float64), candidate.astype(np.float64)
    quadratic = np.einsum("gok,gkl,gol->", candidate, unseen.gram, candidate, optimize=True)
    return float(quadratic - 2 * np.einsum("gok,gkl,gol->", weight, unseen.cross, candidate, optimize=True))

"""Sparsity: weights that are zero, anywhere or n of every m."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from graphopt import ledger
from graphopt.errors import RecipeError
from graphopt.graph.edits import Names
from graphopt.graph.layers import Layer, layers_of
from graphopt.passes.base import Context, GuidedPass, Role
from graphopt.runtime.statistics import LayerStatistics, Request
from graphopt.solve.metric import Metric
from graphopt.solve.sparsity import Method, Pattern, sparse


@dataclass(frozen=True)
class Sparsify(GuidedPass):
    """Replaces weights of linear layers with ones of which a share is zero.

    Applies to layers of the main graph with enough inputs. With samples the zeros stand where the layer's outputs miss them least, and the
    weights that stay make up for the others ("sparsegpt"). Approximate. Saves bytes once the file is packed, and on ONNX Runtime never
    any time: its kernels multiply zeros like other numbers.

    Attributes:
        share: of the weights that become zero, where no pattern says it.
        pattern: "any" where zeros may stand anywhere, or "n:m" such as "2:4": n of m neighbouring inputs stay.
        method: "sparsegpt", "wanda" (weights times the norm of their inputs) or "magnitude"; without samples always magnitude.
        min_inputs: layers that sum over fewer inputs stay as they are.
    """

    name: ClassVar[str] = "sparsify"
    role: ClassVar[Role] = "approximate"

    share: float = 0.5
    pattern: str = "any"
    method: Method = "sparsegpt"
    min_inputs: int = 16

    def __post_init__(self) -> None:
        """Checks share and pattern."""
        if not 0 < self.share < 1:
            raise RecipeError(f"sparsify: share is that of the weights that become zero, between 0 and 1, not {self.share}")
        found = re.fullmatch(r"(\d+):(\d+)", self.pattern)
        if self.pattern != "any" and (found is None or not 0 < int(found[1]) < int(found[2])):
            raise RecipeError(f"sparsify: pattern is any, or n:m such as 2:4 with n below m, not {self.pattern!r}")

    def run(self, model: ir.Model, context: Context) -> bool:
        """Sets weights to zero, layer by layer."""
        names, changed = Names(model), False
        layers = [layer for layer in layers_of(model) if layer.graph is model.graph and layer.shape[2] >= self.min_inputs]
        layers = [layer for layer in layers if ledger.allow(ledger.Key(self.name, "", layer.name))]
        metrics = _Metrics(model, layers, context)
        for layer in layers:
            metric = metrics.of(layer)
            if metric is None:
                ledger.miss(ledger.Key(self.name, "", layer.name), "its inputs were not seen")
                continue
            weight = layer.weight()
            found = sparse(weight, metric, self._zeros, self.method)
            error = metric.relative(weight, found)
            layer.assign(found.astype(weight.dtype), names)
            reason = f"{np.count_nonzero(found == 0) / found.size:.0%} of the weights are zero: fewer bytes once packed, the same time"
            ledger.record(ledger.Rewrite(ledger.Key(self.name, "", layer.name), reason=reason, predicted_error=error))
            changed = True
        return changed

    @property
    def _zeros(self) -> Pattern:
        if self.pattern == "any":
            return Pattern(self.share)
        stay, among = map(int, self.pattern.split(":"))
        return Pattern(1 - stay / among, among)


class _Metrics:
    """The metrics of layers in the model as it was before the first of them changed."""

    def __init__(self, model: ir.Model, layers: list[Layer], context: Context) -> None:
        self._known: dict[str, LayerStatistics] | None = None
        if not context.samples.is_synthetic and layers:
            self._known = dict(context.statistics(model, Request(layers=tuple(layer.name for layer in layers))).layers)

    def of(self, layer: Layer) -> Metric | None:
        """The identity without samples; None where they never reached the layer."""
        if self._known is None:
            return Metric(None)
        found = self._known.get(layer.name)
        return Metric(found.gram) if found is not None and found.n else None

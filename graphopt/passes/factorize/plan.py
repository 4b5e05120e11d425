"""A plan: which rank each layer may take, what that costs the outputs, and what it saves."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import onnx_ir as ir

from graphopt.graph.layers import layers_of
from graphopt.graph.macs import macs_of
from graphopt.passes.factorize.curves import Curve
from graphopt.passes.factorize.forms import Cost, Shapes
from graphopt.solve.allocation import allocate

Ranks = Mapping[str, int]
"""By name of the layer; those that stay whole are not in it."""

_SHARES = tuple(round(1.0 - 0.01 * step, 2) for step in range(1, 100))


@dataclass(frozen=True)
class Plan:
    """Layers with what is known of them.

    Attributes:
        curves: of the layers that may become two.
        total: what all layers of the model cost.
    """

    curves: Sequence[Curve]
    total: Mapping[Cost, int]

    @classmethod
    def of(cls, model: ir.Model, curves: Sequence[Curve], shapes: Shapes) -> Plan:
        """The plan for a model whose values have these shapes."""
        layers = list(layers_of(model))
        macs = sum(macs_of(layer.node, lambda value: shapes.get(value.name or "")) or 0 for layer in layers)
        return cls(curves, {"macs": macs, "parameters": sum(layer.size for layer in layers)})

    def without(self, barred: Mapping[str, Sequence[int]]) -> Plan:
        """The plan with some ranks of some layers left out."""
        return replace(self, curves=[curve.without(barred.get(curve.form.layer.name, ())) for curve in self.curves])

    def ranks(self, cost: Cost, share: float) -> Ranks | None:
        """The ranks with the least damage whose cost is a share of the present one; None where not even the lowest are."""
        amounts = [curve.amounts(cost) for curve in self.curves]
        damage = [[0.0, *curve.damage] for curve in self.curves]
        found = allocate(amounts, damage, self._cost(cost, amounts), share * self.total[cost])
        if found is None:
            return None
        chosen = {}
        for curve, options, amount in zip(self.curves, amounts, found, strict=True):
            if amount < options[0]:
                chosen[curve.form.layer.name] = curve.ranks[options.index(amount) - 1]
        return chosen

    def within_loss(self, loss: float) -> Ranks:
        """The ranks that leave the least work while the damages of all layers add up to no more than ``loss``."""
        best: Ranks = {}
        for share in _SHARES:
            ranks = self.ranks("macs", share)
            if ranks is None or self.damage(ranks) > loss:
                break
            best = ranks
        return best

    def damage(self, ranks: Ranks) -> float:
        """The damages of all layers, added up."""
        chosen = [(curve, ranks[name]) for curve in self.curves if (name := curve.form.layer.name) in ranks]
        return sum(curve.damage[curve.ranks.index(rank)] for curve, rank in chosen)

    def least(self, cost: Cost) -> float:
        """The share of the present cost that the lowest ranks leave."""
        amounts = [curve.amounts(cost) for curve in self.curves]
        return self._cost(cost, amounts)([options[-1] for options in amounts]) / self.total[cost]

    def _cost(self, cost: Cost, amounts: Sequence[Sequence[int]]) -> Callable[[Sequence[int]], float]:
        rest = self.total[cost] - sum(options[0] for options in amounts)
        return lambda widths: rest + sum(widths)

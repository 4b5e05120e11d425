"""Curves: what a layer of any rank costs the outputs, from a few ranks that were measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from graphopt.passes.factorize.forms import Cost, Form
from graphopt.passes.walk.damage import Damage
from graphopt.solve.metric import Metric

Array = np.ndarray[Any, Any]

_MEASURED = (0.9, 0.7, 0.5, 0.3, 0.15)
"""Shares of a layer's weights at which its damage is measured."""


@dataclass(frozen=True)
class Curve:
    """What a layer costs the outputs, and what it costs to run.

    Attributes:
        form: of the layer.
        ranks: those it may take, falling.
        damage: at each of them.
    """

    form: Form
    ranks: Sequence[int]
    damage: Sequence[float]

    def without(self, barred: Sequence[int]) -> Curve:
        """The curve with some ranks left out."""
        left = [(rank, damage) for rank, damage in zip(self.ranks, self.damage, strict=True) if rank not in barred]
        return Curve(self.form, [rank for rank, _ in left], [damage for _, damage in left])

    def amounts(self, cost: Cost) -> list[int]:
        """What the layer costs whole, and at each rank."""
        return [self.form.whole(cost), *(self.form.amount(rank, cost) for rank in self.ranks)]


def measured_ranks(form: Form) -> list[int]:
    """The ranks of a layer at which its damage is measured, falling."""
    return sorted({min(form.ranks, key=lambda rank: abs(form.share(rank, "parameters") - share)) for share in _MEASURED})[::-1]


def curve_of(form: Form, damage: Damage, *, is_real: bool) -> Curve:
    """Measures the damage at a few ranks; between them its logarithm is linear.

    Args:
        form: of a layer that comes after those measured earlier.
        damage: measures.
        is_real: the samples tell what reaches layers in use; made-up ones do not.
    """
    name, weight = form.layer.name, form.layer.weight()
    damage.go_to([name])
    solved, ranks = form.solved(weight, Metric(damage.gram(form.layer) if is_real else None)), measured_ranks(form)
    found = [damage.of({name: form.product(solved.factors(rank))}) for rank in ranks]
    logarithms = np.log(np.maximum(found, 1e-12))
    return Curve(form, form.ranks, list(np.exp(np.interp(form.ranks, ranks[::-1], logarithms[::-1]))))

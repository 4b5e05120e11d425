"""Curves: what a block costs the outputs at any width, from a few widths that were measured."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from graphopt.graph.layers import Layer
from graphopt.graph.units import Block
from graphopt.graph.view import operator_of
from graphopt.passes.prune.consumers import Importance, Use, consumers_of, put_back
from graphopt.passes.walk.damage import Damage
from graphopt.solve.surgeon import Consumer, removals
from graphopt.solve.thin import ThinMetric

Array = np.ndarray[Any, Any]

MEASURED = (0.8, 0.6, 0.4, 0.25)
"""Shares of a block's width at which its damage is measured."""
FEWER = (0.6, 0.25)
"""Those of a model so large that not even one sample can be run at all of them."""
_LEVELS = 32
"""Widths to choose from, about."""
_NARROWEST = 0.2
_FAST = 4
"""Widths of convolutions that do not leave the fast kernels: multiples of it."""


@dataclass(frozen=True)
class Candidate:
    """A block that may become narrower.

    Attributes:
        block: the block.
        uses: the layers that sum over its channels; at least one.
        multiple: numbers of channels are multiples of it.
    """

    block: Block
    uses: Sequence[Use]
    multiple: int

    @property
    def maker(self) -> str:
        """The first node that makes the channels."""
        return next(site.node.name or "" for site in self.block.sites if site.role == "makes")

    @cached_property
    def widths(self) -> list[int]:
        """Widths to choose from, falling from the whole one: multiples of what kernels like."""
        count = self.block.count
        convolution = any("Conv" in operator_of(site.node) for site in self.block.sites)
        wanted = math.lcm(self.multiple, _FAST if convolution else 1)
        unit = wanted // math.gcd(wanted, self.block.width)  # a head of 64 channels is a multiple of 16 by itself
        step = unit * max(1, round(count / _LEVELS / unit))
        least = unit * max(1, round(_NARROWEST * count / unit))
        return [count, *(width for width in range(count // step * step, 0, -step) if least <= width < count)]

    def near(self, shares: Sequence[float]) -> list[int]:
        """The narrower widths closest to some shares of the whole one, falling."""
        narrower = self.widths[1:]
        return sorted({min(narrower, key=lambda width: abs(width - share * self.block.count)) for share in shares if narrower})[::-1]


@dataclass(frozen=True)
class Curve:
    """What a block costs the outputs.

    Attributes:
        damage: at each of its candidate's widths.
        order: the components in the order in which they go.
        rise: the power of the error at the consumers with which the damage grew between the narrowest widths that were measured.
    """

    damage: list[float]
    order: tuple[int, ...]
    rise: float


def curve_of(
    candidate: Candidate, measured: Sequence[int], importance: Importance, damage: Damage, *, is_real: bool, rise: float = 1.0
) -> Curve:
    """Measures the damage at a few widths; between and beyond them it follows the error at the consumers.

    Args:
        candidate: a block, none whose first use comes before that of one measured earlier.
        measured: the widths.
        importance: by what components are chosen.
        damage: measures.
        is_real: the samples tell what reaches layers in use; made-up ones do not.
        rise: of a curve like this one, where a single width is measured.
    """
    count = candidate.block.count
    errors, found = {count: 0.0}, {count: 0.0}
    order: tuple[int, ...] = ()
    damage.go_to([use.layer.name for use in candidate.uses])
    for removal in removals(_consumers(candidate, importance, damage, is_real=is_real), measured):
        width = count - len(removal.gone)
        order, errors[width] = removal.gone, removal.damage
        if width in measured:
            found[width] = damage.of({layer.name: weight for layer, weight in put_back(candidate.uses, removal.weights)})
        if width <= candidate.widths[-1]:
            break
    damages, rise = _between(candidate.widths, errors, found, rise)
    return Curve(damages, order, rise)


def _consumers(candidate: Candidate, importance: Importance, damage: Damage, *, is_real: bool) -> list[Consumer]:
    known = {use.layer.name: _known(use.layer, importance, damage) for use in candidate.uses} if is_real else {}
    return consumers_of(candidate.uses, known, importance)


def _known(layer: Layer, importance: Importance, damage: Damage) -> Array | ThinMetric:
    few = damage.few_inputs(layer) if importance == "surgeon" else None
    return damage.gram(layer) if few is None else ThinMetric(few)


def _between(widths: Sequence[int], errors: Mapping[int, float], measured: Mapping[int, float], rise: float) -> tuple[list[float], float]:
    """Damage at all widths, log-linear in the error at the consumers between two that were measured, and the power of its rise there."""
    steps = sorted(errors)
    error = np.interp(widths, steps, [errors[step] for step in steps])
    tiny = 1e-12
    points = sorted((errors[width], damage) for width, damage in measured.items() if width in errors)[1:]
    if not points:
        return [0.0 for _ in widths], rise
    x, y = (np.log(np.maximum([point[axis] for point in points], tiny)) for axis in (0, 1))
    at = np.log(np.maximum(error, tiny))
    if len(points) == 1:
        found = y[0] + np.where(at < x[0], 1.0, rise) * (at - x[0])
    else:
        found = np.where(at < x[0], y[0] + at - x[0], np.interp(at, x, y))
        rise = float((y[-1] - y[-2]) / (x[-1] - x[-2])) if x[-1] > x[-2] else rise
    return [0.0 if width == widths[0] else float(np.exp(value)) for width, value in zip(widths, found, strict=True)], rise

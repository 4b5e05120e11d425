"""Exact local simplification: identities, views, pieces, constants."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from graphopt.passes.rules import Rule, RulePass
from graphopt.passes.simplify import chains, folding, identities, pieces, selection, views


@dataclass(frozen=True)
class Simplify(RulePass):
    """Replaces what computes nothing, twice, or from constants alone with less.

    Applies to standard operators of any opset, in subgraphs too. Exact, or at rounding level where a rule says so. Linear.
    """

    name: ClassVar[str] = "simplify"
    rules: ClassVar[tuple[Rule, ...]] = identities.RULES + views.RULES + pieces.RULES + chains.RULES + selection.RULES + folding.RULES

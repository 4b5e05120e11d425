"""Exact rewrites inside attention, chosen for a target."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from graphopt.passes.attention import fused, heads, rotary, rows
from graphopt.passes.rules import Rule, TargetedPass


@dataclass(frozen=True)
class Attention(TargetedPass):
    """Replaces the operators of an attention with fewer ones that compute the same.

    Applies to attention as the torch exporters write it and to fused operators, in subgraphs too. Exact or at rounding
    level. Linear.
    """

    name: ClassVar[str] = "attention"
    rules: ClassVar[tuple[Rule, ...]] = rows.RULES + fused.RULES + heads.RULES + rotary.RULES

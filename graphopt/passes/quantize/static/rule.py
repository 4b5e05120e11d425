"""The rule of ranges that fits a model, where none was asked for."""

from __future__ import annotations

from collections.abc import Callable, Hashable

import numpy as np
import onnx_ir as ir

from graphopt import ledger
from graphopt.errors import SessionError
from graphopt.passes.base import Context
from graphopt.passes.quantize.static.closeness import decibels
from graphopt.passes.quantize.static.scales import Rule
from graphopt.passes.racing import remembered

TRIED: tuple[Rule, ...] = ("mse", "percentile")
"""In order of preference."""
CLEARLY = 1.0
"""Decibels by which another rule must be closer: smaller differences are often the other way round on other samples."""


def fitting_rule(model: ir.Model, name: str, variant: Callable[[Rule], ir.Model], subject: Hashable, context: Context) -> Rule:
    """The first rule, where no other is clearly closer to the original; then the ledger hears of those that are passed over.

    Args:
        model: in float; stays as it is.
        name: of the pass, whose rules they are.
        variant: makes the model in integers by a rule.
        subject: tells apart what is decided, for all attempts at it.
        context: tells whether to measure, and holds the samples; what is measured is kept in it.
    """
    rules = [rule for rule in TRIED if not ledger.denies(ledger.Key(name, rule))] or [TRIED[0]]
    if not context.measures or len(rules) < 2:
        return rules[0]
    levels = remembered(context, ("ranges", subject), lambda: _levels(model, [variant(rule) for rule in rules], context))
    best = int(np.argmax(levels)) if levels else 0
    if not best or levels[best] < levels[0] + CLEARLY:
        return rules[0]
    for rule, level in zip(rules[:best], levels, strict=False):
        ledger.decline(ledger.Key(name, rule), f"{level:.1f} dB instead of {levels[best]:.1f} dB with ranges by {rules[best]}")
    return rules[best]


def _levels(model: ir.Model, variants: list[ir.Model], context: Context) -> list[float]:
    try:
        return decibels(model, variants, context)
    except SessionError:
        return []

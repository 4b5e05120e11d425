"""Instruction sets: approximations that are right on processors other than this one."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import onnx_ir as ir

from graphopt.graph.layers import layers_of
from graphopt.ledger import Drop, Key
from graphopt.passes.base import AnyPass, GuidedPass
from graphopt.passes.foreign import ForeignPass
from graphopt.passes.quantize.saturation import PAIR_LIMIT, at_risk
from graphopt.stage import Stage

_INTEGER_KERNELS = frozenset({"static", "dynamic"})
"""The passes whose forms multiply 8-bit data with 8-bit weights."""


def safe_from_saturation(stages: Sequence[Stage], model: ir.Model) -> tuple[list[Stage], list[Drop]]:
    """Stages whose integer products fit into 16 bits, two by two, as x86 without VNNI adds them.

    Only layers at risk on the samples are touched: their weights get 7 bits, and where a pass cannot do that they stay in float.

    Args:
        stages: of a recipe.
        model: what the first approximation of them is given.

    Returns:
        The stages, and what has to be denied.
    """
    context = next((stage.context for stage in stages if stage.approximating & _INTEGER_KERNELS), None)
    if context is None:
        return list(stages), []
    layers = [layer for layer in layers_of(model) if layer.graph is model.graph]
    sums = at_risk(model, layers, context)
    if not sums:
        return list(stages), []
    drops = [
        Drop(Key(each.name, "", name), f"pairs of its products add up to {largest}, 16 bits hold {PAIR_LIMIT}")
        for stage in stages
        for each in stage.passes
        if each.name in _INTEGER_KERNELS and _narrowed(each, tuple(sums)) is each
        for name, largest in sums.items()
    ]
    narrowed = [dataclasses.replace(stage, passes=tuple(_narrowed(each, tuple(sums)) for each in stage.passes)) for stage in stages]
    return narrowed, drops


def _narrowed(each: AnyPass | ForeignPass, names: tuple[str, ...]) -> AnyPass | ForeignPass:
    """The pass with weights of 7 bits in some layers; in all where it knows no finer choice, and itself where it knows none."""
    if not isinstance(each, GuidedPass) or each.name not in _INTEGER_KERNELS:
        return each
    known = {field.name for field in dataclasses.fields(each)}
    changes: dict[str, Any] = {"narrow": names} if "narrow" in known else {"weight_bits": 7} if "weight_bits" in known else {}
    return dataclasses.replace(each, **changes) if changes else each

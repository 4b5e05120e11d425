"""Instruction sets: approximations that are right on processors other than this one."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import onnx_ir as ir

from graphopt.graph.layers import layers_of
from graphopt.passes.base import AnyPass
from graphopt.passes.foreign import ForeignPass
from graphopt.passes.quantize.dynamic import CHANNELS, Dynamic
from graphopt.passes.quantize.saturation import at_risk
from graphopt.passes.quantize.static import Static
from graphopt.stage import Stage

_INTEGER_KERNELS = (Static, Dynamic)
"""The passes whose forms multiply 8-bit data with 8-bit weights."""


def safe_from_saturation(stages: Sequence[Stage], model: ir.Model) -> list[Stage]:
    """Stages whose integer products fit into 16 bits, two by two, as x86 without VNNI adds them.

    Only layers at risk on the samples are touched: their weights get 7 bits.

    Args:
        stages: of a recipe.
        model: what the first approximation of them is given.
    """
    context = next((stage.context for stage in stages if stage.approximating & {kind.name for kind in _INTEGER_KERNELS}), None)
    if context is None:
        return list(stages)
    names = tuple(at_risk(model, [layer for layer in layers_of(model) if layer.graph is model.graph], context))
    return [dataclasses.replace(stage, passes=tuple(_narrowed(each, names) for each in stage.passes)) for stage in stages]


def _narrowed(each: AnyPass | ForeignPass, names: tuple[str, ...]) -> AnyPass | ForeignPass:
    """The pass with weights of 7 bits in some layers, and without forms of which nobody knows how their kernels add."""
    if isinstance(each, Dynamic):
        return dataclasses.replace(each, narrow=names, forms=tuple(form for form in each.forms if form == CHANNELS))
    return dataclasses.replace(each, narrow=names) if isinstance(each, Static) else each

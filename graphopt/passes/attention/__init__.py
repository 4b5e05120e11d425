"""Exact rewrites inside attention, chosen for a target."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from graphopt import ledger
from graphopt.errors import UnsupportedModelError
from graphopt.graph.opset import convert_opset, opset_of
from graphopt.passes.attention import flat, fused, heads, rotary, rows
from graphopt.passes.rules import Rule, TargetedPass
from graphopt.targets import TARGETS


@dataclass(frozen=True)
class Attention(TargetedPass):
    """Replaces the operators of an attention with fewer ones that compute the same.

    Applies to attention as the torch exporters write it and to fused operators, in subgraphs too. A model whose opset lacks
    an operator that is faster is raised to the first that has it. Exact or at rounding level. Linear.
    """

    name: ClassVar[str] = "attention"
    rules: ClassVar[tuple[Rule, ...]] = rows.RULES + fused.RULES + flat.RULES + heads.RULES + rotary.RULES

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Runs the table, and once more where its first run shows that a newer opset serves."""
        result = super().call(model)
        return super().call(model) if self._raise_opset(model) else result

    def _raise_opset(self, model: ir.Model) -> bool:
        """Raises the opset where that makes whole attentions one operator; tells whether it did."""
        serves = self.target == "cpu" and TARGETS[self.target].runs("Attention", ir.DataType.FLOAT, flat.OPSET)
        skipped = ledger.denies(ledger.Key(self.name, "fuse-flat-attention"))
        if not serves or skipped or opset_of(model) >= flat.OPSET or not flat.has_flat_attentions(model):
            return False
        try:
            convert_opset(model, flat.OPSET)
        except UnsupportedModelError as error:
            ledger.note(f"{self.name}: attentions stay in parts: {error}")
        return opset_of(model) >= flat.OPSET

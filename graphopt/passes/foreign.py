"""Anyone's onnx_ir pass as one rewrite of ours."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import onnx_ir as ir

from graphopt import ledger
from graphopt.graph.edits import all_nodes
from graphopt.ledger import Key


@dataclass(frozen=True)
class ForeignPass:
    """A pass that knows nothing of the ledger; its entry comes from a comparison of node names before and after.

    Attributes:
        name: ``module:Class``.
        inner: the pass.
    """

    name: str
    inner: ir.passes.PassBase

    def __call__(self, model: ir.Model) -> ir.passes.PassResult:
        """Runs the pass where the ledger allows it."""
        return as_one_rewrite(Key(self.name), model, self.inner)


def as_one_rewrite(key: Key, model: ir.Model, function: Callable[[ir.Model], ir.passes.PassResult]) -> ir.passes.PassResult:
    """Runs a library's pass as one rewrite: asks first, and records which nodes went and came.

    Args:
        key: names the rewrite.
        model: rewritten in place, or replaced by the result's model where the pass is functional.
        function: the pass.
    """
    if not ledger.allow(key):
        return ir.passes.PassResult(model, False)
    before = {node.name or "": None for node in all_nodes(model)}
    result = function(model)
    if result.modified:
        after = {node.name or "": None for node in all_nodes(result.model)}
        removed = tuple(name for name in before if name not in after)
        added = tuple(name for name in after if name not in before)
        ledger.record(ledger.Rewrite(key, removed, added))
    return result

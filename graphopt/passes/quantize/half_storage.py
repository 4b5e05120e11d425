"""Weights stored in half precision and computed with in float."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from graphopt import ledger
from graphopt.graph.edits import Builder, Names
from graphopt.graph.view import View
from graphopt.passes.base import Context, GuidedPass, Role
from graphopt.passes.quantize.constants import Constant, choose, constants_of, folding_limit, reads_folded
from graphopt.passes.quantize.replacing import take_place_of_constant
from graphopt.targets.emit import stored_half

_LARGEST = float(np.finfo(np.float16).max)


@dataclass(frozen=True)
class HalfStorage(GuidedPass):
    """Replaces large float32 constants with float16 ones and a Cast, which the runtime folds when it loads the model.

    Applies to weights of layers and recurrent layers, tables, and constants of elementwise operators, in subgraphs too, whose numbers
    float16 can hold. Approximate: about 70 dB. Takes half of the bytes; the same kernels run at the same speed in the same memory.

    Attributes:
        include: globs on the names of constants or of nodes that use them; all where empty.
        exclude: globs on those that stay as they are.
        min_size: elements from which a constant is worth it.
    """

    name: ClassVar[str] = "half-storage"
    role: ClassVar[Role] = "approximate"

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    min_size: int = 512

    def run(self, model: ir.Model, context: Context) -> bool:
        """Stores all constants that float16 can hold."""
        view, names, changed = View(model), Names(model), False
        constants = [one for one in constants_of(model, ir.DataType.FLOAT) if _is_readable(one)]
        for constant in choose(constants, self.include, self.exclude, self.min_size):
            key = ledger.Key(self.name, "", constant.user.name or "")
            array = view.constant(constant.value)
            if constant.size * 4 > folding_limit(context.options):
                ledger.miss(key, "the session's configuration keeps the runtime from folding it")
            elif array is None or not np.abs(array).max(initial=0.0) <= _LARGEST:
                ledger.miss(key, "it holds numbers that are too large for float16")
            elif ledger.allow(key):
                builder = Builder(constant.anchor, names)
                half = array.astype(np.float16)
                size = float(np.square(array).sum())
                lost = float(np.square(half.astype(np.float32) - array).sum())
                take_place_of_constant(constant.value, stored_half(builder, half, constant.name))
                added = tuple(node.name or "" for node in builder.added)
                ledger.record(ledger.Rewrite(key, added=added, predicted_error=(lost / size) ** 0.5 if size else 0.0))
                changed = True
        return changed


def _is_readable(constant: Constant) -> bool:
    return all(reads_folded(use.node, use.idx) for use in constant.value.uses())

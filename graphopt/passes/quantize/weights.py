"""Weights of few bits in blocks, data left in float."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import onnx_ir as ir

from graphopt import ledger
from graphopt.graph.view import View
from graphopt.passes.base import Context, GuidedPass, Role
from graphopt.passes.quantize.candidates import race
from graphopt.passes.quantize.constants import folding_limit
from graphopt.passes.quantize.linear import Form, Place, places_of, replace, solve
from graphopt.solve.grid import Scheme
from graphopt.targets import TARGETS
from graphopt.targets.emit import MATMUL_NBITS, folded_matmul, matmul_nbits

PACKED = "packed"
"""The rule whose denial at a layer keeps MatMulNBits out, but not weights of few bits."""


@dataclass(frozen=True)
class Weights(GuidedPass):
    """Replaces MatMul, Gemm, and a bias added after them with MatMulNBits: weights of 2, 4 or 8 bits, one scale a block.

    Applies to float32 layers with one constant matrix. With samples the weights are chosen by GPTQ in the metric of the layer's inputs,
    without any by least squared error. Approximate: 4 bits in blocks of 128 lose about a tenth of a layer's output (in norm). Takes
    an eighth of the bytes at 4 bits; fastest where few rows are multiplied at a time, as in generation. A layer that is slower at the
    samples' sizes on this machine, measured by shape, is stored in the same bits instead, and unpacked into a float weight when the
    runtime loads the model.

    Attributes:
        bits: of a weight.
        block: inputs that share a scale: smaller ones are closer, larger and slower.
        symmetric: blocks have no zero points of their own.
        include: globs on the names of nodes or weights; all layers where empty.
        exclude: globs on those that stay in float.
        min_size: weights from which a layer is worth it.
    """

    name: ClassVar[str] = "weights"
    role: ClassVar[Role] = "approximate"

    bits: Literal[2, 4, 8] = 4
    block: Literal[16, 32, 64, 128, 256] = 128
    symmetric: bool = True
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    min_size: int = 4096

    def run(self, model: ir.Model, context: Context) -> bool:
        """Quantizes all layers that the target has a kernel for."""
        scheme = Scheme(self.bits, self.symmetric, self.block, mirrored=self.symmetric)
        packed, folded = Form(MATMUL_NBITS, scheme, matmul_nbits, PACKED), Form("", scheme, folded_matmul)
        places = places_of(model, self.name, packed.operator, context, self.include, self.exclude, self.min_size)
        slow = self._slow(model, places, packed, context)
        limit = folding_limit(context.options)
        changed = False
        for one in solve(model, places, scheme, context):
            if one.place.layer.name not in slow:
                changed |= replace(model, [one], self.name, packed)
            elif one.place.layer.size * 4 <= limit:
                changed |= replace(model, [one], self.name, folded)
            else:
                reason = "MatMulNBits does not serve, and the session's configuration keeps the runtime from folding its codes"
                ledger.miss(ledger.Key(self.name, "", one.place.layer.name), reason)
        return changed

    def _slow(self, model: ir.Model, places: Sequence[Place], packed: Form, context: Context) -> set[str]:
        """The names of layers at which MatMulNBits is slower than float, by a measurement or by the proof, or has no such width."""
        if places and not packed.runs(TARGETS[context.target], View(model).opset):
            ledger.note(f"{self.name}: MatMulNBits of the target {context.target} takes no {self.bits} bits: they are unpacked when loaded")
            return {place.layer.name for place in places}
        denied = {place.layer.name for place in places if ledger.denies(ledger.Key(self.name, PACKED, place.layer.name))}
        verdicts = race(model, [place for place in places if place.layer.name not in denied], {PACKED: packed}, context)
        lost = {name: verdict.figures for name, verdict in verdicts.items() if not verdict.form}
        for name, figures in lost.items():
            ledger.decline(ledger.Key(self.name, PACKED, name), figures)
        return denied | lost.keys()

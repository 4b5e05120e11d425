"""Weights of few bits in blocks, data left in float."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import onnx_ir as ir

from graphopt.passes.base import Context, GuidedPass, Role
from graphopt.passes.quantize.linear import Form, places_of, replace, solve
from graphopt.solve.grid import Scheme
from graphopt.targets.emit import MATMUL_NBITS, matmul_nbits


@dataclass(frozen=True)
class Weights(GuidedPass):
    """Replaces MatMul, Gemm, and a bias added after them with MatMulNBits: weights of 2, 4 or 8 bits, one scale a block.

    Applies to float32 layers with one constant matrix. With samples the weights are chosen by GPTQ in the metric of the layer's inputs,
    without any by least squared error. Approximate: 4 bits in blocks of 128 lose about a tenth of a layer's output (in norm). Takes
    an eighth of the bytes at 4 bits; fastest where few rows are multiplied at a time, as in generation.

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
        form = Form(MATMUL_NBITS, Scheme(self.bits, self.symmetric, self.block, mirrored=self.symmetric), matmul_nbits)
        places = places_of(model, self.name, form.operator, context, self.include, self.exclude, self.min_size)
        return replace(model, solve(model, places, form.scheme, context), self.name, form)

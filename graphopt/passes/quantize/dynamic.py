"""Linear layers in 8-bit integers, the data quantized at each call."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from graphopt.graph.edits import Builder
from graphopt.passes.base import Context, GuidedPass, Role
from graphopt.passes.quantize.linear import Place, places_of, replace, solve
from graphopt.solve.grid import Quantized, Scheme
from graphopt.targets.emit import DYNAMIC_QUANTIZE_MATMUL, dynamic_quantize_matmul

_BITS = 8


@dataclass(frozen=True)
class Dynamic(GuidedPass):
    """Replaces MatMul, Gemm, and a bias added after them with DynamicQuantizeMatMul: integer products of 8-bit data and weights.

    Applies to float32 layers with one constant matrix. Weights get one scale per output channel, chosen with samples by GPTQ in the
    metric of the layer's inputs, without any by least squared error; the range of the data is found at each call. Approximate: the
    data of one call share one scale. Takes a quarter of the bytes; two to five times as fast as float from a few rows on.

    Attributes:
        include: globs on the names of nodes or weights; all layers where empty.
        exclude: globs on those that stay in float.
        min_size: weights from which a layer is worth it.
    """

    name: ClassVar[str] = "dynamic"
    role: ClassVar[Role] = "approximate"

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    min_size: int = 4096

    def run(self, model: ir.Model, context: Context) -> bool:
        """Quantizes all layers that the target has a kernel for."""
        places = places_of(model, self.name, DYNAMIC_QUANTIZE_MATMUL, context, self.include, self.exclude, self.min_size)
        return replace(model, solve(model, places, Scheme(_BITS), context), self.name, DYNAMIC_QUANTIZE_MATMUL, _emit)


def _emit(op: Builder, place: Place, weight: Quantized) -> ir.Value:
    return dynamic_quantize_matmul(op, place.layer.input, weight, place.bias, place.layer.value.name or "")

"""Linear layers in 8-bit integers, the data quantized at each call."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from graphopt.passes.base import Context, GuidedPass, Role
from graphopt.passes.quantize.candidates import that_pay
from graphopt.passes.quantize.linear import Form, places_of, replace, solve
from graphopt.solve.grid import Scheme
from graphopt.targets.emit import DYNAMIC_QUANTIZE_MATMUL, dynamic_quantize_matmul

FORM = Form(DYNAMIC_QUANTIZE_MATMUL, Scheme(8), dynamic_quantize_matmul)
"""What layers become."""


@dataclass(frozen=True)
class Dynamic(GuidedPass):
    """Replaces MatMul, Gemm, and a bias added after them with DynamicQuantizeMatMul: integer products of 8-bit data and weights.

    Applies to float32 layers with one constant matrix. Weights get one scale per output channel, chosen with samples by GPTQ in the
    metric of the layer's inputs, without any by least squared error; the range of the data is found at each call. Approximate: the
    data of one call share one scale. Takes a quarter of the bytes; two to five times as fast as float, from a few hundred inputs on:
    layers that are slower on this machine, measured by shape, stay as they are.

    Attributes:
        include: globs on the names of nodes or weights; all layers where empty.
        exclude: globs on those that stay in float.
        min_size: weights from which a layer is worth it.
        narrow: names of layers whose weights get 7 bits, so that 16 bits hold the sum of two products.
    """

    name: ClassVar[str] = "dynamic"
    role: ClassVar[Role] = "approximate"

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    min_size: int = 4096
    narrow: tuple[str, ...] = ()

    def run(self, model: ir.Model, context: Context) -> bool:
        """Quantizes all layers that the target has a kernel for and that are not slower for it on this machine."""
        places = places_of(model, self.name, FORM.operator, context, self.include, self.exclude, self.min_size)
        paying = that_pay(model, places, FORM, self.name, context)
        return replace(model, solve(model, paying, FORM.scheme, context, self.narrow), self.name, FORM)

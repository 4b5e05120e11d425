"""Linear layers in 8-bit integers, the data quantized at each call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import onnx_ir as ir

from graphopt import ledger
from graphopt.graph.view import View
from graphopt.passes.base import Context, GuidedPass, Role
from graphopt.passes.quantize.candidates import Verdict, race
from graphopt.passes.quantize.linear import Form, Place, places_of, replace, solve
from graphopt.solve.grid import Scheme
from graphopt.targets import TARGETS
from graphopt.targets.emit import DYNAMIC_QUANTIZE_MATMUL, MATMUL_NBITS, dynamic_quantize_matmul, matmul_nbits

CHANNELS: Literal["channels"] = "channels"
BLOCKS: Literal["blocks"] = "blocks"
"""Names of forms; layers take the first where nothing was measured, and the second where the first is denied."""
FORMS = {
    CHANNELS: Form(DYNAMIC_QUANTIZE_MATMUL, Scheme(8), dynamic_quantize_matmul),
    BLOCKS: Form(MATMUL_NBITS, Scheme(8, per=128, mirrored=True), matmul_nbits),
}
"""What layers become, by the scales of their weights."""


@dataclass(frozen=True)
class Dynamic(GuidedPass):
    """Replaces MatMul, Gemm, and a bias added after them with DynamicQuantizeMatMul: integer products of 8-bit data and weights.

    Applies to float32 layers with one constant matrix. Weights get one scale per output channel, chosen with samples by GPTQ in the
    metric of the layer's inputs, without any by least squared error; the range of the data is found at each call. Approximate: the
    data of one call share one scale. Takes a quarter of the bytes; two to five times as fast as float, from a few hundred inputs on:
    layers that are slower on this machine, measured by shape, stay as they are. Where the samples have a row or two, as in generation,
    and that is faster here, MatMulNBits takes its place: weights and data have one scale per block of 128 inputs.

    Attributes:
        include: globs on the names of nodes or weights; all layers where empty.
        exclude: globs on those that stay in float.
        min_size: weights from which a layer is worth it.
        narrow: names of layers whose weights get 7 bits, so that 16 bits hold the sum of two products.
        forms: what layers may become: ``channels``, integers with a scale per channel; ``blocks``, MatMulNBits.
    """

    name: ClassVar[str] = "dynamic"
    role: ClassVar[Role] = "approximate"

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    min_size: int = 4096
    narrow: tuple[str, ...] = ()
    forms: tuple[Literal["channels", "blocks"], ...] = (CHANNELS, BLOCKS)

    def run(self, model: ir.Model, context: Context) -> bool:
        """Quantizes all layers that the target has a kernel for and that are not slower for it on this machine."""
        places = places_of(model, self.name, DYNAMIC_QUANTIZE_MATMUL, context, self.include, self.exclude, self.min_size)
        forms = self._forms(model, places, context)
        changed = False
        for name, form in FORMS.items():
            taking = [place for place in places if forms.get(place.layer.name) == name]
            changed |= replace(model, solve(model, taking, form.scheme, context, self.narrow), self.name, form)
        return changed

    def _forms(self, model: ir.Model, places: Sequence[Place], context: Context) -> dict[str, str]:
        """The form that each layer takes; those that stay in float are left out."""
        found: dict[str, str] = {}
        target, opset = TARGETS[context.target], View(model).opset
        allowed: dict[str, Form] = {name: FORMS[name] for name in self.forms if FORMS[name].runs(target, opset)}
        if not allowed:
            ledger.note(f"{self.name}: the target {target.name} has no kernel for 8-bit weights in {' or '.join(self.forms)}")
            return {}
        verdicts = race(model, places, allowed, context)
        for place in places:
            layer = place.layer.name
            channels = ledger.Key(self.name, CHANNELS, layer)
            verdict = verdicts.get(layer, Verdict(next(iter(allowed)), ""))
            if BLOCKS in allowed and ledger.denies(channels):
                found[layer] = BLOCKS
            elif verdict.form == "":
                ledger.decline(ledger.Key(self.name, "", layer), verdict.figures)
            elif verdict.form == CHANNELS or (CHANNELS in allowed and layer in self.narrow):
                found[layer] = CHANNELS
            else:
                ledger.decline(channels, verdict.figures)
                found[layer] = verdict.form
        return found

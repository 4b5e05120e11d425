"""Static quantization: islands of nodes that run in 8-bit integers, the ranges of their values known from samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import onnx_ir as ir

from graphopt import ledger
from graphopt.graph.layers import Layer, layers_of, select
from graphopt.graph.opset import convert_opset, opset_of
from graphopt.graph.view import View
from graphopt.passes.base import Context, GuidedPass, Role
from graphopt.passes.quantize.linear import Place, Solved, solve
from graphopt.passes.quantize.static.islands import Plan, plan_of
from graphopt.passes.quantize.static.kernels import Ground, Kernel, Kind
from graphopt.passes.quantize.static.prefix import float_prefix
from graphopt.passes.quantize.static.rewriting import Rewriter
from graphopt.passes.quantize.static.rule import fitting_rule
from graphopt.passes.quantize.static.scales import Ranges, Rule, known_values, scales_of
from graphopt.passes.quantize.static.weights import with_room
from graphopt.solve.grid import Scheme
from graphopt.targets import TARGETS

_OLDEST = 13
"""The first opset with one scale per channel; older models are raised to it."""


@dataclass(frozen=True)
class Static(GuidedPass):
    """Replaces convolutions, and what stands between them, with forms that run in 8-bit integers, ranges fixed by samples.

    Applies to float32 models with real samples, on targets with integer kernels. Data become unsigned codes with one scale a value;
    weights become signed codes with one scale per output channel, chosen by GPTQ in the metric of the layer's inputs. Approximate:
    each value in codes loses about 1/256 of its range. Takes a quarter of the bytes; convolutions run two to four times as fast.

    Attributes:
        include: globs on the names of nodes or weights; all layers where empty.
        exclude: globs on those that stay in float.
        ranges: how much of each value's range is covered: all, the middle 99.999 %, what diverges least, or what errs least (mse);
            measured: what errs least, or the middle where the model's outputs are clearly closer then.
        weight_bits: 7 avoids saturation on CPUs that add pairs of products in 16 bits.
        narrow: names of layers whose weights alone get 7 bits.
    """

    name: ClassVar[str] = "static"
    role: ClassVar[Role] = "approximate"

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    ranges: Ranges = "measured"
    weight_bits: Literal[8, 7] = 8
    narrow: tuple[str, ...] = ()

    def run(self, model: ir.Model, context: Context) -> bool:
        """Quantizes all islands that the target has kernels for and the ledger allows."""
        if context.samples.is_synthetic:
            ledger.note(f"{self.name}: the ranges of values are known from real samples alone; give --data")
            return False
        layers = list(layers_of(model))
        kept = {layer.name for layer in select(layers, names=self.exclude)} if self.exclude else set()
        chosen = {layer.name for layer in select(layers, names=self.include)} - kept
        is_raised = opset_of(model) < _OLDEST and bool(chosen)
        if is_raised:
            convert_opset(model, _OLDEST)
        if opset_of(model) < _OLDEST:
            return False
        ground = Ground(View(model, TARGETS[context.target]), TARGETS[context.target])
        order = [self._key(kernel.node) for kernel in self._first_plan(model, ground, chosen).layers]
        rule = self._rule(model, context, chosen)
        in_float = float_prefix(model, order, lambda some: self._variant(model, context, chosen - _anchors(some), rule), context)
        return self._quantize(model, context, chosen - _anchors(in_float), rule) or is_raised

    def _rule(self, model: ir.Model, context: Context, chosen: set[str]) -> Rule:
        if self.ranges != "measured":
            return self.ranges
        return fitting_rule(model, self.name, partial(self._variant, model, context, chosen), tuple(sorted(chosen)), context)

    def _variant(self, model: ir.Model, context: Context, chosen: set[str], rule: Rule) -> ir.Model:
        """A clone with some layers quantized; what it does is nobody's rewrite."""
        clone = model.clone()
        with ledger.recording(ledger.Recorder()):
            self._quantize(clone, context, chosen, rule)
        return clone

    def _quantize(self, model: ir.Model, context: Context, chosen: set[str], rule: Rule) -> bool:
        ground = Ground(View(model, TARGETS[context.target]), TARGETS[context.target])
        first = self._first_plan(model, ground, chosen)
        known = known_values(model, first.grids, ground.view, context, rule)
        unknown = {value for grid in first.grids for value in grid.values} - known.keys()
        solutions = solve(model, _places(first), Scheme(self.weight_bits), context, self.narrow)
        solved = {one.place.layer.node: one for one in solutions}
        allowed = {node for node in solved if ledger.allow(self._key(node))}
        plan = plan_of(
            model,
            ground,
            lambda kernel: (
                (kernel.kind is not Kind.LAYER or kernel.node in allowed) and unknown.isdisjoint((*kernel.inputs, *kernel.outputs))
            ),
        )
        planned = {kernel.node.name or "" for kernel in plan.layers}
        for name in sorted(chosen - planned):
            key = ledger.Key(self.name, "", name)
            if not ledger.denies(key):
                ledger.miss(key, "it has no integer kernel, or stands outside of islands")
        if not plan.kernels:
            return False
        islands, scales = list(plan.islands), scales_of(plan.grids, known)
        weights = {}
        for kernel in plan.layers:
            layer, one = _layer(kernel), solved[kernel.node]
            weights[kernel.node] = with_room(layer.weight(), one.weight, ground.view.constant(kernel.bias), scales[layer.input].scale)
        added = Rewriter(model, plan, scales, weights, ground.target).run()
        for island in islands:
            self._record(island, plan.joined, added, solved)
        return True

    def _first_plan(self, model: ir.Model, ground: Ground, chosen: set[str]) -> Plan:
        """What could run in integers, whatever the samples say."""
        return plan_of(model, ground, lambda kernel: kernel.kind is not Kind.LAYER or self._is_wanted(kernel, chosen))

    def _is_wanted(self, kernel: Kernel, chosen: set[str]) -> bool:
        return (kernel.node.name or "") in chosen and not ledger.denies(self._key(kernel.node))

    def _key(self, node: ir.Node) -> ledger.Key:
        return ledger.Key(self.name, "", node.name or "")

    def _record(
        self, island: Sequence[Kernel], joined: frozenset[ir.Node], added: dict[ir.Node, list[str]], solved: dict[ir.Node, Solved]
    ) -> None:
        """One rewrite a layer; what stands between layers belongs to the layer before it, or to the first."""
        parts: list[list[Kernel]] = []
        waiting: list[Kernel] = []
        for kernel in island:
            if kernel.kind is Kind.LAYER:
                parts.append([kernel, *waiting])
                waiting = []
            else:
                (parts[-1] if parts else waiting).append(kernel)
        for layer, *others in parts:
            names = tuple(name for kernel in (layer, *others) for name in added[kernel.node])
            kernels = tuple(kernel.runs_as for kernel in (layer, *others) if kernel.runs_as and kernel.node not in joined)
            gone = tuple(kernel.node.name or "" for kernel in others if kernel.node.graph is None)
            error = solved[layer.node].error
            ledger.record(ledger.Rewrite(self._key(layer.node), gone, names, kernels=kernels, predicted_error=error))


def _anchors(keys: Sequence[ledger.Key]) -> set[str]:
    return {key.anchor for key in keys}


def _places(plan: Plan) -> list[Place]:
    return [Place(_layer(kernel), kernel.node, None) for kernel in plan.layers]


def _layer(kernel: Kernel) -> Layer:
    assert kernel.layer is not None, "a kernel of this kind has a weight"
    return kernel.layer

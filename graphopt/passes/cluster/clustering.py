"""The pass that clusters weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from graphopt import ledger
from graphopt.errors import RecipeError, StatisticsError
from graphopt.graph.edits import Names
from graphopt.graph.layers import Layer, layers_of
from graphopt.graph.view import View
from graphopt.passes.base import Context, GuidedPass, Role
from graphopt.passes.cluster.plan import Plan, with_weights
from graphopt.passes.cluster.ratio import Per, Trial, within
from graphopt.passes.cluster.walk import Found, Solver, apart, walk
from graphopt.passes.quantize.constants import choose, constants_of, folding_limit, reads_folded
from graphopt.passes.walk.outputs import output_of
from graphopt.runtime.statistics import Request, states_of
from graphopt.solve.codebook import MOST, Book, Clustered, cluster
from graphopt.solve.metric import Metric
from graphopt.targets.emit import Shared

Array = np.ndarray[Any, Any]

FEW = "few"
"""The rule whose denial at a weight gives it as many centroids as a byte can tell apart."""
_FEW = 16
_MEASURED = "cluster: measured"
"""Stands for: an attempt that may measure has walked."""
_SPARE = 8
"""Times as many centroids as bits tell apart are there to begin with: rare weights far out have some of their own."""


@dataclass(frozen=True)
class Cluster(GuidedPass):
    """Replaces weights with codes of a few values, their centroids, which the runtime looks up when it loads the model.

    Applies to float32 weights of layers and of recurrent layers, tables, and constants of elementwise operators, in subgraphs too, where
    the file becomes smaller. With samples, layers are clustered one after the other in the metric of the inputs that the clustered ones
    before them leave, towards the original's outputs, and biases take up what their means still miss; weights that are zero stay so
    where there are many. Approximate: 16 centroids cost a layer about 20 dB. Takes an eighth of the bytes with 16 centroids, a
    sixteenth with 4; the runtime makes the float weight at load, so that the same kernels run at the same speed in the same memory.

    Attributes:
        centroids: of each weight, 2 to 256; 2, 4, 6 and 16 fill bytes well. None: 16, and 256 where 16 cost the outputs too much.
        bits: that a weight is to take once the file is packed, instead: codes are then chosen for their error and their entropy together.
            Of as many centroids as that takes, in the file itself a byte each.
        ratio: how many times smaller than the float file the packed model is to be, instead: as many bits as that leaves, with scales or
            without, whichever the outputs miss less.
        per: centroids are weights themselves ("tensor"), or relative to a scale of each output "channel" (or row). None: by channel,
            or with a ratio what is measured to be better.
        include: globs on the names of constants or of nodes that use them; all where empty.
        exclude: globs on those that stay as they are.
        min_size: elements from which a constant is worth it.
    """

    name: ClassVar[str] = "cluster"
    role: ClassVar[Role] = "approximate"
    steps: ClassVar[dict[str, str]] = {FEW: "Replaces a weight with codes of 16 centroids, where it would else get 256."}

    centroids: int | None = None
    bits: float | None = None
    ratio: float | None = None
    per: Per | None = None
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    min_size: int = 512

    def __post_init__(self) -> None:
        """Checks the numbers."""
        self._book(few=True)
        if sum(each is not None for each in (self.centroids, self.bits, self.ratio)) > 1:
            raise RecipeError("cluster: give one of centroids, bits and ratio")
        if self.ratio is not None and not self.ratio > 1:
            raise RecipeError(f"cluster: ratio is how many times smaller the packed model is to be, above 1, not {self.ratio:g}")

    def run(self, model: ir.Model, context: Context) -> bool:
        """Clusters all weights that become smaller, those with the least error first."""
        if self.ratio is not None:
            found = self._within(self.ratio, model, context)
            ledger.note(f"cluster: {found.bits:.2f} bits a weight, per {found.per}")
            return found.cluster.run(model, replace(context, solved=found.solved))
        return self._cluster(model, context)

    def _within(self, ratio: float, model: ir.Model, context: Context) -> Trial:
        """The pass for a ratio, found once for all attempts."""
        key = (self, _state(model))
        if key not in context.solved:
            pers: tuple[Per, ...] = ("channel", "tensor") if self.per is None else (self.per,)
            context.solved[key] = within(ratio, pers, lambda bits, per: replace(self, ratio=None, bits=bits, per=per), model, context)
        found: Trial = context.solved[key]
        return found

    def _cluster(self, model: ir.Model, context: Context) -> bool:
        plans = self._plans(model, folding_limit(context.options))
        found = self._solved(model, plans, context)
        together: dict[ledger.Key, list[Plan]] = {}
        for plan in plans:
            together.setdefault(plan.key, []).append(plan)
        errors = {key: max(found[plan.constant.name].error for plan in parts) for key, parts in together.items()}
        changed, names = False, Names(model)
        shared, view = Shared(model, names), View(model)
        for key in sorted(together, key=errors.__getitem__):
            if ledger.allow(key):
                added = [name for plan in together[key] for name in _apply(plan, found[plan.constant.name], view, shared, names)]
                reason = f"{together[key][0].book.centroids} centroids"
                ledger.record(ledger.Rewrite(key, added=tuple(added), reason=reason, predicted_error=errors[key]))
                changed = True
        return changed

    def _plans(self, model: ir.Model, limit: float) -> list[Plan]:
        readable = [
            one for one in constants_of(model, ir.DataType.FLOAT) if all(reads_folded(use.node, use.idx) for use in one.value.uses())
        ]
        plans, view = [], View(model)
        for constant in choose(readable, self.include, self.exclude, self.min_size):
            anchor = constant.user.name or ""
            few = self.centroids is None and self.bits is None and not ledger.denies(ledger.Key(self.name, FEW, anchor))
            key = ledger.Key(self.name, FEW if few else "", anchor)
            plan = Plan(constant, key, self._book(few=few))
            obstacle = plan.obstacle(view, limit)
            if obstacle:
                ledger.miss(key, obstacle)
            elif not ledger.denies(key):
                plans.append(plan)
        return plans

    def _book(self, *, few: bool) -> Book:
        """The codebook of a weight; few centroids or many where no option says how many."""
        per = self.per or "channel"
        if self.centroids is not None:
            return Book(self.centroids, per)
        if self.bits is not None:
            return Book(min(MOST, math.ceil(_SPARE * 2**self.bits)), per, self.bits)
        return Book(_FEW if few else MOST, per)

    def _solved(self, model: ir.Model, plans: Sequence[Plan], context: Context) -> Mapping[str, Found]:
        """What constants become, by name.

        A walk takes a while. It is worked out once for attempts that differ in nothing that it depends on; and attempts that only find
        out which weights few centroids do not suffice for (they measure nothing, after one that did) take layers each by itself.
        """
        known: tuple[Any, dict[str, Found]] = context.solved.get(self.name, (None, {}))
        original = context.original or model
        state = (self, tuple((plan.constant.name, plan.book) for plan in plans), _state(model), _state(original))
        probes = not context.measures and context.solved.get(_MEASURED, False)
        if known[0] == state and not probes:
            return known[1]
        view = View(model)
        walked = {} if context.samples.is_synthetic else _walked(model, plans, view)
        others = {plan.constant.name: _alone(plan, view, context) for plan in plans if plan.constant.name not in walked}
        if probes:
            return others | _apart(model, walked, view, context)
        now = with_weights(model, [plan for plan in plans if plan.constant.name in others], [one.weight.weight for one in others.values()])
        try:
            found = others | _in_order(now, original, walked, context)
        except StatisticsError as error:
            ledger.note(f"{self.name}: weights are clustered each by itself: {error}")
            found = others | {name: _alone(plan, view, context) for name, plan in walked.items()}
        context.solved[self.name] = state, found
        if context.measures:
            context.solved[_MEASURED] = True
        return found


def _state(model: ir.Model) -> tuple[str, ...]:
    """How a model computes its outputs."""
    states = states_of(model)
    return tuple(states[f"value:{value.name}"] for value in model.graph.outputs)


def _walked(model: ir.Model, plans: Sequence[Plan], view: View) -> dict[str, Plan]:
    """The weights of layers that samples can be walked through, by name."""
    inside = set(model.graph)
    layers = {plan: plan.own_layer for plan in plans if plan.constant.user in inside}
    return {plan.constant.name: plan for plan, layer in layers.items() if layer is not None and output_of(layer, view) is not None}


def _alone(plan: Plan, view: View, context: Context) -> Found:
    """A weight clustered by what it is alone; each book is worked out once."""
    key = ("alone", plan.constant.name, plan.book)
    if key not in context.solved:
        weight, metric = plan.matrix(view), Metric(None)
        found = cluster(weight, metric, plan.book, _zeros(weight, plan.book))
        context.solved[key] = Found(found, None, metric.relative(weight, found.weight))
    alone: Found = context.solved[key]
    return alone


def _apart(model: ir.Model, plans: Mapping[str, Plan], view: View, context: Context) -> dict[str, Found]:
    """Weights of layers clustered each by itself in the metric of its inputs, by name; each book is worked out once."""
    layers = {name: layer for name, plan in plans.items() if (layer := plan.own_layer) is not None}
    states = states_of(model)
    keys = {name: (name, plans[name].book, states[f"layer:{layer.name}"]) for name, layer in layers.items()}
    missing = {name: layer for name, layer in layers.items() if keys[name] not in context.solved}
    known = context.statistics(model, Request(layers=tuple(layer.name for layer in missing.values()))).layers if missing else {}
    for name, layer in missing.items():
        output = output_of(layer, view)
        assert output is not None, "it can be walked"
        context.solved[keys[name]] = apart(layer, output, known[layer.name], _solver(plans[name].book))
    return {name: context.solved[key] for name, key in keys.items()}


def _solver(book: Book) -> Solver:
    """Makes codes of a book."""

    def solve(layer: Layer, target: Array, metric: Metric) -> Clustered:
        return cluster(target, metric, book, _zeros(layer.weight(), book))

    return solve


def _in_order(now: ir.Model, original: ir.Model, plans: Mapping[str, Plan], context: Context) -> dict[str, Found]:
    """Weights of layers clustered one after the other, by name."""
    chosen = {plan.constant.user.name or "": name for name, plan in plans.items()}
    layers = [layer for layer in layers_of(now) if layer.name in chosen]
    shapes = {layer.name: layer.shape for layer in layers_of(original)}
    if any(shapes.get(layer.name) != layer.shape for layer in layers):
        original = now  # pruned before: its own outputs are what can be had

    def solve(layer: Layer, target: Array, metric: Metric) -> Clustered:
        return _solver(plans[chosen[layer.name]].book)(layer, target, metric)

    return {chosen[name]: found for name, found in walk(now, original, layers, solve, context)}


def _zeros(weight: Array, book: Book) -> Array | None:
    """Which weights are zero, where they are as many as a centroid usually stands for."""
    zeros: Array = weight == 0
    return zeros if np.count_nonzero(zeros) * book.centroids >= zeros.size else None


def _apply(plan: Plan, found: Found, view: View, shared: Shared, names: Names) -> list[str]:
    """Puts codes in the place of a weight, and shifts its layer's bias; returns the names of the new nodes."""
    layer = plan.own_layer
    if found.shift is not None and layer is not None:
        output = output_of(layer, view)
        assert output is not None, "it was walked"
        output.move(layer, found.shift, names)
    return plan.put(found.weight, shared, names)

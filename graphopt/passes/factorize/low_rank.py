"""Low-rank factorization of linear layers, within a budget for the whole model."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from graphopt import ledger
from graphopt.errors import LimitError, RecipeError
from graphopt.graph.edits import Names
from graphopt.graph.layers import Layer, layers_of, select
from graphopt.graph.view import View
from graphopt.passes.base import Context, GuidedPass, Role
from graphopt.passes.factorize.curves import Curve, curve_of, measured_ranks
from graphopt.passes.factorize.forms import Cost, Form, Shapes, form_of
from graphopt.passes.factorize.plan import Plan, Ranks
from graphopt.passes.factorize.races import slower
from graphopt.passes.latency import most_work
from graphopt.passes.racing import seconds_of
from graphopt.passes.walk.damage import Damage, Feed, samples_for
from graphopt.passes.walk.line import shapes_of_layers
from graphopt.passes.walk.outputs import output_of
from graphopt.passes.walk.refit import refit
from graphopt.runtime.statistics import states_of
from graphopt.solve.metric import Metric

Array = np.ndarray[Any, Any]

_MEANS = {
    **dict.fromkeys(("macs", "parameters", "latency"), "the share that may stay, between 0 and 1"),
    "loss": "what the outputs may lose, above 0",
}


@dataclass(frozen=True)
class Factorize(GuidedPass):
    """Replaces a linear layer with two of lower rank: a matrix with two, a k x k kernel with k x 1 and 1 x k.

    Applies to products and convolutions of one group where two layers take less work, and, raced on this machine, less time. The factors
    are the closest ones in the metric of the layer's inputs; ranks follow from the damage at the model's outputs, measured at a few ranks
    of each layer, for all layers at once; then every layer is fitted to the original's outputs on the inputs that it sees now. Approximate.
    Saves time and bytes in proportion to multiply-accumulates and weights.

    Attributes:
        macs: share of the layers' multiply-accumulates that may stay; None for no limit.
        parameters: share of the layers' weights that may stay; None for no limit.
        latency: share of the time of the first sample that may stay, measured on this machine; None for no limit.
        loss: what the outputs may lose instead, of which as much work is taken as keeps within it: nats a row of the divergence of
            logits or probabilities, noise over signal of other outputs.
        include: globs on the names of layers' nodes or weights; all layers where empty.
        exclude: globs on those that stay whole.
    """

    name: ClassVar[str] = "factorize"
    role: ClassVar[Role] = "approximate"

    macs: float | None = None
    parameters: float | None = None
    latency: float | None = None
    loss: float | None = None
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Checks the budget."""
        given = {name: value for name in ("macs", "parameters", "latency", "loss") if (value := getattr(self, name)) is not None}
        if len(given) != 1:
            raise RecipeError(f"factorize: give one budget, macs, parameters, latency or loss, not {' and '.join(given) or 'none'}")
        for name, value in given.items():
            if value <= 0 or (value >= 1 and name != "loss"):
                raise RecipeError(f"factorize: {name} is {_MEANS[name]}, not {value}")

    def run(self, model: ir.Model, context: Context) -> bool:
        """Chooses ranks for all layers, and puts two in the place of each that gets one."""
        layers = self._layers(model)
        first = next(iter(context.samples))
        shapes = shapes_of_layers(model, first, context.options)
        forms = self._forms(model, layers, shapes)
        if not forms and self.loss is None:
            raise LimitError(f"factorize: the budget cannot be met: none of {len(layers)} layers has a form of a lower rank")
        if not forms:
            return False
        # What is denied is measured too: another attempt, or a replay, comes to the same numbers whatever it leaves out.
        curves = [curve.without(self._denied(curve)) for curve in self._solved(model, forms, shapes, context)]
        ranks = self._ranks(model, Plan.of(model, curves, shapes), first, shapes, context)
        return self._rewrite(model, curves, ranks, context)

    def _layers(self, model: ir.Model) -> list[Layer]:
        """The layers of the main graph that patterns leave, by order of execution."""
        layers = [layer for layer in layers_of(model) if layer.graph is model.graph]
        chosen = select(layers, names=self.include) if self.include else layers
        gone = {layer.name for layer in select(layers, names=self.exclude)} if self.exclude else set[str]()
        return [layer for layer in chosen if layer.name not in gone]

    def _forms(self, model: ir.Model, layers: Sequence[Layer], shapes: Shapes) -> list[Form]:
        found, view = [], View(model)
        for layer in layers:
            form = form_of(layer, shapes) if output_of(layer, view) else "what is added to its output is not one constant a channel"
            if isinstance(form, Form):
                found.append(form)
            else:
                ledger.miss(self._key(layer), form)
        return found

    def _solved(self, model: ir.Model, forms: Sequence[Form], shapes: Shapes, context: Context) -> list[Curve]:
        """The curves, measured once for all attempts on the same model."""
        states = states_of(model)
        key = ("factorize", tuple(states[f"layer:{form.layer.name}"] for form in forms))
        if key not in context.solved:
            context.solved[key] = {curve.form.layer.name: curve for curve in self.curves(model, forms, shapes, context)}
        known: dict[str, Curve] = context.solved[key]
        return [Curve(form, known[form.layer.name].ranks, known[form.layer.name].damage) for form in forms]

    def curves(self, model: ir.Model, forms: Sequence[Form], shapes: Shapes, context: Context) -> list[Curve]:
        """What each layer costs the outputs, measured on as many samples as there is work allowed for."""
        variants = {form.layer.name: len(measured_ranks(form)) for form in forms}
        with tempfile.TemporaryDirectory(prefix="graphopt-") as folder:
            few = max(1, samples_for(model, variants, shapes))
            damage = Damage(model, variants, context.samples, few, context.options, Path(folder))
            return [curve_of(form, damage, is_real=not context.samples.is_synthetic) for form in forms]

    def _denied(self, curve: Curve) -> list[int]:
        return [rank for rank in curve.ranks if ledger.denies(self._key(curve.form.layer, rank))]

    def _ranks(self, model: ir.Model, plan: Plan, feed: Feed, shapes: Shapes, context: Context) -> Ranks:
        """The ranks by name of the layer, those left out that take longer than the layer on this machine."""
        while True:
            ranks = self._within(model, plan, feed, context)
            barred: dict[str, list[int]] = {}
            for curve in plan.curves if context.measures else ():
                layer = curve.form.layer
                rank = ranks.get(layer.name)
                reason = "" if rank is None else slower(curve.form, rank, shapes, context)
                if rank is not None and reason:
                    barred[layer.name] = [other for other in curve.ranks if other >= rank]
                    for other in barred[layer.name]:  # a larger one takes no less
                        ledger.decline(self._key(layer, other), reason)
            if not barred:
                return ranks
            plan = plan.without(barred)

    def _within(self, model: ir.Model, plan: Plan, feed: Feed, context: Context) -> Ranks:
        """The ranks that keep within the budget."""
        if self.loss is not None:
            return plan.within_loss(self.loss)
        if self.latency is not None:
            return self._within_latency(model, plan, feed, context)
        cost: Cost = "parameters" if self.macs is None else "macs"
        found = plan.ranks(cost, self.macs or self.parameters or 1.0)
        if found is None:
            raise LimitError(f"factorize: the budget cannot be met: the lowest ranks leave {plan.least(cost):.1%}; give a larger share")
        return found

    def _within_latency(self, model: ir.Model, plan: Plan, feed: Feed, context: Context) -> Ranks:
        """The ranks for a budget of time: candidates are put into clones and timed, without data, which changes no time."""
        assert self.latency is not None, "it is the budget"

        def share_of_time(share: float) -> float | None:
            ranks = plan.ranks("macs", share)
            if ranks is None or not context.measures:
                return None
            variant = model.clone()
            put(variant, [curve.form for curve in plan.curves], ranks)
            whole, part = seconds_of([model, variant], feed, context.options)
            return part / whole

        share = most_work(self.name, self.latency, share_of_time, measures=context.measures)
        found = plan.ranks("macs", share)
        assert found is not None, "it was timed"
        return found

    def _rewrite(self, model: ir.Model, curves: Sequence[Curve], ranks: Ranks, context: Context) -> bool:
        """Fits all layers with their ranks, and splits those that get one."""
        chosen = {}
        for curve in curves:
            layer = curve.form.layer
            if layer.name not in ranks:
                ledger.miss(self._key(layer), "at a lower rank it would cost the outputs more for what it saves than other layers do")
            elif ledger.allow(self._key(layer)):
                chosen[layer.name] = curve
        if not chosen:
            return False
        if not context.samples.is_synthetic:
            projections = {name: _projection(curve.form, ranks[name]) for name, curve in chosen.items()}
            refit(model, model.clone(), {}, context, projections)
        told = {
            name: f"{curve.form} of rank {ranks[name]}: {curve.form.share(ranks[name], 'macs'):.0%} of the work, "
            f"{curve.form.share(ranks[name], 'parameters'):.0%} of the weights"
            for name, curve in chosen.items()
        }
        added = put(model, [curve.form for curve in chosen.values()], ranks)
        for name, curve in chosen.items():
            damage = curve.damage[curve.ranks.index(ranks[name])]
            key = self._key(curve.form.layer)
            ledger.record(ledger.Rewrite(key, added=(added[name],), reason=told[name], predicted_error=damage))
        return True

    def _key(self, layer: Layer, rank: int | None = None) -> ledger.Key:
        return ledger.Key(self.name, "" if rank is None else f"rank {rank}", layer.name)


def put(model: ir.Model, forms: Sequence[Form], ranks: Ranks) -> dict[str, str]:
    """Puts two layers in the place of each that has a rank; what its weight has beyond that rank is lost.

    Returns:
        The name of the first of the two, by that of the layer.
    """
    names, nodes, added = Names(model), {node.name: node for node in model.graph}, {}
    for form in forms:
        name = form.layer.name
        if name in ranks:
            here = form.of(nodes[name])
            added[name] = here.put(here.solved(here.layer.weight(), Metric(None)).factors(ranks[name]), names)
    return added


def _projection(form: Form, rank: int) -> Callable[[Array, Metric], Array]:
    return lambda weight, metric: form.nearest(weight, metric, rank)

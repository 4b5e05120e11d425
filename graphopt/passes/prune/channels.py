"""Structured pruning: channels, neurons and heads that the outputs miss least."""

from __future__ import annotations

import fnmatch
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import onnx_ir as ir

from graphopt import ledger
from graphopt.errors import LimitError, RecipeError
from graphopt.graph.units import Block, Couplings, couplings_of, remove
from graphopt.passes.base import Context, GuidedPass, Role
from graphopt.passes.latency import most_work
from graphopt.passes.prune.consumers import Importance, uses_of
from graphopt.passes.prune.curves import FEWER, MEASURED, Candidate, Curve, curve_of
from graphopt.passes.prune.plan import Plan
from graphopt.passes.prune.workload import Workload
from graphopt.passes.racing import seconds_of
from graphopt.passes.walk.damage import Damage, Feed, samples_for
from graphopt.passes.walk.line import shapes_of_layers
from graphopt.passes.walk.refit import refit
from graphopt.runtime.statistics import states_of

_BETWEEN = 3
"""Of so many blocks of a kind one is measured at two widths, where a model is so large that others are not."""
_LIKED = 16
"""Channels that convolutions of the CPU take together."""


@dataclass(frozen=True)
class Prune(GuidedPass):
    """Replaces layers with narrower ones: the channels, feed-forward neurons and heads go that the model's outputs miss least.

    Applies to all blocks of coupled channels that a layer sums over. In each block channels go by the optimal brain surgeon in the metric
    of their consumers' inputs; how many go where follows from the damage at the model's outputs, measured at a few widths of each block
    with the consumers refitted. Approximate. Saves time in proportion to the multiply-accumulates; widths of convolutions stay multiples
    of 4.

    Attributes:
        macs: share of the layers' multiply-accumulates that may stay; None for no limit.
        parameters: share of the layers' weights that may stay; None for no limit.
        latency: share of the time of the first sample that may stay, measured on this machine; None for no limit.
        importance: by what channels are chosen within a block: "surgeon", "activation" (weights times inputs) or "magnitude" (weights).
        include: globs on the names of blocks, or of nodes that make or use them; all blocks where empty.
        exclude: globs on those that stay.
        multiple: widths are multiples of it; 4 at least for convolutions. None for what kernels are fastest at (16) where time is the
            budget, else for any.
        residual: residual streams may become narrower too, where no normalization needs all of their channels.
    """

    name: ClassVar[str] = "prune"
    role: ClassVar[Role] = "approximate"

    macs: float | None = None
    parameters: float | None = None
    latency: float | None = None
    importance: Importance = "surgeon"
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    multiple: int | None = None
    residual: bool = False

    def __post_init__(self) -> None:
        """Checks the budget."""
        given = {name: share for name in ("macs", "parameters", "latency") if (share := getattr(self, name)) is not None}
        for name, share in given.items():
            if not 0 < share < 1:
                raise RecipeError(f"prune: {name} is the share that may stay, between 0 and 1, not {share}")
        if len(given) != 1:
            raise RecipeError(f"prune: give one budget, macs, parameters or latency, not {' and '.join(given) or 'none'}")
        if self.multiple is not None and self.multiple < 1:
            raise RecipeError(f"prune: widths are multiples of 1 at least, not of {self.multiple}")

    def run(self, model: ir.Model, context: Context) -> bool:
        """Chooses widths for all blocks, and removes what goes."""
        couplings = couplings_of(model)
        everyone = self.candidates(couplings)
        if not everyone:
            raise LimitError(f"prune: the budget cannot be met: no channels can go; {self._elsewhere(couplings)}see inspect --couplings")
        candidates = [each for each in everyone if not ledger.denies(self._key(each))]
        if not candidates:
            return False
        first = next(iter(context.samples))
        shapes = shapes_of_layers(model, first, context.options)
        # Those that are denied are measured too: another attempt, or a replay, comes to the same numbers whatever it leaves out.
        known = dict(zip(map(id, everyone), self._solved(model, everyone, shapes, context), strict=True))
        curves = [known[id(each)] for each in candidates]
        plan = Plan(candidates, curves, Workload(model, [each.block for each in candidates], shapes))
        widths = (
            self._within_latency(model, plan, first, context)
            if self.latency is not None
            else self._within_share(plan, self._hint(couplings, len(everyone) - len(candidates), context))
        )
        allowed = [width < each.block.count and ledger.allow(self._key(each)) for each, width in zip(candidates, widths, strict=True)]
        gone = plan.gone(width if may else each.block.count for each, width, may in zip(candidates, widths, allowed, strict=True))
        for each, curve, width, may in zip(candidates, curves, widths, allowed, strict=True):
            if may:
                damage = curve.damage[each.widths.index(width)]
                ledger.record(ledger.Rewrite(self._key(each), reason=f"{each.block} becomes {width}", predicted_error=damage))
        parts = remove(model, couplings, gone)
        if gone and not context.samples.is_synthetic and context.original is not None:
            count = refit(model, context.original, parts, context)
            ledger.note(f"prune: {count} layers refitted on their remaining inputs")
        return bool(gone)

    def candidates(self, couplings: Couplings) -> list[Candidate]:
        """The blocks that may become narrower.

        Raises:
            RecipeError: a pattern matches no block.
        """
        unit = self.multiple or (1 if self.latency is None else _LIKED)
        found = [Candidate(block, uses, unit) for block in self._chosen(couplings) if (uses := uses_of(block))]
        return [each for each in found if len(each.widths) > 1]

    def _chosen(self, couplings: Couplings) -> list[Block]:
        for pattern in (*self.include, *self.exclude):
            if not any(_matches(block, pattern) for block in couplings.blocks):
                known = ", ".join(block.name for block in couplings.blocks[:3]) or "none"
                raise RecipeError(f"prune: no block matches {pattern!r}; the first are: {known}; `graphopt inspect --couplings` lists them")
        included = [b for b in couplings.blocks if not self.include or any(_matches(b, pattern) for pattern in self.include)]
        kept = [block for block in included if not any(_matches(block, pattern) for pattern in self.exclude)]
        return [block for block in kept if self.residual or block.kind != "residual"]

    def _key(self, candidate: Candidate) -> ledger.Key:
        return ledger.Key(self.name, "", candidate.maker)

    def _solved(
        self, model: ir.Model, candidates: Sequence[Candidate], shapes: Mapping[str, tuple[int, ...]], context: Context
    ) -> list[Curve]:
        """The curves, measured once for all attempts on the same model."""
        states = states_of(model)
        key = (self, tuple(states[f"layer:{use.layer.name}"] for each in candidates for use in each.uses))
        if key not in context.solved:
            context.solved[key] = self.curves(model, candidates, shapes, context)
        found: list[Curve] = context.solved[key]
        return found

    def curves(
        self, model: ir.Model, candidates: Sequence[Candidate], shapes: Mapping[str, tuple[int, ...]], context: Context
    ) -> list[Curve]:
        """What each candidate costs the outputs, measured on as many samples as there is work allowed for.

        Where there is work for little, most blocks are measured at one width, and their damage is taken to rise as that of the last
        block of their kind that was measured at two.
        """
        measured = [each.near(MEASURED) for each in candidates]
        few = samples_for(model, _variants(candidates, measured), shapes)
        scarce = not few
        if scarce:
            measured = [each.near(FEWER) for each in candidates]
            few = max(1, samples_for(model, _variants(candidates, measured), shapes))
        found: dict[int, Curve] = {}
        rises: dict[str, list[float]] = {}
        with tempfile.TemporaryDirectory(prefix="graphopt-") as folder:
            layers = {use.layer.name for each in candidates for use in each.uses}
            damage = Damage(model, layers, context.samples, few, context.options, Path(folder))
            order = sorted(range(len(candidates)), key=lambda number: min(damage.step(use.layer.name) for use in candidates[number].uses))
            for number in order:
                is_real, each = not context.samples.is_synthetic, candidates[number]
                like = rises.setdefault(each.block.kind, [])
                widths = measured[number][:1] if scarce and len(like) % _BETWEEN else measured[number]
                found[number] = curve_of(each, widths, self.importance, damage, is_real=is_real, rise=like[-1] if like else 1.0)
                like.append(found[number].rise)
        return [found[number] for number in range(len(candidates))]

    def _hint(self, couplings: Couplings, denied: int, context: Context) -> str:
        """What helps where the budget cannot be met."""
        if context.samples.is_synthetic:
            return "made-up samples tell little of what may go: give --data"
        if denied:
            return f"{denied} blocks cost the outputs more than they may lose"
        return f"{self._elsewhere(couplings)}give a larger share"

    def _elsewhere(self, couplings: Couplings) -> str:
        """What else could become narrower, as the beginning of a sentence."""
        streams = 0 if self.residual else sum(block.kind == "residual" for block in couplings.blocks)
        return f"let {streams} residual streams become narrower too (residual=true), or " if streams else ""

    def _within_share(self, plan: Plan, hint: str) -> list[int]:
        """The widths for a budget of work or weights."""
        cost, share = (plan.workload.macs, self.macs) if self.macs is not None else (plan.workload.parameters, self.parameters)
        assert share is not None, "one budget is given"
        found = plan.widths(cost, share)
        if found is None:
            raise LimitError(f"prune: the budget cannot be met: the narrowest widths leave {plan.least(cost):.1%}; {hint}")
        return found

    def _within_latency(self, model: ir.Model, plan: Plan, feed: Feed, context: Context) -> list[int]:
        """The widths for a budget of time: candidates are cut from clones and timed, not refitted, which would change no time."""
        assert self.latency is not None, "it is the budget"

        def share_of_time(share: float) -> float | None:
            widths = plan.widths(plan.workload.macs, share)
            if widths is None or not context.measures:
                return None
            variant = model.clone()
            remove(variant, couplings_of(variant), plan.gone(widths))
            whole, part = seconds_of([model, variant], feed, context.options)
            return part / whole

        share = most_work(self.name, self.latency, share_of_time, measures=context.measures)
        found = plan.widths(plan.workload.macs, share)
        assert found is not None, "it was timed"
        return found


def _variants(candidates: Sequence[Candidate], measured: Sequence[Sequence[int]]) -> Counter[str]:
    """How many variants begin at which layer."""
    variants: Counter[str] = Counter()
    for each, widths in zip(candidates, measured, strict=True):
        variants[each.uses[0].layer.name] += len(widths)
    return variants


def _matches(block: Block, pattern: str) -> bool:
    return fnmatch.fnmatchcase(block.name, pattern) or any(fnmatch.fnmatchcase(site.node.name or "", pattern) for site in block.sites)

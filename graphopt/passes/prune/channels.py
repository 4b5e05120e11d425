"""Structured pruning: channels, neurons and heads that the outputs miss least."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from graphopt import ledger
from graphopt.errors import RecipeError
from graphopt.graph.units import Block, Couplings, couplings_of, remove
from graphopt.graph.view import operator_of
from graphopt.passes.base import Context, GuidedPass, Role
from graphopt.passes.prune.consumers import Use, consumers_of, put_back, uses_of
from graphopt.passes.prune.damage import Damage, Feed
from graphopt.passes.prune.refit import refit
from graphopt.passes.prune.workload import Workload
from graphopt.runtime.statistics import Request
from graphopt.runtime.trace import trace_shapes
from graphopt.samples import Samples
from graphopt.solve.allocation import allocate
from graphopt.solve.surgeon import removals

_LEVELS = 9
_NARROWEST = 0.2
_ROWS = 192
"""Rows of samples (lengths of the first axis) that each variant is run on."""
_FAST = 4
"""Widths of convolutions that leave the fast kernels no choice: multiples of it."""


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
        include: globs on the names of blocks, or of nodes that make or use them; all blocks where empty.
        exclude: globs on those that stay.
        multiple: widths are multiples of it, where a block has so many channels; 4 at least for convolutions.
    """

    name: ClassVar[str] = "prune"
    role: ClassVar[Role] = "approximate"

    macs: float | None = None
    parameters: float | None = None
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    multiple: int = 1

    def __post_init__(self) -> None:
        """Checks the budget."""
        for name in ("macs", "parameters"):
            share = getattr(self, name)
            if share is not None and not 0 < share < 1:
                raise RecipeError(f"prune: {name} is the share that may stay, between 0 and 1, not {share}")
        if self.macs is None and self.parameters is None:
            raise RecipeError("prune: give a budget, such as macs=0.7 or parameters=0.5")

    def run(self, model: ir.Model, context: Context) -> bool:
        """Chooses widths for all blocks, and removes what goes."""
        couplings = couplings_of(model)
        candidates = [Candidate(block, uses) for block in self._chosen(couplings) if (uses := uses_of(block))]
        candidates = [each for each in candidates if each.block.count > 1 and ledger.allow(each.key(self.name))]
        if not candidates:
            return False
        feeds = list(_first(context.samples))
        shapes = trace_shapes(model, feeds[0], context.options)
        workload = Workload(model, [each.block for each in candidates], shapes)
        damage = Damage(model, feeds, context.options)
        curves = [_curve(each, self._widths(each), damage, model, context) for each in candidates]
        widths = self._allocated(candidates, curves, workload)
        gone = {}
        for each, curve, width in zip(candidates, curves, widths, strict=True):
            if width < each.block.count:
                gone[each.block.name] = curve.order[: each.block.count - width]
        parts = remove(model, couplings, gone)
        for each, curve, width in zip(candidates, curves, widths, strict=True):
            if width < each.block.count:
                reason = f"{each.block} becomes {width}"
                ledger.record(ledger.Rewrite(each.key(self.name), reason=reason, predicted_error=curve.damage[curve.widths.index(width)]))
        if gone and not context.samples.is_synthetic and context.original is not None:
            count = refit(model, context.original, parts, context)
            ledger.note(f"prune: {count} layers refitted on their remaining inputs")
        return bool(gone)

    def _chosen(self, couplings: Couplings) -> list[Block]:
        for pattern in (*self.include, *self.exclude):
            if not any(_matches(block, pattern) for block in couplings.blocks):
                known = ", ".join(block.name for block in couplings.blocks[:3]) or "none"
                raise RecipeError(f"prune: no block matches {pattern!r}; the first are: {known}; `graphopt inspect --couplings` lists them")
        included = [b for b in couplings.blocks if not self.include or any(_matches(b, pattern) for pattern in self.include)]
        return [block for block in included if not any(_matches(block, pattern) for pattern in self.exclude)]

    def _widths(self, candidate: Candidate) -> list[int]:
        """Widths to choose from, falling: about evenly spaced, multiples of what kernels like."""
        count = candidate.block.count
        step = max(self.multiple, _FAST if candidate.is_convolution else 1)
        wanted = np.linspace(count, max(1, _NARROWEST * count), _LEVELS)[1:]
        rounded = {int(step * max(1, round(width / step))) for width in wanted}
        return [count, *sorted((width for width in rounded if width < count), reverse=True)]

    def _allocated(self, candidates: Sequence[Candidate], curves: Sequence[Curve], workload: Workload) -> list[int]:
        budgets = [
            (cost, share) for cost, share in ((workload.macs, self.macs), (workload.parameters, self.parameters)) if share is not None
        ]
        whole = [each.block.count for each in candidates]
        scaled = [(cost, cost(whole) * share) for cost, share in budgets]

        def excess(widths: Sequence[int]) -> float:
            return max(cost(widths) / budget for cost, budget in scaled)

        found = allocate([curve.widths for curve in curves], [curve.damage for curve in curves], excess, 1.0)
        if found is None:
            least = min(cost([curve.widths[-1] for curve in curves]) / cost(whole) for cost, _ in budgets)
            raise RecipeError(
                f"prune: the budget cannot be met: the narrowest widths leave {least:.0%}; give a larger share or fewer excludes"
            )
        return found


@dataclass(frozen=True)
class Candidate:
    """A block that may become narrower, with the layers that use it."""

    block: Block
    uses: Sequence[Use]

    @property
    def is_convolution(self) -> bool:
        """Whether a convolution makes or uses it."""
        return any("Conv" in operator_of(site.node) for site in self.block.sites)

    def key(self, pass_name: str) -> ledger.Key:
        """The rewrite's name: the first node that makes the block's channels."""
        maker = next(site.node.name for site in self.block.sites if site.role == "makes")
        return ledger.Key(pass_name, "", maker or "")


@dataclass(frozen=True)
class Curve:
    """What a block costs the outputs at some widths.

    Attributes:
        widths: falling, the whole width first.
        damage: at each.
        order: the components in the order in which they go.
    """

    widths: list[int]
    damage: list[float]
    order: tuple[int, ...]


def _curve(candidate: Candidate, widths: Sequence[int], damage: Damage, model: ir.Model, context: Context) -> Curve:
    layers = tuple(use.layer.name for use in candidate.uses)
    known = {} if context.samples.is_synthetic else context.statistics(model, Request(layers=layers)).layers
    measured: dict[int, float] = {candidate.block.count: 0.0}
    order: tuple[int, ...] = ()
    for removal in removals(consumers_of(candidate.uses, known), widths):
        width = candidate.block.count - len(removal.gone)
        if width in widths:
            order = removal.gone
            measured[width] = damage.of(put_back(candidate.uses, removal.weights))
        if width <= widths[-1]:
            break
    return Curve([width for width in widths if width in measured], [measured[width] for width in widths if width in measured], order)


def _first(samples: Samples) -> Iterator[Feed]:
    """The first samples, so many that there are enough rows."""
    rows = 0
    for feed in samples:
        if rows >= _ROWS:
            return
        rows += max((array.shape[0] for array in feed.values() if array.ndim), default=1)
        yield feed


def _matches(block: Block, pattern: str) -> bool:
    return fnmatch.fnmatchcase(block.name, pattern) or any(fnmatch.fnmatchcase(name, pattern) for name in _nodes(block))


def _nodes(block: Block) -> Iterator[str]:
    return (site.node.name or "" for site in block.sites)

"""A plan: how wide each block may become, what that costs the outputs, and what it saves."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from graphopt.passes.prune.curves import Candidate, Curve
from graphopt.passes.prune.workload import Workload
from graphopt.solve.allocation import allocate

Cost = Callable[[Sequence[int]], float]


@dataclass(frozen=True)
class Plan:
    """Blocks with what is known of them.

    Attributes:
        candidates: the blocks.
        curves: of each.
        workload: of all layers.
    """

    candidates: Sequence[Candidate]
    curves: Sequence[Curve]
    workload: Workload

    def widths(self, cost: Cost, share: float) -> list[int] | None:
        """The widths with the least damage whose cost is a share of the present one; None where not even the narrowest are."""
        budget = share * cost([each.block.count for each in self.candidates])
        return allocate([each.widths for each in self.candidates], [curve.damage for curve in self.curves], cost, budget)

    def least(self, cost: Cost) -> float:
        """The share of the present cost that the narrowest widths leave."""
        return cost([each.widths[-1] for each in self.candidates]) / cost([each.block.count for each in self.candidates])

    def gone(self, widths: Iterable[int]) -> dict[str, tuple[int, ...]]:
        """What goes of each block that becomes narrower, by name."""
        cut = zip(self.candidates, self.curves, widths, strict=True)
        return {each.block.name: curve.order[: each.block.count - width] for each, curve, width in cut if width < each.block.count}

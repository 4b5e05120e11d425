"""Allocation of a budget over blocks: which block becomes how wide, by damage for what it saves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

Cost = Callable[[Sequence[int]], float]
"""The cost of a model whose blocks have these widths."""


def allocate(widths: Sequence[Sequence[int]], damage: Sequence[Sequence[float]], cost: Cost, budget: float) -> list[int] | None:
    """Chooses a width for each block: the least damage, step by step, for the cost that goes.

    A block's cost is linear in its own width, so that only corners of the lower convex hull of its damage are worth stopping at. Each
    step takes the block whose next corner adds the least damage for the cost that it saves at the other blocks' present widths: what
    one block saves may depend on the others. Steps that more than meet the budget are followed by the widest choice that still does.

    Args:
        widths: for each block, the widths to choose from, falling; the first is the present one.
        damage: the damage of each, alone; that of the first is 0. Damages of blocks are taken to add up.
        cost: of widths, one a block; falls with each of them.
        budget: what the cost may be.

    Returns:
        The widths; None where even the smallest cost more.
    """
    rising = [np.maximum.accumulate(np.asarray(each, float)) for each in damage]
    corners = [_hull(np.asarray(options, float), curve) for options, curve in zip(widths, rising, strict=True)]
    levels = [0] * len(widths)
    present = [each[0] for each in widths]
    spent = cost(present)
    while spent > budget:
        steps = []
        for block, options in enumerate(widths):
            level = next((corner for corner in corners[block] if corner > levels[block]), None)
            if level is None:
                continue
            saved = spent - cost([*present[:block], options[level], *present[block + 1 :]])
            if saved > 0:
                steps.append(((rising[block][level] - rising[block][levels[block]]) / saved, block, level))
        if not steps:
            return None
        _, block, level = min(steps)
        levels[block], present[block] = level, widths[block][level]
        spent = cost(present)
    return _widened(widths, rising, levels, cost, budget)


def _hull(widths: Array, damage: Array) -> list[int]:
    """The corners of the lower convex hull of a damage that rises as the width falls; the first and the last are among them."""
    corners: list[int] = []
    for level in range(len(widths)):
        while len(corners) > 1 and _slope(widths, damage, corners[-2], corners[-1]) >= _slope(widths, damage, corners[-1], level):
            corners.pop()
        corners.append(level)
    return corners


def _slope(widths: Array, damage: Array, before: int, after: int) -> float:
    return float((damage[after] - damage[before]) / (widths[before] - widths[after]))


def _widened(widths: Sequence[Sequence[int]], damage: Sequence[Array], levels: list[int], cost: Cost, budget: float) -> list[int]:
    """Gives back what the last steps saved beyond the budget, where it mends most damage for its cost first."""
    while True:
        present = [options[level] for options, level in zip(widths, levels, strict=True)]
        spent = cost(present)
        gains = []
        for block, level in enumerate(levels):
            mended = float(damage[block][level] - damage[block][level - 1]) if level else 0.0
            if mended > 0:
                wider = cost([*present[:block], widths[block][level - 1], *present[block + 1 :]])
                if wider <= budget:
                    gains.append((mended / max(wider - spent, 1e-300), block))
        if not gains:
            return present
        levels[max(gains)[1]] -= 1

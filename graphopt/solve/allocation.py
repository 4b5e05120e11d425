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

    Each step takes the block and the width, any number of levels further, with the least added damage for the cost that it saves at
    the other blocks' present widths: what one block saves may depend on the others. Steps that more than meet the budget are followed
    by the widest choice that still does.

    Args:
        widths: for each block, the widths to choose from, falling; the first is the present one.
        damage: the damage of each, alone; that of the first is 0. Damages of blocks are taken to add up.
        cost: of widths, one a block; falls with each of them.
        budget: what the cost may be.

    Returns:
        The widths; None where even the smallest cost more.
    """
    rising = [np.maximum.accumulate(np.asarray(each, float)) for each in damage]
    levels = [0] * len(widths)
    present = [each[0] for each in widths]
    spent = cost(present)
    while spent > budget:
        steps = [
            (_price(rising[block], levels[block], level, saved), block, level)
            for block, options in enumerate(widths)
            for level in range(levels[block] + 1, len(options))
            if (saved := spent - cost([*present[:block], options[level], *present[block + 1 :]])) > 0
        ]
        if not steps:
            return None
        _, block, level = min(steps)
        levels[block], present[block] = level, widths[block][level]
        spent = cost(present)
    return _widened(widths, rising, levels, cost, budget)


def _price(damage: Array, before: int, after: int, saved: float) -> float:
    return float(damage[after] - damage[before]) / saved


def _widened(widths: Sequence[Sequence[int]], damage: Sequence[Array], levels: list[int], cost: Cost, budget: float) -> list[int]:
    """Gives back what the last steps saved beyond the budget, where it mends most damage first."""
    while True:
        present = [options[level] for options, level in zip(widths, levels, strict=True)]
        gains = [
            (float(damage[block][level] - damage[block][level - 1]), block)
            for block, level in enumerate(levels)
            if level and cost([*present[:block], widths[block][level - 1], *present[block + 1 :]]) <= budget
        ]
        gains = [gain for gain in gains if gain[0] > 0]
        if not gains:
            return present
        levels[max(gains)[1]] -= 1

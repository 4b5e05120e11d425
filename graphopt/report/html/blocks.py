"""Blocks: stretches of nodes that repeat, such as the layers of a transformer."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np

_SHORTEST = 6
_LEAST = 3


def repeated(kinds: Sequence[Hashable]) -> list[range]:
    """The longest stretch of equal blocks, one right after the other.

    Args:
        kinds: what each node is, in order.

    Returns:
        The numbers of the nodes of each block; none where no stretch of at least six nodes comes three times in a row.
    """
    numbers: dict[Hashable, int] = {}
    codes = np.array([numbers.setdefault(kind, len(numbers)) for kind in kinds])
    best, found = 0, range(0)
    period = 0
    for candidate in range(_SHORTEST, len(codes) // _LEAST + 1):
        start, length = _longest_run(codes[candidate:] == codes[:-candidate])
        covered = (length // candidate + 1) * candidate if length >= candidate * (_LEAST - 1) else 0
        if covered > best:
            best, found, period = covered, range(start, start + covered), candidate
    return [range(start, start + period) for start in range(found.start, found.stop, period)] if best else []


def _longest_run(flags: np.ndarray) -> tuple[int, int]:
    """Where the longest run of true values begins, and how long it is."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], flags, [False])).astype(np.int8)))
    if not edges.size:
        return 0, 0
    starts, stops = edges[::2], edges[1::2]
    longest = int(np.argmax(stops - starts))
    return int(starts[longest]), int(stops[longest] - starts[longest])

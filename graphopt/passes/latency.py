"""Latency: how much of the work may stay for a share of the time, measured on this machine."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from graphopt import ledger
from graphopt.errors import LimitError

SHARES = tuple(round(0.95 - 0.05 * step, 2) for step in range(18))
"""Shares of the work to choose from, falling."""


def most_work(pass_name: str, latency: float, share_of_time: Callable[[float], float | None], *, measures: bool) -> float:
    """The largest share of the work that takes no longer than a share of the time.

    Shares that take longer are declined, so that a replay, which times nothing, chooses the same.

    Args:
        pass_name: in whose name shares are declined.
        latency: share of the original's time.
        share_of_time: what a share of the work takes; None where no widths leave so little.
        measures: whether anything may be timed.

    Raises:
        LimitError: none takes so little; names the nearest.
    """
    left = [share for share in SHARES if not ledger.denies(_key(pass_name, share))]
    if not left:
        raise LimitError(f"{pass_name}: no share of the work takes {latency:.0%} of the time; give a larger share")
    if not measures:
        return left[0]
    timed: dict[float, float] = {}
    found, nearest = _first(left, lambda share: _fits(share, share_of_time, latency, timed))
    if found is None:
        raise LimitError(
            f"{pass_name}: the latency cannot be met: {nearest:.0%} of the work takes {timed[nearest]:.0%} of the time; give a larger share"
        )
    for share in left[: left.index(found)]:
        took = f"takes {timed[share]:.0%} of the time" if share in timed else "would take longer"
        ledger.decline(_key(pass_name, share), f"{share:.0%} of the work {took}, and {latency:.0%} is asked for")
    return found


def _fits(share: float, share_of_time: Callable[[float], float | None], latency: float, timed: dict[float, float]) -> bool | None:
    took = share_of_time(share)
    if took is None:
        return None
    timed[share] = took
    return took <= latency


def _first(shares: Sequence[float], fits: Callable[[float], bool | None]) -> tuple[float | None, float]:
    """The first share that fits, by bisection, and the smallest that was possible; None counts as too little to be possible."""
    low, high = 0, len(shares) - 1
    found, nearest = None, shares[0]
    while low <= high:
        middle = (low + high) // 2
        fit = fits(shares[middle])
        if fit is not None:
            nearest = min(nearest, shares[middle])
        if fit is False:
            low = middle + 1
        else:
            found = shares[middle] if fit else found
            high = middle - 1
    return found, nearest


def _key(pass_name: str, share: float) -> ledger.Key:
    return ledger.Key(pass_name, f"{share:.0%} of the work")

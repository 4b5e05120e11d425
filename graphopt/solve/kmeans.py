"""Weighted k-means of numbers: where few values stand for many, at the least squared error, or at the least for their entropy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

BINS = 1 << 14
"""Numbers that are closer than this part of their range count as one: clustering then takes time for the bins alone."""
_ROUNDS = 200
_CELLS, _MOST_EXACT = 512, 64
_FEWER_BINS, _RATED_ROUNDS, _HALVINGS = 1 << 10, 16, 12


def kmeans(values: Array, price: Array, count: int, *, with_zero: bool = False) -> Array:
    """Cluster centres of numbers, the same ones each time.

    Begins with the best of all ways to cut the range into runs of cells (by dynamic programming), or, for many centres, where a companding
    quantizer has its points, by the third root of the density (Panter and Dite, 1951); then moves centres and borders in turn (Lloyd).

    Args:
        values: ``[n]``, finite.
        price: ``[n]``, not negative: what a squared error costs at each.
        count: of centres.
        with_zero: one of the centres is exactly 0.

    Returns:
        Rising float64; fewer than ``count`` where there are not as many different numbers.
    """
    bins, mass, _ = _binned(values, price, BINS)
    if with_zero:
        place = np.searchsorted(bins, 0.0)
        bins, mass = np.insert(bins, place, 0.0), np.insert(mass, place, 0.0)
    if np.unique(bins).size <= count:
        return np.unique(bins)
    total, moment = (np.append(0.0, np.cumsum(each)) for each in (mass, mass * bins))
    centres = _pinned(_begin(bins, mass, count), with_zero=with_zero)
    for _ in range(_ROUNDS):
        edges = np.concatenate([[0], np.searchsorted(bins, (centres[1:] + centres[:-1]) / 2), [bins.size]])
        weight = np.diff(total[edges])
        means = np.diff(moment[edges]) / np.where(weight > 0, weight, 1.0)
        moved = _pinned(np.sort(np.where(weight > 0, means, centres)), with_zero=with_zero)
        if np.array_equal(moved, centres):
            break
        centres = moved
    return np.unique(centres)


@dataclass(frozen=True, eq=False)
class Rated:
    """Centres whose codes are to take few bits.

    Attributes:
        centres: rising float64.
        price: of a bit, in the unit of the squared errors.
        lengths: bits of each centre's code.
    """

    centres: Array
    price: float
    lengths: Array


def rated(values: Array, price: Array, count: int, bits: float, *, with_zero: bool = False) -> Rated:
    """Cluster centres at the least squared error for an entropy of the codes (Chou, Lookabaugh and Gray, 1989).

    A bit gets a price, each number takes the centre of least error and price together, centres and lengths of codes follow in turn;
    the price is found by bisection. Centres that nothing takes any more go.

    Args:
        values: ``[n]``, finite.
        price: ``[n]``, not negative: what a squared error costs at each.
        count: of centres to begin with, evenly spread.
        bits: the entropy of the codes.
        with_zero: one of the centres is exactly 0.
    """
    bins, mass, counts = _binned(values, price, _FEWER_BINS)
    start = np.linspace(bins[0], bins[-1], min(count, bins.size)) if bins.size > 1 else bins
    # Even steps of this size have the entropy that is asked for; its slope is where to look for the price.
    typical = float(mass.sum() / counts.sum() * (np.ptp(bins) / count) ** 2) or 1.0
    low, high, best = 1e-4 * typical, 1e4 * typical, Rated(start, 0.0, np.zeros(start.size))
    for _ in range(_HALVINGS):
        middle = (low * high) ** 0.5
        best, entropy = _at_price(bins, mass, counts, start, middle, with_zero=with_zero)
        low, high = (middle, high) if entropy > bits else (low, middle)
    return best


def _at_price(bins: Array, mass: Array, counts: Array, centres: Array, price: float, *, with_zero: bool) -> tuple[Rated, float]:
    """Centres and lengths for a price of a bit, and the entropy."""
    centres = _pinned(centres.copy(), with_zero=with_zero)
    lengths, entropy = np.zeros(centres.size), 0.0
    for _ in range(_RATED_ROUNDS):
        cost = mass[:, None] * np.square(bins[:, None] - centres) + (price * counts)[:, None] * lengths
        codes = cost.argmin(axis=1)
        weight, number, moment = (np.bincount(codes, each, centres.size) for each in (mass, counts, mass * bins))
        taken = number > 0
        if with_zero:
            taken |= centres == 0
        share = np.maximum(number[taken], 0.5) / counts.sum()
        centres = np.where(weight > 0, moment / np.where(weight > 0, weight, 1.0), centres)[taken]
        centres, lengths = _pinned(centres, with_zero=with_zero), -np.log2(share)
        entropy = float(share @ lengths)
    return Rated(centres, price, lengths), entropy


def _binned(values: Array, price: Array, count: int) -> tuple[Array, Array, Array]:
    """The mean, the price and the number of all numbers that fall into one bin, rising, without empty bins."""
    low, high = float(values.min()), float(values.max())
    width = (high - low) / count
    if not width > 0:
        return np.array([low]), np.array([float(price.sum())]), np.array([float(values.size)])
    places = np.minimum(((values - low) / width).astype(np.int32), count - 1)
    mass = np.bincount(places, price, count)
    moment = np.bincount(places, price * values, count)
    held = mass > 0
    if not held.any():
        return np.array([low]), np.array([0.0]), np.array([float(values.size)])
    return moment[held] / mass[held], mass[held], np.bincount(places, None, count)[held].astype(np.float64)


def _begin(bins: Array, mass: Array, count: int) -> Array:
    """Where centres start: the best clustering of cells of equal companded size, or for many centres the middles of so many cells."""
    spread = np.cumsum(np.cbrt(mass / np.maximum(np.gradient(bins), 1e-300)) * np.gradient(bins))
    if count > _MOST_EXACT:
        points: Array = np.interp((np.arange(count) + 0.5) / count * spread[-1], spread, bins)
        return points
    cells = np.unique(np.minimum(spread / spread[-1] * _CELLS, _CELLS - 1).astype(np.int32), return_inverse=True)[1]
    sums = [np.append(0.0, np.cumsum(np.bincount(cells, mass * bins**power))) for power in range(3)]
    weight, moment, square = (each - each[:, None] for each in sums)
    with np.errstate(divide="ignore", invalid="ignore"):
        cost = np.where(weight > 0, square - moment**2 / weight, 0.0)
    cost[np.tril_indices(len(cost), -1)] = np.inf
    best, cuts = cost[0], []
    for _ in range(count - 1):
        reached = best[:, None] + cost
        cuts.append(reached.argmin(axis=0))
        best = reached[cuts[-1], np.arange(len(cost))]
    edges = [len(cost) - 1]
    for cut in reversed(cuts):
        edges.append(int(cut[edges[-1]]))
    ends = np.unique([0, *edges])
    middles: Array = np.diff(sums[1][ends]) / np.diff(sums[0][ends])
    return middles


def _pinned(centres: Array, *, with_zero: bool) -> Array:
    if with_zero:
        centres[np.argmin(np.abs(centres))] = 0.0
    return centres

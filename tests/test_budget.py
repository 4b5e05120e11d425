"""Tests of the search for the fewest that have to be left out, on numbers alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from graphopt.choosing.budget import Trial, fewest_left_out
from graphopt.choosing.sensitivity import Effect, Effects, decibels
from graphopt.ledger import Key


def effects(noise: Sequence[float], worth: Sequence[float], total: float | None = None) -> Effects:
    """Effects on one output."""
    each = tuple(Effect(Key("p", "", str(i)), np.array([n]), w, "alone") for i, (n, w) in enumerate(zip(noise, worth, strict=True)))
    return Effects(each, ((0, "y"),), np.zeros(1), np.array([sum(noise) if total is None else total]))


def additive(found: Effects, allowed: float, factor: float = 1.0) -> Callable[[Sequence[int]], Trial]:
    """Attempts whose noise adds up, times a factor."""

    def attempt(left_out: Sequence[int]) -> Trial:
        total = factor * sum(effect.noise for index, effect in enumerate(found.each) if index not in set(left_out))
        total = total + np.zeros(1)
        return Trial(bool((total <= allowed).all()), total)

    return attempt


def test_what_is_worth_little_goes_first() -> None:
    """Of equal noise the one that gives up less; noise per worth decides."""
    found = effects([1.0, 1.0, 0.1], [0.5, 0.1, 0.4])
    assert fewest_left_out(found, 1.2, additive(found, 1.2)) == [1]


@pytest.mark.parametrize("factor", [0.3, 1.0, 5.0])
def test_predictions_are_corrected(factor: float) -> None:
    """Where noise does not add up as predicted, no more is left out than has to be, and few attempts tell."""
    noise = [2.0**-i for i in range(40)]
    found = effects(noise, [1.0] * 40, factor * sum(noise))
    attempts: list[int] = []
    judge = additive(found, 0.01, factor)

    def attempt(left_out: Sequence[int]) -> Trial:
        attempts.append(len(left_out))
        return judge(left_out)

    left_out = fewest_left_out(found, 0.01, attempt)
    assert judge(left_out).kept_within
    assert not judge(left_out[:-1]).kept_within
    assert len(attempts) <= 12


def test_what_does_no_harm_comes_back() -> None:
    """Little ones that were expected to be enough, and were not, are not left out for nothing."""
    found = effects([1.0, 0.2, 0.2, 0.2], [1.0, 0.01, 0.01, 0.01], 1.2)

    def attempt(left_out: Sequence[int]) -> Trial:
        return Trial(0 in left_out, np.array([0.5 if 0 in left_out else 1.2]))

    assert fewest_left_out(found, 1.1, attempt) == [0]


def test_other_limits_than_noise() -> None:
    """Where something else than noise decides, the order is that of noise, and it is halved."""
    found = effects([4.0, 3.0, 2.0, 1.0], [1.0] * 4)
    assert fewest_left_out(found, 1e6, lambda left_out: Trial(len(left_out) >= 3, np.ones(1))) == [0, 1, 2]
    assert fewest_left_out(found, 1e6, lambda left_out: Trial(False, np.ones(1))) == [0, 1, 2, 3]


def test_decibels() -> None:
    """The loudest output counts; silence has a ceiling."""
    assert decibels(np.array([1e-2, 1e-3])) == pytest.approx(20)
    assert decibels(np.zeros(2)) == 200

"""Tests of graphopt.runtime.fidelity."""

from __future__ import annotations

import math

import numpy as np
import pytest

from graphopt.runtime.fidelity import IDENTICAL_DB, measure, merge, within, worst


def test_identical_outputs() -> None:
    """Equal outputs, NaN and infinity in the same places included, differ by nothing."""
    y = np.array([[1.0, math.nan, -math.inf, 3.0]], np.float32)
    found = measure({"y": y}, {"y": y.copy()})["y"]
    assert (found.max_abs, found.relative, found.mismatches, found.sqnr_db) == (0, 0, 0, IDENTICAL_DB)
    assert within({"y": y}, {"y": y}, 0.0)


def test_known_difference() -> None:
    """Largest and relative error, ratio in dB and top-1 agreement of a difference worked out by hand."""
    reference = np.array([[1.0, 2.0], [4.0, 3.0]], np.float32)
    found = measure({"y": reference}, {"y": reference + np.array([[1.5, 0.0], [0.0, 0.0]], np.float32)})["y"]
    assert found.max_abs == 1.5
    assert found.relative == 1.5 / 4
    assert found.sqnr_db == pytest.approx(10 * math.log10(30 / 2.25))
    assert found.top1 == 0.5
    assert found.within(0.4)
    assert not found.within(0.3)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_nan_or_infinity_on_one_side_fails(value: float) -> None:
    """A NaN or infinity that the reference lacks is beyond any tolerance."""
    assert not within({"y": np.ones(3)}, {"y": np.array([1, value, 1])}, 1e9)
    assert not within({"y": np.array([1, value, 1])}, {"y": np.ones(3)}, 1e9)


def test_integers_and_booleans_are_exact() -> None:
    """Integers and booleans fail on any difference, and the share that differs is reported."""
    found = measure(
        {"i": np.array([1, 2, 3, 4]), "b": np.array([True, False])}, {"i": np.array([1, 2, 3, 5]), "b": np.array([True, False])}
    )
    assert found["i"].mismatches == 0.25
    assert not found["i"].within(10.0)
    assert found["b"].within(0.0)


def test_kind_of_output_matters() -> None:
    """Another shape, a missing output and a sequence of another length are failures that say so."""
    reference = {"a": np.ones((2, 3)), "b": np.ones(1), "c": [np.ones(1), np.ones(2)]}
    found = measure(reference, {"a": np.ones((3, 2)), "c": [np.ones(1)]})
    assert [found[name].problem.split()[0] for name in "abc"] == ["shape", "missing", "2"]
    assert not any(fidelity.within(1.0) for fidelity in found.values())


def test_sequences_maps_texts_and_nothing() -> None:
    """Lists, dicts, strings and empty optionals are compared element by element."""
    reference = {"s": [np.ones(2), {"k": np.array([1.0])}], "t": np.array(["a", "b"], object), "n": None}
    assert within(reference, {"s": [np.ones(2), {"k": np.array([1.0])}], "t": np.array(["a", "b"], object), "n": None}, 0.0)
    found = measure(reference, {"s": [np.ones(2), {"k": np.array([3.0])}], "t": np.array(["a", "c"], object), "n": None})
    assert found["s[1][k]"].max_abs == 2
    assert found["t"].mismatches == 0.5


def test_empty_outputs_are_equal() -> None:
    """An output without elements agrees with another one of the same shape."""
    assert within({"y": np.zeros((0, 4), np.float32)}, {"y": np.zeros((0, 4), np.float32)}, 0.0)


def test_merge_equals_one_measurement() -> None:
    """Merged measurements of two halves have the sums of the whole, and the worst relative error of a sample."""
    random = np.random.default_rng(0)
    a, b = random.standard_normal((2, 8, 5))
    whole = measure({"y": a}, {"y": b})["y"]
    halves = merge(measure({"y": a[i : i + 4]}, {"y": b[i : i + 4]}) for i in (0, 4))["y"]
    assert halves.sqnr_db == pytest.approx(whole.sqnr_db)
    assert (halves.top1, halves.max_abs, halves.elements) == (whole.top1, whole.max_abs, whole.elements)
    assert halves.relative >= whole.relative


def test_worst_output_comes_first() -> None:
    """The worst output is one that cannot be compared, else the one with the largest relative error."""
    reference = {"a": np.ones(2), "b": np.ones(2)}
    near = measure(reference, {"a": np.ones(2) * 1.1, "b": np.ones(2) * 1.2})
    assert (found := worst(near)) is not None
    assert found.name == "b"
    assert worst({}) is None

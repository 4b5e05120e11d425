"""Tests of splitting elements into streams of symbols, and joining them again."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphopt.container import symbols
from graphopt.container.entropy import Bytes
from graphopt.container.kinds import KINDS
from tests.packable import FLAGS, NORMAL


def restored(data: bytes, kind: int) -> bytes:
    """A stream of elements, split and joined."""
    way, parts = symbols.split(np.frombuffer(data, np.uint8), KINDS[kind])
    left = [part.data for part in parts]

    def take(length: int) -> Bytes:
        assert left[0].size == length
        return left.pop(0)

    return symbols.join(way, len(data), KINDS[kind], take).tobytes()


@given(st.sampled_from(sorted(KINDS)), st.binary(max_size=40), st.integers(1, 40), st.integers(0, 200))
def test_any_elements_come_back(kind: int, piece: bytes, times: int, zeros: int) -> None:
    """Elements of any type and bit pattern, with zeros or few values, come back, also where the length is no multiple."""
    data = piece * times + bytes(zeros)
    assert restored(data, kind) == data


@pytest.mark.parametrize("kind", [1, 10, 11, 16])
def test_floats_of_every_pattern_come_back(kind: int) -> None:
    """Signs of zeros, infinities and the bits of NaNs survive."""
    data = np.random.default_rng(kind).integers(0, 1 << 16, 4096, np.uint16).tobytes()
    special = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 5e-324], np.float64).tobytes()
    assert restored(data + special * 8, kind) == data + special * 8


def ways_of(values: np.ndarray[Any, Any]) -> int:
    """The number of the way that float32 values are split."""
    return symbols.split(values.astype(np.float32).view(np.uint8), KINDS[1]).way


def test_splits_follow_the_content() -> None:
    """Dense floats go by planes, pruned ones by the places of their zeros, clustered ones by a codebook, sparse or not."""
    clustered = np.round(NORMAL * 3)
    assert ways_of(NORMAL) == symbols.split(NORMAL.astype(np.float16).view(np.uint8), KINDS[10]).way == 1
    assert ways_of(np.where(FLAGS < 0.5, 0, NORMAL)) == 2
    assert ways_of(clustered) == ways_of(np.where(FLAGS < 0.5, 0, clustered)) == 3


def test_rows_with_values_of_their_own_make_a_codebook() -> None:
    """Values that only a late part of a tensor has are found; more than a codebook holds are none."""
    rows = np.arange(200).repeat(4096)
    assert ways_of(rows) == 3
    assert ways_of(np.arange(300).repeat(4096)) != 3

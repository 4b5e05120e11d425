"""Tests of cutting files into blocks."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from graphopt.container import blocks
from graphopt.container.blocks import Run
from graphopt.container.tensors import Region, runs_of
from tests.packable import NORMAL


@given(st.lists(st.tuples(st.integers(0, 40_000_000), st.integers(0, 20_000_000)), max_size=8), st.integers(0, 50_000_000))
def test_blocks_cover_a_file(places: list[tuple[int, int]], size: int) -> None:
    """Regions of tensors in any order, overlapping or beyond the end, cut a file into blocks of bounded size that cover it."""
    regions = [Region(start, start + length, 1) for start, length in places]
    cuts = list(blocks.cut(runs_of(size, regions)))
    assert sum(run.length for cut in cuts for run in cut) == size
    assert all(0 < sum(run.length for run in cut) <= blocks.LARGEST for cut in cuts)


def test_short_runs_share_a_stream() -> None:
    """Biases of one type are coded together, so that each need not bring a table of its own."""
    biases = (NORMAL[:8192] * 0.02).astype(np.float32).tobytes()
    runs = [run for _ in range(64) for run in (Run(0, 10), Run(1, 512))]
    data = b"".join(b"name%06d" % i + biases[512 * i : 512 * (i + 1)] for i in range(64))
    coded, streams = blocks.encode(data, runs)
    assert [(stream.kind, stream.length) for stream in streams] == [(0, 640), (1, 32768)]
    assert len(coded) < 0.92 * len(data)
    assert blocks.decode(coded, len(data)) == data

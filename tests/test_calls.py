"""What values are at single calls: extremes and mean squares by channel, and rows, taken inside the runtime."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt.runtime.calls import calls_of
from graphopt.runtime.session import SessionOptions
from tests.helpers import parse


@pytest.mark.parametrize("opset", [11, 17, 18, 21])
@pytest.mark.parametrize("dtype", ["float", "float16"])
def test_calls_are_kept_apart(opset: int, dtype: str) -> None:
    """Each call has its own extremes, of all its rows, whatever its shape; rows are spread over it."""
    model = parse(f"({dtype}[N, M, 4] x) => ({dtype}[N, M, 4] y) {{ doubled = Add(x, x) y = Abs(doubled) }}", opset)
    generator = np.random.default_rng(0)
    numpy_type = {"float": np.float32, "float16": np.float16}[dtype]
    feeds = [{"x": generator.normal(size=(*shape, 4)).astype(numpy_type)} for shape in ((2, 50), (1, 3))]
    found = calls_of(model, ["doubled", "y"], feeds, SessionOptions(), rows=10)
    assert list(found) == ["doubled", "y"]
    for call, feed in zip(found["doubled"], feeds, strict=True):
        rows = 2 * feed["x"].reshape(-1, 4).astype(np.float32)
        np.testing.assert_allclose(call.low, rows.min(axis=0), rtol=1e-6)
        np.testing.assert_allclose(call.high, rows.max(axis=0), rtol=1e-6)
        np.testing.assert_allclose(call.energy, np.square(rows).mean(axis=0), rtol=1e-5)
        np.testing.assert_allclose(call.rows, rows[:: len(rows) // 10 + 1], rtol=1e-6)


def test_calls_without_rows_are_left_out() -> None:
    """A value that is empty in a call tells nothing of its channels."""
    model = parse("(float[N, 4] x) => (float[N, 4] y) { y = Abs(x) }")
    feeds = [{"x": np.ones((length, 4), np.float32)} for length in (0, 2)]
    assert len(calls_of(model, ["y"], feeds, SessionOptions(), rows=3)["y"]) == 1

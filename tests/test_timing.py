"""Tests of graphopt.runtime.timing and its process."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from graphopt.errors import SamplesError, SessionError
from graphopt.runtime.session import SessionOptions
from graphopt.runtime.stopwatch import interval
from graphopt.runtime.timing import Interval, Load, Speed, compare_speed, load_and_memory

ONE_THREAD = SessionOptions(threads=1)
FEEDS = [{"x": np.ones((256, 256), np.float32)}]


def chain(path: Path, products: int) -> Path:
    """A file with so many matrix products in a row."""
    nodes = " ".join(f"v{i + 1} = MatMul(v{i}, x)" for i in range(products))
    head = '<ir_version: 8, opset_import: ["" : 17]> g (float[256, 256] x) => (float[256, 256] y)'
    text = f"{head} {{ v0 = Neg(x) {nodes} y = Neg(v{products}) }}"
    ir.save(ir.from_onnx_text(text), path)
    return path


def test_slower_model_is_recognised(tmp_path: Path) -> None:
    """A result with eight times the work is recognised as slower, and the original is as fast as itself."""
    original, result = chain(tmp_path / "a.onnx", 1), chain(tmp_path / "b.onnx", 8)
    speed = compare_speed(original, result, FEEDS, ONE_THREAD, time_limit_s=0.5)
    assert speed.slower
    assert speed.speedup.low <= speed.speedup.ratio <= speed.speedup.high < 0.6
    assert 0.5 < speed.same.ratio < 2
    assert speed.runs >= 3
    assert speed.result_seconds > speed.original_seconds > 0
    assert json.loads(json.dumps(speed.to_json()))["runs"] == speed.runs
    assert not list(tmp_path.glob("*.npz"))


def test_speed_needs_samples(tmp_path: Path) -> None:
    """Without samples nothing is measured, and the error says so."""
    with pytest.raises(SamplesError, match="no samples"):
        compare_speed(chain(tmp_path / "a.onnx", 1), tmp_path / "a.onnx", [], ONE_THREAD)


def test_load_reports_time_and_memory(tmp_path: Path) -> None:
    """Loading in a process of its own takes some time and at least the runtime's memory."""
    found = load_and_memory(chain(tmp_path / "a.onnx", 1), FEEDS, ONE_THREAD)
    assert found.seconds > 0
    assert found.peak_mb is None or found.peak_mb > 10


def test_errors_cross_the_process_boundary(tmp_path: Path) -> None:
    """A file that does not load is a SessionError of one line that names it."""
    with pytest.raises(SessionError, match=r"nothing\.onnx") as error:
        compare_speed(tmp_path / "nothing.onnx", tmp_path / "nothing.onnx", FEEDS, ONE_THREAD)
    assert "\n" not in str(error.value)


def test_interval_is_repeatable_and_covers() -> None:
    """The interval is the same each time, holds the median, and a single ratio is its own interval."""
    ratios = np.exp(np.random.default_rng(0).normal(0.1, 0.05, 50))
    found = interval(ratios)
    assert found == interval(ratios)
    assert found["low"] < found["ratio"] < found["high"]
    assert found["ratio"] == pytest.approx(np.median(ratios), rel=1e-2)
    assert all(bound == pytest.approx(2.0) for bound in interval(np.array([2.0])).values())


@pytest.mark.parametrize(("high", "slower"), [(0.96, True), (0.98, False)])
def test_slower_asks_the_upper_bound(high: float, slower: bool) -> None:
    """Only an upper bound below 0.97 counts as slower."""
    load = Load(0.1, 100.0)
    assert Speed(Interval(0.9, 0.8, high), Interval(1, 1, 1), 10, 1.0, 1.1, load, load).slower is slower

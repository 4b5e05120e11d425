"""How much of a run could be gained at all: the time outside matrix products and convolutions, as the runtime's profile tells."""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from typing import Any

import onnxruntime
from inputs import Feed

from graphopt.runtime.session import SessionOptions, native_session_options

PRODUCTS = frozenset({"MatMul", "FusedMatMul", "Gemm", "FusedGemm", "Conv", "FusedConv", "ConvTranspose", "Einsum", "LSTM", "GRU", "RNN"})
"""Kernels whose time is multiplying and adding; no exact pass makes them faster."""

_WARMUPS, _RUNS, _ENOUGH_S = 2, 20, 2.0


def share_outside_products(path: Path, feed: Feed) -> float:
    """The part of a run's time, at one thread, that is not spent inside products; what the runtime spends between kernels counts."""
    with tempfile.TemporaryDirectory() as folder:
        options = native_session_options("all", SessionOptions(threads=1))
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        wanted = {value.name for value in session.get_inputs()}
        plain = {name: array for name, array in feed.items() if name in wanted}
        start = time.perf_counter()
        for number in range(_WARMUPS + _RUNS):
            session.run(None, plain)
            if number >= _WARMUPS and time.perf_counter() - start > _ENOUGH_S:
                break
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    return _share(events)


def _share(events: list[dict[str, Any]]) -> float:
    runs = [event for event in events if event["name"] == "model_run"][_WARMUPS:]
    start = runs[0]["ts"]
    total = sum(run["dur"] for run in runs)
    kernels = (event for event in events if event["ts"] >= start and event["name"].endswith("_kernel_time"))
    products = sum(event["dur"] for event in kernels if event["args"].get("op_name") in PRODUCTS)
    return max(0.0, 1 - products / total)

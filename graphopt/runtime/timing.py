"""Is it faster? Two models, interleaved in one fresh process, with an interval and an A/A pair beside."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from graphopt.errors import SamplesError, SessionError
from graphopt.runtime.session import SessionOptions, shorten

NOT_SLOWER = 0.97
"""A result counts as slower where the upper bound of original time / result time is below this."""

_FEEDS = 4
_EXTRA_SECONDS = 600


@dataclass(frozen=True)
class Interval:
    """A ratio with its 95 % interval."""

    ratio: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.ratio:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True)
class Load:
    """What it takes to load one model in a process of its own and to run it once.

    Attributes:
        seconds: to create the session.
        peak_mb: the process's largest resident set in MB (10^6 bytes), the runtime itself included; None where the system
            does not tell.
    """

    seconds: float
    peak_mb: float | None


@dataclass(frozen=True)
class Speed:
    """How fast a result is beside its original.

    Attributes:
        speedup: original time / result time per inference, median of paired measurements: above 1, the result is faster.
        same: the same ratio of the original and itself, loaded twice: how far from 1 noise alone goes.
        runs: number of paired measurements.
        original_seconds: time of an inference of the original: median for each feed, mean over the feeds.
        result_seconds: the same of the result.
        original_load: loading the original.
        result_load: loading the result.
    """

    speedup: Interval
    same: Interval
    runs: int
    original_seconds: float
    result_seconds: float
    original_load: Load
    result_load: Load

    @property
    def slower(self) -> bool:
        """Whether even the upper bound says that the result is more than 3 % slower; noise alone rarely does."""
        return self.speedup.high < NOT_SLOWER

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def compare_speed(
    original: Path,
    result: Path,
    feeds: Iterable[Mapping[str, np.ndarray]],
    options: SessionOptions | None = None,
    *,
    time_limit_s: float = 10.0,
) -> Speed:
    """Measures two models against each other in a fresh process, and their loading in a process each.

    Args:
        original: file of the original model.
        result: file of the result; it takes the same inputs.
        feeds: samples; the first four are used.
        options: how to run.
        time_limit_s: limit on the seconds spent on measuring inferences, loading excluded; three pairs are always measured.

    Raises:
        SamplesError: there are no feeds.
        SessionError: a model does not load or run, or the process died.
    """
    with tempfile.TemporaryDirectory(prefix="graphopt-", ignore_cleanup_errors=True) as folder:
        _write_feeds(Path(folder), feeds)
        if not any(Path(folder).iterdir()):
            raise SamplesError("there are no samples to measure the speed with")
        measured = _ask("compare", folder, options, original=str(original), result=str(result), time_limit_s=time_limit_s)
        loads = [_load(path, folder, options) for path in (original, result)]
    return Speed(
        speedup=Interval(**measured["speedup"]),
        same=Interval(**measured["same"]),
        runs=measured["runs"],
        original_seconds=measured["original_seconds"],
        result_seconds=measured["result_seconds"],
        original_load=loads[0],
        result_load=loads[1],
    )


def load_and_memory(path: Path, feeds: Iterable[Mapping[str, np.ndarray]] = (), options: SessionOptions | None = None) -> Load:
    """Loads a model in a process of its own, runs the first of `feeds` where there is one, and reports time and memory.

    Raises:
        SessionError: the model does not load or run, or the process died.
    """
    with tempfile.TemporaryDirectory(prefix="graphopt-", ignore_cleanup_errors=True) as folder:
        _write_feeds(Path(folder), islice(feeds, 1))
        return _load(path, folder, options)


def _load(path: Path, folder: str, options: SessionOptions | None) -> Load:
    return Load(**_ask("load", folder, options, path=str(path)))


def _write_feeds(folder: Path, feeds: Iterable[Mapping[str, np.ndarray]]) -> None:
    for index, feed in enumerate(islice(feeds, _FEEDS)):
        np.savez(folder / f"{index}.npz", **{name: np.asarray(array) for name, array in feed.items()})  # type: ignore[arg-type]


def _ask(task: str, folder: str, options: SessionOptions | None, **more: Any) -> dict[str, Any]:
    """Has a fresh interpreter do `task`; question and answer are JSON."""
    chosen = asdict(options or SessionOptions())
    question = json.dumps({"task": task, "feeds": folder, "options": chosen, **more}, default=_plain)
    package = str(Path(__file__).resolve().parents[2])
    paths = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    try:
        done = subprocess.run(
            [sys.executable, "-m", "graphopt.runtime.timing"],
            input=question,
            capture_output=True,
            text=True,
            env=environment,
            timeout=_EXTRA_SECONDS + 10 * more.get("time_limit_s", 0),
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise SessionError(f"timing took longer than {error.timeout:.0f} s") from error
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        raise SessionError(f"the timing process ended with status {done.returncode}: {shorten(done.stderr)[-300:]}")
    answer: dict[str, Any] = json.loads(lines[-1])
    if "error" in answer:
        raise SessionError(str(answer["error"]))
    return answer


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else dict(value)


if __name__ == "__main__":
    from graphopt.runtime.stopwatch import main

    main()

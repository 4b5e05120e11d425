"""The inside of a timing process: interleaved runs, paired ratios, their interval, memory."""

from __future__ import annotations

import gc
import json
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from graphopt.errors import GraphoptError
from graphopt.runtime.session import Feed, Session, SessionOptions, native_session_options, open_session

_SHORTEST_S = 1e-3
_WARMUPS = 3
_FEWEST, _MOST = 3, 1000
_CHECKED_EVERY = 10
_NARROW = 0.01
_CLEAR = 1.1
"""Where even the lower end of the interval says so much faster, it may be the wider the more of the time is over."""
_RESAMPLES = 1000
_BLOCK = 12
_ORDERS = ((0, 1, 2), (2, 1, 0), (1, 2, 0), (0, 2, 1), (2, 0, 1), (1, 0, 2))
"""Original, result, original again in all orders, each followed by its mirror image, so that drift cancels."""


def main() -> None:
    """Answers one JSON question of standard input on standard output."""
    question = json.load(sys.stdin)
    settings = question["options"]
    options = SessionOptions(
        settings["threads"], tuple(settings["providers"]), tuple(Path(path) for path in settings["custom_ops"]), settings["config"]
    )
    feeds = [_read(path) for path in sorted(Path(question["feeds"]).glob("*.npz"))]
    try:
        if question["task"] == "load":
            answer = load(Path(question["path"]), feeds, options)
        else:
            answer = compare(Path(question["original"]), Path(question["result"]), feeds, options, question["time_limit_s"])
    except GraphoptError as error:
        answer = {"error": str(error)}
    sys.stdout.write(json.dumps(answer) + "\n")


def load(path: Path, feeds: Sequence[Feed], options: SessionOptions) -> dict[str, Any]:
    """Seconds to load a model, and the peak resident set in MB after one run of the first feed."""
    native_session_options("all", options)  # imports the runtime, which is not the model's time
    start = time.perf_counter()
    session = open_session(path, "all", options)
    seconds = time.perf_counter() - start
    for feed in feeds[:1]:
        session.run(feed)
    return {"seconds": seconds, "peak_mb": peak_mb()}


def compare(original: Path, result: Path, feeds: Sequence[Feed], options: SessionOptions, time_limit_s: float) -> dict[str, Any]:
    """Times three sessions in turn, the original in two of them, until the interval is narrow, or clear, or time is up."""
    # Threads of a session that is not running must not compete with the one that is.
    quiet = SessionOptions(options.threads, options.providers, options.custom_ops, {"session.force_spinning_stop": "1", **options.config})
    sessions = [open_session(path, "all", quiet) for path in (original, result, original)]
    start = time.perf_counter()
    repeats = [max(_repeats(session, feed, time_limit_s / 20) for session in sessions) for feed in feeds]
    rows: list[list[float]] = []
    gc.disable()
    while len(rows) < _MOST:
        if len(rows) >= _FEWEST and time.perf_counter() - start > time_limit_s:
            break
        number = len(rows) % len(feeds)
        order = _ORDERS[(len(rows) // len(feeds)) % len(_ORDERS)]
        row = [0.0, 0.0, 0.0]
        for place in order:
            row[place] = _seconds(sessions[place], feeds[number], repeats[number])
        rows.append(row)
        if len(rows) % _CHECKED_EVERY == 0 and _is_settled(np.array(rows), (time.perf_counter() - start) / time_limit_s):
            break
    times = np.array(rows)
    return {
        "speedup": interval(times[:, 0] / times[:, 1]),
        "same": interval(times[:, 0] / times[:, 2]),
        "runs": len(rows),
        "original_seconds": _typical(times[:, 0], len(feeds)),
        "result_seconds": _typical(times[:, 1], len(feeds)),
    }


def interval(ratios: np.ndarray) -> dict[str, float]:
    """Median of paired ratios `[n]` and its 95 % interval by bootstrap; the same ratios give the same interval.

    Blocks of neighbours are drawn together, since noise on a busy machine lasts longer than one measurement.
    """
    logs = np.log(ratios)
    length = max(1, min(_BLOCK, len(logs) // 4))
    starts = np.random.default_rng(0).integers(0, len(logs), (_RESAMPLES, -(-len(logs) // length), 1))
    drawn = (starts + np.arange(length)).reshape(_RESAMPLES, -1)[:, : len(logs)] % len(logs)
    low, high = np.percentile(np.median(logs[drawn], axis=1), [2.5, 97.5])
    return {"ratio": math.exp(float(np.median(logs))), "low": math.exp(float(low)), "high": math.exp(float(high))}


def peak_mb() -> float | None:
    """The largest resident set of this process so far in MB."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would count the parent from before exec
        lines = [line for line in status.read_text(encoding="ascii", errors="replace").splitlines() if line.startswith("VmHWM:")]
        if lines:
            return int(lines[0].split()[1]) * 1024 / 1e6
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def _typical(times: np.ndarray, feeds: int) -> float:
    """Mean over the feeds of the median time of each; feeds took turns."""
    return float(np.mean([np.median(times[start::feeds]) for start in range(min(feeds, len(times)))]))


def _is_settled(times: np.ndarray, over: float) -> bool:
    """Whether more measurements would tell little; ``over`` is the share of the time that is over."""
    found = interval(times[:, 0] / times[:, 1])
    width = found["high"] / found["low"]
    return width < 1 + _NARROW or (found["low"] > _CLEAR and width < 1 + over)


def _repeats(session: Session, feed: Feed, limit_s: float) -> int:
    """Warms a session up; how many runs last at least a millisecond."""
    start, fastest = time.perf_counter(), math.inf
    for _ in range(_WARMUPS):
        fastest = min(fastest, _seconds(session, feed, 1))
        if time.perf_counter() - start > limit_s:
            break
    return max(1, math.ceil(_SHORTEST_S / fastest))


def _seconds(session: Session, feed: Feed, repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        session.run(feed)
    return (time.perf_counter() - start) / repeats


def _read(path: Path) -> Feed:
    with np.load(path, allow_pickle=True) as content:  # our own file; text inputs are object arrays
        return {name: content[name] for name in content.files}

"""Times of several files of a model, which take turns in one process: ``turns.py REQUEST.json`` prints them as JSON.

The request holds ``files`` (paths by name), ``feed`` (an .npz), ``threads`` and ``seconds``. The first file is the one
that the others are compared with.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

_LEAST, _MOST = 9, 300
_TRIAL = 3
_WARM = 2
_SLOW = 3.0
"""A file that takes so many times as long as the first takes part in the trial rounds only."""

Times = dict[str, list[float]]


def take_turns(files: dict[str, str], feed: dict[str, np.ndarray], threads: int, seconds: float) -> Times:
    """Milliseconds of each run by file; round i of one file ran beside round i of the others.

    Args:
        files: paths by name.
        feed: the inputs of each run.
        threads: within an operator.
        seconds: after which no round begins, once there is the least number of them.
    """
    sessions = {name: _session(path, threads) for name, path in files.items()}
    times: Times = {name: [] for name in files}
    generator, taking_part = np.random.default_rng(0), list(files)
    for session in sessions.values():
        for _ in range(_WARM):
            session.run(None, feed)
    start = time.perf_counter()
    for done in range(_MOST):
        if done >= _LEAST and time.perf_counter() - start > seconds:
            break
        if done == _TRIAL:
            first = np.median(times[taking_part[0]])
            taking_part = [name for name in taking_part if np.median(times[name]) <= _SLOW * first]
        for name in generator.permutation(taking_part):
            times[str(name)].append(_milliseconds(sessions[str(name)], feed))
    return times


def _milliseconds(session: Any, feed: dict[str, np.ndarray]) -> float:
    start = time.perf_counter()
    session.run(None, feed)
    return (time.perf_counter() - start) * 1e3


def _session(path: str, threads: int) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = threads, 1, 3
    options.add_session_config_entry("session.force_spinning_stop", "1")  # threads of one session do not slow the next one down
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def main() -> None:
    """Prints the times that a request asks for."""
    request = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    with np.load(request["feed"], allow_pickle=False) as file:
        feed = {name: file[name] for name in file.files}
    sys.stdout.write(json.dumps(take_turns(request["files"], feed, request["threads"], request["seconds"])) + "\n")


if __name__ == "__main__":
    main()

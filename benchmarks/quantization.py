"""Quantized files of graphopt and of other tools: quality, size, speed, and what making them takes, model by model.

    python benchmarks/quantization.py [MODEL ...] [--step peers|ours|quality|speed|calibration ...]

Each step keeps what it finds, so that models and steps can be done one at a time; the page holds all that is kept.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import calibration
import numpy as np
import processes
import quantization_page
import results
from quantizers import Quantizer, kept, make, ours, peers, size
from rich.console import Console
from subjects import BATCH, FOLDER, Subject, all_subjects, write_feed

_HERE = Path(__file__).resolve().parent
_RECORDS = FOLDER / "found"
_FLOAT, _AGAIN = "float", "float again"
_THREADS = (1, 2)
_SECONDS = 8.0
"""Of taking turns, for each number of threads and each batch."""

Findings = dict[str, Any]
"""What one step found for one model, by tool."""


def find_peers(subject: Subject, _: Findings) -> Findings:
    """Runs the other tools; files that they made before are kept."""
    return {_FLOAT: {"bytes": subject.path.stat().st_size}} | {tool.name: _made(subject, tool) for tool in peers() if tool.suits(subject)}


def find_ours(subject: Subject, _: Findings) -> Findings:
    """Runs graphopt."""
    return {tool.name: _made(subject, tool) for tool in ours() if tool.suits(subject)}


def _made(subject: Subject, tool: Quantizer) -> Findings:
    made = make(subject, tool)
    figures = {"seconds": made.seconds, "peak_mb": made.peak_mb, "note": made.note}
    return figures | ({"failure": made.failure} if made.failure else {"bytes": size(made), "digest": made.digest})


def find_quality(subject: Subject, before: Findings) -> Findings:
    """Measures all files on the whole evaluation set; a file that was measured before is not measured again."""
    found: Findings = {}
    for name, (path, digest) in _files(subject).items():
        known = before.get(name, {})
        found[name] = known if known.get("digest") == digest else {"digest": digest} | _quality(subject, path)
    return found


def _quality(subject: Subject, path: Path) -> Findings:
    done = processes.run([sys.executable, _HERE / "quality.py", subject.name, path])
    return {"failure": re.sub(r"/\S+", "the file", done.reason)} if done.status else json.loads(done.output.splitlines()[-1])


def find_speed(subject: Subject, _: Findings) -> Findings:
    """Lets all files that load take turns, for each number of threads and batch."""
    files = _files(subject)
    paths = {name: str(path) for name, (path, _) in files.items() if _loads(path)}
    found: Findings = {"digests": {name: digest for name, (_, digest) in files.items()}, "settings": {}}
    with tempfile.TemporaryDirectory() as folder:
        for batch in (1, BATCH) if subject.batch > 1 else (1,):
            feed = Path(folder) / f"{batch}.npz"
            write_feed(subject.timed_feed(batch), feed)
            for threads in _THREADS:
                setting = f"{threads} thread{'s' if threads > 1 else ''}, batch {batch}"
                found["settings"][setting] = _times({_FLOAT: paths[_FLOAT], _AGAIN: paths[_FLOAT]} | paths, feed, threads)
    return found


def _times(files: Mapping[str, str], feed: Path, threads: int) -> Findings:
    request = feed.with_suffix(".json")
    request.write_text(json.dumps({"files": files, "feed": str(feed), "threads": threads, "seconds": _SECONDS}), encoding="utf-8")
    done = processes.run([sys.executable, _HERE / "turns.py", request])
    if done.status:
        raise SystemExit(f"timing failed: {done.reason}")
    times = {name: np.array(series) for name, series in json.loads(done.output.splitlines()[-1]).items()}
    return {name: _figures(times, name) for name in times}


def _figures(times: Mapping[str, np.ndarray], name: str) -> Findings:
    """Milliseconds, and how many times as fast as float and as each other file, with 95 % intervals."""
    against = {other: _ratio(times[other], times[name]) for other in times if other not in {name, _AGAIN}}
    return {"ms": round(float(np.median(times[name])), 4), "runs": len(times[name]), "times_as_fast_as": against}


def _ratio(theirs: np.ndarray, ours: np.ndarray) -> list[float]:
    """The median over rounds, and the interval of a bootstrap."""
    count = min(len(theirs), len(ours))
    pairs = theirs[:count] / ours[:count]
    drawn = np.median(np.random.default_rng(0).choice(pairs, (500, count)), axis=1)
    return [round(float(value), 3) for value in (np.median(pairs), *np.quantile(drawn, (0.025, 0.975)))]


def _files(subject: Subject) -> dict[str, tuple[Path, str]]:
    """Each file with its digest, the original first."""
    files = {_FLOAT: (subject.path, "")}
    for tool in (*peers(), *ours()):
        made = kept(subject, tool)
        if made is not None and not made.failure:
            files[tool.name] = made.path, made.digest
    return files


def _loads(path: Path) -> bool:
    command = "import onnxruntime, sys; onnxruntime.InferenceSession(sys.argv[1], providers=['CPUExecutionProvider'])"
    return not processes.run([sys.executable, "-c", command, path]).status


_STEPS: dict[str, Callable[[Subject, Findings], Findings]] = {
    "peers": find_peers,
    "ours": find_ours,
    "quality": find_quality,
    "speed": find_speed,
}
_CALIBRATION = "calibration"


def measure(subjects: Sequence[Subject], steps: Sequence[str], console: Console) -> None:
    """Does the steps for each model; what each finds is kept in a file of its own, so that several processes may measure."""
    for subject in subjects:
        for step in (name for name in _STEPS if name in steps):
            _keep(f"{subject.name}.{step}", _STEPS[step](subject, _known(f"{subject.name}.{step}")))
        if subject.name == calibration.MODEL and _CALIBRATION in steps:
            rows: list[Findings] = []
            for row in calibration.compare(subject, _known(_CALIBRATION).get("rows", [])):
                rows.append(row)
                _keep(_CALIBRATION, {"rows": [*rows, *_known(_CALIBRATION).get("rows", [])[len(rows) :]]})
        console.print("\n".join(quantization_page.section(subject.name, findings(subject))))


def findings(subject: Subject) -> Findings:
    """All that is known of a model, by step."""
    return {step: _known(f"{subject.name}.{step}") for step in _STEPS}


def _keep(name: str, found: Findings) -> None:
    _RECORDS.mkdir(parents=True, exist_ok=True)
    (_RECORDS / f"{name}.json").write_text(json.dumps(found, indent=1), encoding="utf-8")


def _known(name: str) -> Findings:
    path = _RECORDS / f"{name}.json"
    known: Findings = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return known


def main() -> None:
    """Measures and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", help="names (default: all)")
    parser.add_argument("--step", action="append", choices=[*_STEPS, _CALIBRATION], help="may be given several times (default: all)")
    asked = parser.parse_args()
    console = Console(width=200, markup=False)
    measure(all_subjects(asked.models), asked.step or [*_STEPS, _CALIBRATION], console)
    models = {subject.name: found for subject in all_subjects(()) if (found := findings(subject))["peers"]}
    known = {"version": 1, "machine": results.machine(), "models": models, _CALIBRATION: _known(_CALIBRATION).get("rows", [])}
    results.write("quantization", quantization_page.page(known), known)


if __name__ == "__main__":
    main()

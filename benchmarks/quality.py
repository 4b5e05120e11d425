"""How good a file is and how close to the original, on a whole evaluation set: ``quality.py NAME FILE`` prints it as JSON.

Run as a process of its own, since a file that is no valid model may end the process that loads it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from subjects import Subject, all_subjects, random_feeds, zoo

_THREADS = 2
Feed = dict[str, np.ndarray]


class Ratio:
    """Signal-to-noise ratio of an output, in dB, over runs of any shapes."""

    def __init__(self) -> None:
        self._signal = self._noise = 0.0

    def add(self, reference: np.ndarray, found: np.ndarray) -> None:
        """Counts one run."""
        exact = reference.astype(np.float64)
        self._signal += float((exact**2).sum())
        self._noise += float(((found.astype(np.float64) - exact) ** 2).sum())

    @property
    def db(self) -> float:
        """So far; 200 where nothing differs."""
        return float(10 * np.log10(self._signal / self._noise)) if self._noise else 200.0


def quality(subject: Subject, file: Path) -> dict[str, Any]:
    """All measures that there are for a model's task."""
    if not subject.is_trained:
        return _closeness(subject.path, file, random_feeds(subject.path.parent, seed=1))
    found, outputs = zoo().measure(subject.name, file, threads=_THREADS)
    model = zoo().Model.open(subject.path.parent.parent, subject.name)
    more: dict[str, Any] = {}
    match model.meta["task"]:
        case "classification":
            more = _paired_drop(model, outputs["scores"])
        case "face_detection":
            feeds = (zoo().picture_feed(model, row) for row in zoo().chunks(model.rows("eval"), 1))
            more = _closeness(subject.path, file, feeds)
        case "language_model":
            more = {"kl_millinats": _divergence(model, file)}
    measures: dict[str, Any] = found | more
    return measures


def _paired_drop(model: Any, scores: np.ndarray) -> dict[str, float]:
    """The drop of the accuracy with the standard error of a paired comparison."""
    label, expected = model.rows("eval")["label"], model.reference()["scores"]
    lost = (expected.argmax(1) == label).astype(float) - (scores.argmax(1) == label)
    return {"drop": float(lost.mean()), "drop_error": float(lost.std(ddof=1) / len(lost) ** 0.5)}


def _closeness(original: Path, file: Path, feeds: Iterable[Feed]) -> dict[str, Any]:
    """Signal-to-noise ratio of each output."""
    sessions = _session(original), _session(file)
    names = [output.name for output in sessions[0].get_outputs()]
    ratios = [Ratio() for _ in names]
    for feed in feeds:
        for ratio, reference, found in zip(ratios, *(session.run(None, feed) for session in sessions), strict=True):
            ratio.add(reference, found)
    return {"sqnr_db": {name: ratio.db for name, ratio in zip(names, ratios, strict=True)}}


def _divergence(model: Any, file: Path) -> float:
    """Mean Kullback-Leibler divergence of the next character's distribution from the original's, in 10^-3 nats."""
    sessions = _session(model.path), _session(file)
    total, count = 0.0, 0
    for chunk in zoo().chunks(model.rows("eval"), model.meta["eval_batch"]):
        feed = zoo().token_feed(model, {"input_ids": chunk["input_ids"][:, :-1]})
        reference, found = (_log_probability(session.run(None, feed)[0]) for session in sessions)
        total += float((np.exp(reference) * (reference - found)).sum())
        count += reference[..., 0].size
    return 1e3 * total / count


def _log_probability(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    normalized: np.ndarray = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return normalized


def _session(path: Path) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = _THREADS, 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def main() -> None:
    """Prints the measures of one file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name")
    parser.add_argument("file", type=Path)
    asked = parser.parse_args()
    (subject,) = all_subjects([asked.name])
    sys.stdout.write(json.dumps(quality(subject, asked.file)) + "\n")


if __name__ == "__main__":
    main()

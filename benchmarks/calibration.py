"""Memory and seconds of collecting ranges on text lines of differing widths, here and with onnxruntime's calibrator."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import processes
from peer_tools import environment
from quantizers import LIMIT_MB, LIMIT_S, ONNXRUNTIME, failure_of
from subjects import FOLDER, Feed, Subject, write_feeds, zoo

MODEL = "ocr_rec"
_IMAGES, _MANY_IMAGES = 64, 512
_FITTING = 32
"""So many images fit the limit of memory where all activations are kept."""

_SCRIPT = Path(__file__).resolve().parent / "peer_scripts" / "calibrate_onnxruntime.py"


Row = dict[str, Any]
"""Tool, ranges, images, whether their widths differ, and what it took: seconds, MB of memory at the peak, the failure if any."""


@dataclass(frozen=True)
class Case:
    """One run of a tool.

    Attributes:
        tool: what results call it.
        ranges: which it finds.
        widths: of the lines, differing or equal.
        images: how many.
        version: of the tool; empty where it is run anew each time.
    """

    tool: str
    ranges: str
    widths: str
    images: int
    version: str = ""

    def run(self, subject: Subject) -> Row:
        """Starts the tool and waits for its end."""
        feeds = _folder(self.widths, self.images)
        if self.version:
            python = environment(*ONNXRUNTIME) / "python"
            command: list[str | Path] = [python, _SCRIPT, self.ranges, subject.path, feeds, str(self.images)]
        else:
            command = [sys.executable, "-m", "graphopt", "calibrate", subject.path, "-o", "statistics.npz", "--quiet", "--data", feeds]
        done = processes.run(command, limit_s=LIMIT_S, limit_mb=LIMIT_MB)
        failure = failure_of(done) if done.status else ""
        return asdict(self) | {"seconds": round(done.seconds, 1), "peak_mb": round(done.peak_mb), "failure": failure}


def compare(subject: Subject, before: Sequence[Row]) -> Iterator[Row]:
    """One row a case; those of other tools are not run again where a row of the same version is there."""
    for case in _cases():
        known = [row for row in before if case.version and row.items() >= asdict(case).items()]
        yield known[0] if known else case.run(subject)


def _cases() -> Iterator[Case]:
    for widths, images in (("differing", _IMAGES), ("equal", _IMAGES), ("differing", _MANY_IMAGES)):
        yield Case("graphopt calibrate", "all", widths, images)
    for ranges in ("percentile", "entropy"):
        for widths, images in (("differing", _IMAGES), ("equal", _IMAGES), ("equal", _FITTING)):
            yield Case("onnxruntime", ranges, widths, images, " ".join(ONNXRUNTIME[1]))


def _folder(widths: str, images: int) -> Path:
    """Feeds of one text line each; more images than there are come again."""
    folder = FOLDER / "feeds" / f"{MODEL}-{widths}-{images}"
    if not (folder / "complete").exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        lines = list(zoo().calib_feeds(MODEL, batch=1))
        shown = lines if widths == "differing" else [_padded(line, max(line["x"].shape[3] for line in lines)) for line in lines]
        write_feeds((shown[number % len(shown)] for number in range(images)), folder)
        (folder / "complete").touch()
    return folder


def _padded(line: Feed, width: int) -> Feed:
    x = line["x"]
    return {"x": np.pad(x, [(0, 0), (0, 0), (0, 0), (0, width - x.shape[3])])}

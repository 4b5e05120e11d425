"""Calibration from the command line: samples through a model once, statistics into a file."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from graphopt import files
from graphopt.errors import RecipeError
from graphopt.graph.edits import name_nodes
from graphopt.graph.signature import signature_of
from graphopt.runtime.session import SessionOptions
from graphopt.runtime.statistics import Request, Statistics, collect
from graphopt.runtime.stopwatch import peak_mb
from graphopt.samples import Samples

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}
_MOST_SKIPPED = 5


@dataclass(frozen=True)
class Calibration:
    """What was collected, and at what cost.

    Attributes:
        model: the model's file.
        output: where the statistics are.
        statistics: what was collected.
        seconds: of collecting and writing.
        peak_mb: the largest resident set of this process so far, in MB; None where the system does not tell.
        source: where the samples come from, in words.
    """

    model: Path
    output: Path
    statistics: Statistics
    seconds: float
    peak_mb: float | None
    source: str

    def to_json(self) -> dict[str, Any]:
        """Plain data; ``version`` counts changes of this form."""
        found = self.statistics
        return {
            "version": 1,
            "model": str(self.model),
            "output": str(self.output),
            "samples": found.samples,
            "values": len(found.values),
            "layers": len(found.layers),
            "skipped": found.skipped,
            "bytes": self.output.stat().st_size,
            "seconds": round(self.seconds, 3),
            "peak_mb": self.peak_mb,
        }

    def __rich__(self) -> Table:
        found = self.statistics
        table = Table(box=None, show_header=False, pad_edge=False)
        table.add_column(style="bold", no_wrap=True)
        table.add_column(overflow="fold")
        rows = {
            "samples": self.source,
            "values": f"{len(found.values)} with extremes, means and histograms",
            "layers": f"{len(found.layers)} with means and Gram matrices",
            "skipped": _summary(found.skipped),
            "seconds": f"{self.seconds:.1f}",
            "peak memory": f"{self.peak_mb:,.0f} MB" if self.peak_mb else "",
            "wrote": f"{self.output} ({self.output.stat().st_size:,} bytes)",
        }
        for label, text in rows.items():
            if text:
                table.add_row(label, Text(text))
        return table


def calibrate(
    model: Path, data: str, output: Path, *, limit: int | None = None, memory: int | None = None, options: SessionOptions | None = None
) -> Calibration:
    """Collects the statistics of all quantizable values and all layers, and writes them.

    Args:
        model: a file, or a folder that holds one.
        data: samples; see ``Samples.open``.
        output: the npz file to write.
        limit: at most so many samples.
        memory: bytes for what is gathered and for activations on their way; None for the default.
        options: how to run.

    Raises:
        ModelFileError: the model cannot be read.
        SamplesError: the samples do not fit the model.
        SessionError: the model does not load or does not run.
        StatisticsError: the file cannot be written.
    """
    start = time.perf_counter()
    path = files.model_file(model)
    loaded = files.load(path)
    name_nodes(loaded)
    samples = Samples.open(data, signature_of(loaded), limit)
    statistics = collect(loaded, samples, Request.whole(loaded), options, memory)
    statistics.save(output)
    return Calibration(path, output, statistics, time.perf_counter() - start, peak_mb(), samples.description)


def bytes_of(text: str) -> int:
    """Reads a size such as ``256MB``, ``1.5GiB`` or ``100000``.

    Raises:
        RecipeError: it is no size, or not even one byte.
    """
    match = re.fullmatch(r"([\d.]+)\s*([kmg]i?)?b?", text.strip(), re.IGNORECASE)
    try:
        size = int(float(match[1]) * _UNITS[(match[2] or "").lower()]) if match else 0
    except ValueError:
        size = 0
    if size < 1:
        raise RecipeError(f"{text!r} is no size in bytes: write it like 256MB or 1GiB")
    return size


def _summary(skipped: dict[str, str]) -> str:
    shown = [f"{name} ({reason})" for name, reason in list(skipped.items())[:_MOST_SKIPPED]]
    rest = [f"{len(skipped) - _MOST_SKIPPED} more"] if len(skipped) > _MOST_SKIPPED else []
    return ", ".join(shown + rest)

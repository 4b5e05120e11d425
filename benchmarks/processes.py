"""Whole processes, measured from outside: seconds, peak memory, and what they said."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Timer

GRAPHOPT = (sys.executable, "-m", "graphopt", "optimize")


@dataclass(frozen=True)
class Finished:
    """A process that has ended.

    Attributes:
        status: its exit status; negative where a signal ended it.
        seconds: from its start to its end.
        cpu_seconds: of all its threads, in its own code and in the system's.
        peak_mb: its largest resident set in MB (10^6 bytes); pages of mapped files count while they are resident.
        output: what it wrote to standard output.
        errors: what it wrote to standard error.
    """

    status: int
    seconds: float
    cpu_seconds: float
    peak_mb: float
    output: str
    errors: str

    @property
    def reason(self) -> str:
        """The last line that it said, for a table of failures."""
        lines = [line.strip() for line in (self.output + "\n" + self.errors).splitlines() if line.strip()]
        return lines[-1][:200] if lines else f"exit status {self.status}"


def run(command: Sequence[str | Path], *, limit_s: float = 900, limit_mb: int | None = None) -> Finished:
    """Runs a command in an empty working folder.

    Args:
        command: program and arguments.
        limit_s: seconds after which it is killed.
        limit_mb: memory of its own, in 10^6 bytes, beyond which it is given no more; on Linux only.
    """
    bounded = [] if limit_mb is None or shutil.which("prlimit") is None else ["prlimit", f"--data={limit_mb * 10**6}"]
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        start = time.perf_counter()
        process = subprocess.Popen([*bounded, *(str(word) for word in command)], stdout=output, stderr=errors, cwd=folder)
        timer = Timer(limit_s, process.kill)
        timer.start()
        _, status, usage = os.wait4(process.pid, 0)  # the one call that tells this child's peak and no other's
        seconds = time.perf_counter() - start
        timer.cancel()
        process.returncode = os.waitstatus_to_exitcode(status)
        texts = []
        for stream in (output, errors):
            stream.seek(0)
            texts.append(stream.read().decode(errors="replace"))
    unit = 1 if sys.platform == "darwin" else 1024
    return Finished(process.returncode, seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * unit / 1e6, *texts)

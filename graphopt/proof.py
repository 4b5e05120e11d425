"""The proof of the written file against the original: not larger, kernels as planned, not slower."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from graphopt.files import total_bytes
from graphopt.ledger import Rewrite
from graphopt.runtime.kernels import Kernels, executed_kernels
from graphopt.runtime.session import SessionOptions
from graphopt.runtime.timing import Speed, compare_speed

Feed = Mapping[str, "np.ndarray[Any, Any]"]
Property = Literal["size", "kernels", "speed"]


@dataclass(frozen=True)
class Fault:
    """A property of the written file that does not hold.

    Attributes:
        broken: which one.
        reason: in words, with the figures.
    """

    broken: Property
    reason: str


@dataclass
class Prover:
    """Measures written files against the original.

    Attributes:
        original: the file as it came: the measure for size.
        baseline: what the runtime is given of it, the same file unless it had to be lowered: the measure for kernels and speed.
        feeds: inputs for timing; empty where the model cannot run.
        options: how sessions are made.
        time_limit: seconds that one timed process may take.
        properties: what is proved, in order.
        speed: of the file that was proved last; None where it was not timed.
        kernels_before: of the baseline; None where they were not read.
        kernels_after: of the file that was proved last; None where they were not read.
        timed: whether anything was timed.
        seconds: time spent.
    """

    original: Path
    baseline: Path
    feeds: Sequence[Feed]
    options: SessionOptions
    time_limit: float
    properties: tuple[Property, ...]
    speed: Speed | None = None
    kernels_before: Kernels | None = None
    kernels_after: Kernels | None = None
    timed: bool = False
    seconds: float = 0.0

    def first_fault(self, written: Path, rewrites: Sequence[Rewrite]) -> Fault | None:
        """The first property that does not hold, or None; without a rewrite there is nothing to prove."""
        self.forget()
        if not rewrites:
            return None
        for broken in self.properties:
            reason = self.fault(broken, written, rewrites)
            if reason:
                return Fault(broken, reason)
        return None

    def forget(self) -> None:
        """Forgets what was measured of the file proved last: it says nothing of another one."""
        self.speed = self.kernels_after = None

    def fault(self, broken: Property, written: Path, rewrites: Sequence[Rewrite]) -> str:
        """Why one property does not hold, or an empty string where it does."""
        start = time.perf_counter()
        checks: dict[Property, Callable[[Path, Sequence[Rewrite]], str]] = {
            "size": self._size,
            "kernels": self._kernels,
            "speed": self._speed,
        }
        reason = checks[broken](written, rewrites)
        self.seconds += time.perf_counter() - start
        return reason

    def _size(self, written: Path, rewrites: Sequence[Rewrite]) -> str:
        before, after = total_bytes(self.original), total_bytes(written)
        return f"{after:,} bytes instead of {before:,}" if after > before else ""

    def _kernels(self, written: Path, rewrites: Sequence[Rewrite]) -> str:
        if self.kernels_before is None:
            self.kernels_before = executed_kernels(self.baseline, self.options)
        found = executed_kernels(written, self.options)
        self.kernels_after = found
        planned = Counter(kernel for rewrite in rewrites for kernel in rewrite.kernels)
        running = Counter(f"{node.domain}::{node.op_type}" for node in found.nodes)
        for kernel, count in planned.items():
            if running[kernel] < count:
                return f"{running[kernel]} of {count} planned {kernel} kernels run; the rest fell back to other forms"
        # A form that was chosen for its kernel may take one more of them than what it replaces, and is judged by its speed; so is an
        # approximation, at whose borders values change their type.
        is_exact = all(rewrite.predicted_error is None for rewrite in rewrites)
        if is_exact and found.total > self.kernels_before.total + planned.total():
            return f"{found.total} kernels run instead of {self.kernels_before.total}"
        return ""

    def _speed(self, written: Path, rewrites: Sequence[Rewrite]) -> str:
        """Slower means: slower in each of two measurements in fresh processes; the second is spared where the first is not."""
        first = self._timed(written)
        if not first.slower:
            return ""
        second = self._timed(written)
        if not second.slower:
            return ""
        return f"{1 / second.speedup.ratio:.2f} times the original's time (and {1 / first.speedup.ratio:.2f} in a first measurement)"

    def _timed(self, written: Path) -> Speed:
        speed = compare_speed(self.baseline, written, self.feeds, self.options, time_limit_s=self.time_limit)
        self.speed, self.timed = speed, True
        return speed

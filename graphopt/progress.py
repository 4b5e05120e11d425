"""Progress of long work: live on a terminal, plain lines in a pipe, nothing when quiet."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Protocol

from rich.console import Console


class Progress(Protocol):
    """Told what is being done; shows it in its own way."""

    def step(self, text: str) -> contextlib.AbstractContextManager[None]:
        """Shows that a piece of work is going on while the context is open."""


class Quiet:
    """Shows nothing."""

    @contextlib.contextmanager
    def step(self, text: str) -> Iterator[None]:
        """Does nothing but the work."""
        yield


class Lines:
    """Prints a line with the seconds it took after each piece of work; for pipes and logs."""

    def __init__(self, console: Console) -> None:
        self._console = console

    @contextlib.contextmanager
    def step(self, text: str) -> Iterator[None]:
        """Prints ``text`` and its duration when the work is done."""
        start = time.perf_counter()
        yield
        self._console.print(f"{text} ({time.perf_counter() - start:.1f} s)", markup=False, highlight=False, soft_wrap=True)


class Live(Lines):
    """Shows a spinner on a terminal while the work goes on, then the line."""

    @contextlib.contextmanager
    def step(self, text: str) -> Iterator[None]:
        """Spins beside ``text`` until the work is done."""
        start = time.perf_counter()
        with self._console.status(text.replace("[", r"\[")):
            yield
        self._console.print(f"[dim]{time.perf_counter() - start:6.1f} s[/dim]  ", end="")
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)


def progress_on(console: Console) -> Progress:
    """The kind of progress that suits a console."""
    return Live(console) if console.is_terminal else Lines(console)

"""The command line: each command reads its arguments, calls the library, and prints; nothing is decided here."""

from __future__ import annotations

from graphopt.cli import optimize, models, store, catalogue  # isort: skip  # noqa: F401, RUF100  # help lists commands in this order
from graphopt.cli.app import app, main

__all__ = ["app", "main"]

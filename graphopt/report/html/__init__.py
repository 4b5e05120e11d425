"""The report of a run as one HTML file that needs no network."""

from __future__ import annotations

from graphopt.report.html.page import write_report

__all__ = ["write_report"]

"""The report of a run, and the difference of two models, as one HTML file that needs no network."""

from __future__ import annotations

from graphopt.report.html.page import write_difference, write_report

__all__ = ["write_difference", "write_report"]

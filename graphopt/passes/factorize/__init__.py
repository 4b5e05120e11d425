"""Low-rank factorization: layers become two smaller ones."""

from __future__ import annotations

from graphopt.passes.factorize.low_rank import Factorize

__all__ = ["Factorize"]

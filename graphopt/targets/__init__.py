"""Targets: what a result is made for, and what runs there."""

from __future__ import annotations

from graphopt.targets.base import Target
from graphopt.targets.portable import PORTABLE
from graphopt.targets.provider import CPU, CUDA

TARGETS: dict[str, Target] = {target.name: target for target in (CPU, PORTABLE, CUDA)}
"""By name, as recipes spell them."""

__all__ = ["TARGETS", "Target"]

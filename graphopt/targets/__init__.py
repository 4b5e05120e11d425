"""Targets: what a result is made for, and what runs there."""

from __future__ import annotations

from graphopt.targets.base import Target
from graphopt.targets.cpu import CPU
from graphopt.targets.cuda import CUDA
from graphopt.targets.portable import PORTABLE

TARGETS: dict[str, Target] = {target.name: target for target in (CPU, PORTABLE, CUDA)}
"""By name, as recipes spell them."""

__all__ = ["TARGETS", "Target"]

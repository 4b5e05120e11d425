"""ONNX Runtime's CPU execution provider."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from graphopt.runtime.registry import has_kernel
from graphopt.targets.base import Target


@dataclass(frozen=True)
class Cpu(Target):
    """Runs what the installed wheel registers a CPU kernel for."""

    name: ClassVar[str] = "cpu"
    summary: ClassVar[str] = "ONNX Runtime on CPU"
    provider: ClassVar[str | None] = "CPUExecutionProvider"

    def runs(self, operator: str, dtype: ir.DataType, opset: int) -> bool:
        """Asks the registry of the installed runtime."""
        return has_kernel("CPUExecutionProvider", operator, dtype, opset)


CPU = Cpu()

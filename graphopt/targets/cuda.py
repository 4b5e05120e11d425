"""ONNX Runtime's CUDA execution provider."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from graphopt.runtime.registry import has_kernel
from graphopt.targets.base import Target


@dataclass(frozen=True)
class Cuda(Target):
    """Runs what the installed wheel registers a CUDA kernel for; nothing is certain from a wheel without that provider."""

    name: ClassVar[str] = "cuda"
    summary: ClassVar[str] = "ONNX Runtime on NVIDIA GPUs"
    provider: ClassVar[str | None] = "CUDAExecutionProvider"

    def runs(self, operator: str, dtype: ir.DataType, opset: int) -> bool:
        """Asks the registry of the installed runtime."""
        return has_kernel("CUDAExecutionProvider", operator, dtype, opset)


CUDA = Cuda()

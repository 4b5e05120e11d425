"""Execution providers of ONNX Runtime as targets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from graphopt.runtime.kernels import fuses_float_biases
from graphopt.runtime.registry import has_kernel, packed_bits
from graphopt.targets.base import Target


@dataclass(frozen=True)
class ProviderTarget(Target):
    """Runs what the installed wheel registers a kernel for; from a wheel without the provider nothing is certain."""

    provider: ClassVar[str]

    def runs(self, operator: str, dtype: ir.DataType, opset: int) -> bool:
        """Asks the registry of the installed runtime."""
        return has_kernel(self.provider, operator, dtype, opset)


@dataclass(frozen=True)
class Cpu(ProviderTarget):
    """ONNX Runtime's CPU execution provider."""

    name: ClassVar[str] = "cpu"
    summary: ClassVar[str] = "ONNX Runtime on CPU"
    provider: ClassVar[str] = "CPUExecutionProvider"

    def packs(self, bits: int) -> bool:
        """Asks the installed runtime."""
        return bits in packed_bits()

    def fuses_float_biases(self) -> bool:
        """Asks the installed runtime."""
        return fuses_float_biases()


@dataclass(frozen=True)
class Cuda(ProviderTarget):
    """ONNX Runtime's CUDA execution provider."""

    name: ClassVar[str] = "cuda"
    summary: ClassVar[str] = "ONNX Runtime on NVIDIA GPUs"
    provider: ClassVar[str] = "CUDAExecutionProvider"


CPU = Cpu()
CUDA = Cuda()

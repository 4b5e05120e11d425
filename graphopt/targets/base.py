"""What a target is."""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir


@dataclass(frozen=True)
class Target(abc.ABC):
    """A runtime with an execution provider, and what it can run.

    Attributes:
        name: as recipes spell it.
        summary: one line for help texts.
        provider: the execution provider of ONNX Runtime that it needs; None where any runtime will do.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    provider: ClassVar[str | None]

    @abc.abstractmethod
    def runs(self, operator: str, dtype: ir.DataType, opset: int) -> bool:
        """Whether a node of an operator runs there in one kernel made for it.

        Args:
            operator: ``Conv`` or ``com.microsoft::Gelu``.
            dtype: element type of its main input.
            opset: version of the standard domain that the model imports.
        """

    def packs(self, bits: int) -> bool:
        """Whether MatMulNBits, where it runs at all, takes weights of a width."""
        return bits in (2, 4, 8)

    def fuses_float_biases(self) -> bool:
        """Whether a quantized layer runs in integers though its bias is float; else that has to be codes in units of the sums."""
        return False

"""Any runtime of standard ONNX operators."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx
import onnx_ir as ir

from graphopt.targets.base import Target


@dataclass(frozen=True)
class Portable(Target):
    """Runs standard operators at the model's own opset."""

    name: ClassVar[str] = "portable"
    summary: ClassVar[str] = "standard ONNX operators at the model's own opset, for any runtime"
    provider: ClassVar[str | None] = None

    def runs(self, operator: str, dtype: ir.DataType, opset: int) -> bool:
        """Whether the standard defines the operator at that opset, whatever the element type."""
        return "::" not in operator and onnx.defs.has(operator) and onnx.defs.get_schema(operator).since_version <= opset


PORTABLE = Portable()

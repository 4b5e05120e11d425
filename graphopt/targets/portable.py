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
        """Whether the standard defines the operator at that opset, with an input of that element type."""
        if "::" in operator:
            return False
        try:
            schema = onnx.defs.get_schema(operator, opset, "")
        except onnx.defs.SchemaError:  # no version of it is as old as that
            return False
        return not schema.deprecated and any(f"tensor({dtype.name.lower()})" in parameter.types for parameter in schema.inputs)


PORTABLE = Portable()

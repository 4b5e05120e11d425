"""The signature of a model: what it must be fed and what it returns."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

Dimension = int | str | None
"""A length, the name of a symbolic length, or None where nothing is known."""


@dataclass(frozen=True)
class Port:
    """One input or output of a model.

    Attributes:
        name: the value's name.
        dtype: the element type, or None for a sequence, an optional or a map.
        shape: one entry per axis, or None where even the rank is unknown.
    """

    name: str
    dtype: ir.DataType | None
    shape: tuple[Dimension, ...] | None

    def __str__(self) -> str:
        dims = "?" if self.shape is None else ", ".join("?" if d is None else str(d) for d in self.shape)
        return f"{self.name}: {self.dtype.name.lower() if self.dtype else '?'}[{dims}]"


@dataclass(frozen=True)
class Signature:
    """Inputs without a default value, and outputs, in the model's order."""

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]

    @property
    def symbols(self) -> tuple[str, ...]:
        """Names of the symbolic input dimensions, in order of appearance."""
        found = {d: None for port in self.inputs for d in port.shape or () if isinstance(d, str)}
        return tuple(found)


def signature_of(model: ir.Model) -> Signature:
    """Reads a model's signature; inputs that have an initializer are optional and left out."""
    defaults = model.graph.initializers
    inputs = tuple(_port(value) for value in model.graph.inputs if value.name not in defaults)
    return Signature(inputs, tuple(_port(value) for value in model.graph.outputs))


def _port(value: ir.Value) -> Port:
    dtype = value.dtype if isinstance(value.type, ir.TensorType) else None
    shape = None if value.shape is None else tuple(_dimension(d) for d in value.shape)
    return Port(value.name or "", dtype, shape)


def _dimension(dim: int | ir.SymbolicDim) -> Dimension:
    return dim if isinstance(dim, int) else dim.value

"""Kinds of elements: what a run of bytes in a model holds, and so how it is coded best."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Kind:
    """The type of the elements in a run of bytes.

    Attributes:
        name: the type's name; empty for bytes that are no tensor's data.
        bits: of one element.
        is_float: whether an element has a sign, an exponent and a mantissa, from the highest bit down.
    """

    name: str
    bits: int
    is_float: bool = False

    @property
    def width(self) -> int:
        """Bytes of one element, or 1 where several share a byte."""
        return max(self.bits // 8, 1)


OTHER = 0
"""The number of the kind of everything that is no tensor's data."""

KINDS = {
    OTHER: Kind("", 8),
    1: Kind("float32", 32, is_float=True),
    2: Kind("uint8", 8),
    3: Kind("int8", 8),
    4: Kind("uint16", 16),
    5: Kind("int16", 16),
    6: Kind("int32", 32),
    7: Kind("int64", 64),
    9: Kind("bool", 8),
    10: Kind("float16", 16, is_float=True),
    11: Kind("float64", 64, is_float=True),
    12: Kind("uint32", 32),
    13: Kind("uint64", 64),
    16: Kind("bfloat16", 16, is_float=True),
    17: Kind("float8e4m3fn", 8),
    18: Kind("float8e4m3fnuz", 8),
    19: Kind("float8e5m2", 8),
    20: Kind("float8e5m2fnuz", 8),
    21: Kind("uint4", 4),
    22: Kind("int4", 4),
    23: Kind("float4e2m1", 4),
    24: Kind("float8e8m0", 8),
    25: Kind("uint2", 2),
    26: Kind("int2", 2),
}
"""Kinds by the number that ONNX gives the type; part of the format."""

COMPONENTS = {14: 1, 15: 11}
"""Complex types, and the type of their two parts."""

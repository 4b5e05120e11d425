"""The compact store: a model's files in one entropy-coded container, and back, byte for byte.

A model's bytes are cut into blocks. Within a block, each large tensor is a stream of its own; small tensors of one type
share a stream, and so does everything else. `symbols` turns a stream of elements into streams of bytes in which each byte is
a symbol; `coders` codes those. docs/container.md describes the format.
"""

from __future__ import annotations

from graphopt.container.packing import Packed, Tally, pack
from graphopt.container.reading import Container, open_container
from graphopt.container.unpacking import unpack

__all__ = ["Container", "Packed", "Tally", "open_container", "pack", "unpack"]

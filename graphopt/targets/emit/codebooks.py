"""Weights as codes of a few centroids, which the runtime makes float again when it loads the model."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphopt.graph.edits import Builder, Names
from graphopt.solve.codebook import MOST
from graphopt.targets.emit.packing import Array, named


class Shared:
    """Constants that the codes of several weights of a model need, each once.

    Args:
        model: holds them.
        names: of the model.
    """

    def __init__(self, model: ir.Model, names: Names) -> None:
        self._op = Builder(model.graph[0], names)
        self._made: dict[str, ir.Value] = {}

    def digits(self, base: int, count: int) -> ir.Value:
        """``int32 [base ** count, count]``: the digits of each number, those of least value first."""
        digits = np.arange(base**count, dtype=np.int32)[:, None] // base ** np.arange(count, dtype=np.int32) % base
        return self._once(f"digits/{base}x{count}", digits.astype(np.int32))

    def shape(self, shape: tuple[int, ...]) -> ir.Value:
        """A shape to bring something into."""
        return self._once(f"shape/{'x'.join(map(str, shape))}", np.array(shape, np.int64))

    def _once(self, name: str, array: Array) -> ir.Value:
        if name not in self._made:
            self._made[name] = self._op.constant(array, name)
        return self._made[name]


def codes_per_byte(base: int, size: int) -> int:
    """How many codes of so many centroids share a byte, where they have to fill all their bytes."""
    return max(count for count in range(1, 9) if count == 1 or (base**count <= MOST and size % count == 0))


def stored_codebook(
    op: Builder, codes: Array, centroids: Array, scale: Array | None, shared: Shared, count: int, wish: str = ""
) -> ir.Value:
    """Makes the float constant ``centroids[codes] * scale``, which the runtime folds when it loads the model.

    Bytes are digits to the base of the number of centroids, so that 2, 4, 6 and 16 of them fill a byte well; a Gather by byte takes all
    of its centroids at once. Of operators of any opset and element types that every runtime has.

    Args:
        op: makes nodes and constants.
        codes: uint8, as the operator stores its weight.
        centroids: ``[centroids]`` float32.
        scale: float32 that broadcasts to the shape of the codes; None for none.
        shared: of the model.
        count: of codes in a byte, as :func:`codes_per_byte` has it or fewer.
        wish: the name that the constants should resemble.

    Returns:
        float32 of the shape of the codes.
    """
    base = max(int(centroids.size), 2)
    book = op.constant(np.resize(centroids, max(centroids.size, 2)).astype(np.float32), named(wish, "centroids"))
    if count == 1:
        weight = op.op("Gather", book, op.op("Cast", op.constant(codes, named(wish, "codes")), to=ir.DataType.INT32.value))
    else:
        packed = codes.reshape(-1, count).astype(np.int32) @ base ** np.arange(count, dtype=np.int32)
        together = op.op("Gather", book, shared.digits(base, count))
        places = op.op("Cast", op.constant(packed.astype(np.uint8), named(wish, "codes")), to=ir.DataType.INT32.value)
        weight = op.op("Reshape", op.op("Gather", together, places), shared.shape(codes.shape))
    return weight if scale is None else op.op("Mul", weight, op.constant(scale, named(wish, "scales")))

"""Plans: constants that are to be clustered, and how."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt import ledger
from graphopt.graph.edits import Builder, Names, given_name
from graphopt.graph.layers import Layer, layer_of
from graphopt.graph.view import View
from graphopt.passes.quantize.constants import Constant, constants_of, narrowed
from graphopt.passes.quantize.replacing import take_place_of_constant
from graphopt.solve.codebook import Book, Clustered
from graphopt.targets.emit import Shared, codes_per_byte, stored_codebook

Array = np.ndarray[Any, Any]

_NODES_BYTES = 500
"""About what the nodes and the names of a stored weight take in a file."""


@dataclass(frozen=True, eq=False)
class Plan:
    """A constant that is to be clustered.

    Attributes:
        constant: the weight.
        key: of the rewrite.
        book: what it becomes.
    """

    constant: Constant
    key: ledger.Key
    book: Book

    @property
    def layer(self) -> Layer | None:
        """The layer whose weight the constant is; None where its first use is something else."""
        layer = layer_of(self.constant.user)
        return layer if layer is not None and layer.value is self.constant.value else None

    @property
    def own_layer(self) -> Layer | None:
        """The layer that alone uses the constant."""
        return self.layer if len(self.constant.value.uses()) == 1 else None

    def matrix(self, view: View) -> Array:
        """The constant as ``[groups, out, in]``: as its layer has it, else by rows along its last axis."""
        array = view.constant(self.constant.value)
        assert array is not None, "it is a constant"
        return array.reshape(1, -1, array.shape[-1]) if self.layer is None else self.layer.as_matrix(array)

    def restored(self, matrix: Array) -> Array:
        """The reverse of :meth:`matrix`."""
        return np.ascontiguousarray(matrix.reshape(self.constant.shape) if self.layer is None else self.layer.restore(matrix))

    def obstacle(self, view: View, limit: float) -> str:
        """Why the constant cannot be clustered, or an empty string.

        Args:
            view: of its model.
            limit: bytes of a constant that the runtime folds.
        """
        constant = self.constant
        if constant.size * 4 > limit:
            return "the session's configuration keeps the runtime from folding it"
        if len(constant.shape) < 2 or constant.size == constant.shape[-1]:
            return "a vector would get one scale"
        if self._bytes >= constant.size * 4:
            return "its centroids and scales take more than its codes save"
        array = view.constant(constant.value)
        return "" if array is not None and np.isfinite(array).all() else "it holds NaN or infinity"

    @property
    def _bytes(self) -> int:
        """About what it takes in a file."""
        size, layer = self.constant.size, self.layer
        rows = size // self.constant.shape[-1] if layer is None else layer.groups * layer.shape[1]
        scales = rows if self.book.per == "channel" else 0
        return size // self._codes_per_byte(self.book.centroids) + 4 * (self.book.centroids + scales) + _NODES_BYTES

    def _codes_per_byte(self, centroids: int) -> int:
        """What takes the fewest bytes in the file; one where it is to be packed: symbols of their own are coded in fewer bits."""
        return codes_per_byte(max(centroids, 2), self.constant.size) if self.book.bits is None else 1

    def put(self, found: Clustered, shared: Shared, names: Names) -> list[str]:
        """Puts codes in the place of the constant; returns the names of the new nodes."""
        builder = Builder(self.constant.anchor, names)
        scale = None
        if self.book.per == "channel":
            scale = narrowed(self.restored(np.broadcast_to(found.scale, found.codes.shape)))
        codes, count = self.restored(found.codes), self._codes_per_byte(found.centroids.size)
        new = stored_codebook(builder, codes, found.centroids, scale, shared, count, self.constant.name)
        take_place_of_constant(self.constant.value, new)
        for node in builder.added:
            node.name = given_name(node)  # five nodes a weight: names that a file spells take their bytes
        return [node.name or "" for node in builder.added]


def with_weights(model: ir.Model, plans: Sequence[Plan], weights: Sequence[Array]) -> ir.Model:
    """A clone in which the constants of some plans are float weights ``[groups, out, in]``."""
    clone = model.clone()
    names, constants = Names(clone), {one.name: one for one in constants_of(clone, ir.DataType.FLOAT)}
    for plan, weight in zip(plans, weights, strict=True):
        constant = constants[plan.constant.name]
        take_place_of_constant(constant.value, Builder(constant.anchor, names).constant(plan.restored(weight), constant.name))
    return clone

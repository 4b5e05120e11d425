"""A cut: which indices of each axis stay, and constants of a node's own in the place of others."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from graphopt.errors import PassError
from graphopt.graph.edits import Names, remove_dead
from graphopt.graph.scratch import tensor_of
from graphopt.graph.units.blocks import Couplings
from graphopt.graph.units.ties import Array, Axis
from graphopt.graph.view import View


class Cut:
    """Components on their way out of a model.

    Args:
        model: rewritten in place.
        couplings: of the model as it is.
        gone: labels of the components that go.

    Attributes:
        view: of the model.
        parts: what stays of the constants that were shortened, by node and index of the input: the indices along each axis.
    """

    def __init__(self, model: ir.Model, couplings: Couplings, gone: Array) -> None:
        self.view = View(model)
        self._model, self._couplings = model, couplings
        labels = couplings.components.labels
        self._stays = np.ones(int(labels.max(initial=-1)) + 1, bool)
        self._stays[gone] = False
        self._names = Names(model)
        self.parts: dict[tuple[str, int], tuple[Array | None, ...]] = {}
        self._made: dict[tuple[ir.Value, tuple[int, ...], bytes], ir.Value] = {}
        self._replaced: list[ir.Value] = []

    def axes(self, value: ir.Value | None) -> Sequence[Axis]:
        """The axes of a value; none where nothing is known of it."""
        return (self._couplings.analysis.axes.get(value) if value is not None else None) or ()

    def stays(self, axis: Array) -> Array:
        """Which indices of an axis stay: ``bool [length]``."""
        stays: Array = self._stays[self._couplings.components.labels[axis]]
        return stays

    def kept(self, axis: Axis) -> Array | None:
        """The indices of an axis that stay, or None where all do."""
        if axis is None:
            return None
        stays = self.stays(axis)
        return None if stays.all() else np.flatnonzero(stays)

    def length(self, axis: Array) -> int:
        """How many indices stay."""
        return int(self.stays(axis).sum())

    def shorten(self, node: ir.Node, index: int) -> None:
        """Gives a node the part of a constant that stays, where that is less than all.

        Raises:
            PassError: nothing stays.
        """
        kept = [self.kept(axis) for axis in self._couplings.analysis.uses.get((node, index), ())]
        if all(part is None for part in kept):
            return
        array = self.view.constant(node.inputs[index])
        assert array is not None, "a use is of a constant"
        for axis, part in enumerate(kept):
            if part is not None:
                if not part.size:
                    raise PassError(f"node {node.name}: no channel would be left; keep one at least")
                array = np.take(array, part, axis=axis)
        self.put(node, index, array)
        self.parts[node.name or "", index] = tuple(kept)

    def put(self, node: ir.Node, index: int, array: Array) -> None:
        """Gives a node a constant in the place of an input, which may be one after the last; equal ones are made once."""
        old = node.inputs[index] if index < len(node.inputs) else None
        if old is None:
            node.resize_inputs(max(index + 1, len(node.inputs)))
            node.replace_input_with(index, self._constant(array, f"{node.name}/lengths"))
            return
        array = np.ascontiguousarray(array)
        key = (old, array.shape, hashlib.sha256(array.tobytes()).digest())
        if key not in self._made:
            self._made[key] = self._constant(array, old.name or f"{node.name}/constant")
        node.replace_input_with(index, self._made[key])
        self._replaced.append(old)

    def copy_of(self, node: ir.Node, before: ir.Node) -> ir.Node:
        """Another node like this one, in front of a third."""
        name = self._names.fresh(node.name or "lengths")
        copy = ir.node(node.op_type, node.inputs, dict(node.attributes), name=name)
        copy.outputs[0].name = self._names.fresh(f"{name}/output")
        self._model.graph.insert_before(before, copy)
        return copy

    def finish(self) -> None:
        """Forgets the shapes of shorter values, and removes constants that nobody reads any more."""
        for value, axes in self._couplings.analysis.axes.items():
            if any(self.kept(axis) is not None for axis in axes or ()):
                value.shape = None
        remove_dead(self._replaced)

    def _constant(self, array: Array, wish: str) -> ir.Value:
        name = self._names.fresh(wish)
        value = ir.val(name, const_value=tensor_of(array, name))
        self._model.graph.register_initializer(value)
        return value

"""Grids: which values of a plan are stored in the same codes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from graphopt.graph.view import View, operator_of
from graphopt.passes.quantize.static.kernels import Kernel, Kind


@dataclass(frozen=True, eq=False)
class Shared:
    """Values on one grid.

    Attributes:
        values: all of them, constants included, each as ``factor * first + offset`` of what the first one's codes mean.
        ceiling: what a Relu or Clip at 0 cuts them off at, infinite for a Relu; None where they may be negative.
    """

    values: Mapping[ir.Value, tuple[float, float]]
    ceiling: float | None


class Union:
    """Sets of values that are joined step by step."""

    def __init__(self) -> None:
        self._parents: dict[ir.Value, ir.Value] = {}

    def root(self, value: ir.Value) -> ir.Value:
        """The value that stands for a set."""
        path = []
        while (parent := self._parents.setdefault(value, value)) is not value:
            path.append(value)
            value = parent
        for passed in path:
            self._parents[passed] = value
        return value

    def join(self, one: ir.Value, other: ir.Value) -> None:
        """Makes one set of two."""
        self._parents[self.root(other)] = self.root(one)


def grids_of(kernels: Mapping[ir.Node, Kernel], view: View) -> tuple[tuple[Shared, ...], frozenset[ir.Node]]:
    """Joins what moves shares, then what Concat nodes put together where that is nobody's loss.

    Returns:
        The grids, and the Concat nodes within one.
    """
    union = Union()
    for kernel in kernels.values():
        if kernel.kind is Kind.MOVEMENT:
            for output in kernel.outputs:
                union.join(kernel.inputs[0], output)
    joined = set()
    for node, kernel in kernels.items():
        if operator_of(node) == "Concat" and _is_joinable(kernel, union, _ceilings(kernels, union), view):
            for value in kernel.inputs:
                union.join(value, kernel.outputs[0])
            joined.add(node)
    ceilings = _ceilings(kernels, union)
    groups: dict[ir.Value, dict[ir.Value, tuple[float, float]]] = {}
    for kernel in kernels.values():
        for value in (*kernel.inputs, *kernel.outputs):
            groups.setdefault(union.root(value), {})[value] = (1.0, 0.0)
    shared = [Shared(group, ceilings.get(root)) for root, group in groups.items()]
    return tuple(_shifted(kernels, shared)), frozenset(joined)


def _shifted(kernels: Mapping[ir.Node, Kernel], grids: Iterable[Shared]) -> Iterable[Shared]:
    """Lets what a shift makes use the codes of what it reads."""
    grid_of = {value: grid for grid in grids for value in grid.values}
    for kernel in kernels.values():
        if kernel.kind is not Kind.SHIFT:
            continue
        before, after = grid_of[kernel.inputs[0]], grid_of[kernel.outputs[0]]
        factor, offset = before.values[kernel.inputs[0]]
        factor, offset = factor * kernel.factor, offset * kernel.factor + kernel.offset
        moved = {value: (factor * own[0], factor * own[1] + offset) for value, own in after.values.items()}
        merged = Shared({**before.values, **moved}, before.ceiling)
        grid_of |= dict.fromkeys(merged.values, merged)
    return {id(grid): grid for grid in grid_of.values()}.values()


def _ceilings(kernels: Mapping[ir.Node, Kernel], union: Union) -> dict[ir.Value, float]:
    """What sets of values are cut off at, the lowest counts; sets that are not cut off are left out."""
    ceilings: dict[ir.Value, float] = {}
    for kernel in kernels.values():
        if kernel.ceiling is not None:
            root = union.root(kernel.outputs[0])
            ceilings[root] = min(kernel.ceiling, ceilings.get(root, math.inf))
    return ceilings


def _is_joinable(kernel: Kernel, union: Union, ceilings: Mapping[ir.Value, float], view: View) -> bool:
    """Whether a Concat may move codes: nobody else needs its inputs on finer grids, and all are cut off alike."""
    if not all(view.is_private(value) and not view.is_constant(value) for value in kernel.inputs):
        return False
    return len({ceilings.get(union.root(value)) for value in kernel.inputs}) == 1

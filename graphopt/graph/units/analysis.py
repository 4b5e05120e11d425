"""The analysis: units on every axis of every value of the main graph, from its weights to its outputs."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count

import onnx_ir as ir
import sympy

from graphopt.graph.shapes import dims
from graphopt.graph.units.attention import ATTENTION
from graphopt.graph.units.elementwise import ELEMENTWISE
from graphopt.graph.units.layout import LAYOUT
from graphopt.graph.units.linear import LINEAR
from graphopt.graph.units.step import Axes, Rule, Step, UnknownError
from graphopt.graph.units.ties import Axis, Ties
from graphopt.graph.view import View, operator_of

RULES: dict[str, Rule] = {**ELEMENTWISE, **LINEAR, **LAYOUT, **ATTENTION}

_FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE})
_MADE_UP = 6400
"""Lengths that stand for symbols lie above it: divisible often enough for what halves them, and no two alike."""


class Analysis:
    """Walks a model once and ties the units of its axes.

    Attributes:
        ties: what goes together and what stays.
        axes: by value of the main graph.
        uses: axes of the constants that a node reads, by node and index of the input; small ones are each use's own, since a copy
            costs little, while all uses of a matrix share its units.
    """

    def __init__(self, model: ir.Model) -> None:
        self.ties = Ties()
        self.axes: dict[ir.Value, Axes | None] = {}
        self.uses: dict[tuple[ir.Node, int], Axes] = {}
        self._view = View(model)
        self._functions = set(model.functions)
        self._symbols: dict[sympy.Symbol, int] = {}
        self._sizes = (_MADE_UP + 64 * index for index in count(1))
        self._matrices: dict[ir.Value, Axes] = {}
        for value in model.graph.inputs:
            self.axes[value] = self._fixed(value)
        for node in model.graph:
            self._enter(node)
        for value in model.graph.outputs:
            for axis in self.axes.get(value) or ():
                self.ties.pin(axis, f"output {value.name}")

    def lengths(self, value: ir.Value | None) -> tuple[int, ...] | None:
        """The lengths of a value's axes, symbolic ones at made-up sizes."""
        shape = self._view.shape(value)
        return None if shape is None else tuple(self._number(dim) for dim in shape)

    def _number(self, dim: dims.Dim) -> int:
        if isinstance(dim, int):
            return dim
        for symbol in sorted(dim.free_symbols - self._symbols.keys(), key=str):
            self._symbols[symbol] = next(self._sizes)
        found = dim.subs({symbol: self._symbols[symbol] for symbol in dim.free_symbols})
        return int(found)

    def _enter(self, node: ir.Node) -> None:
        inputs = [None if value is None else self._operand(node, index, value) for index, value in enumerate(node.inputs)]
        step = Step(node, self._view, self.ties, inputs, self.lengths)
        for captured in _captured(node):
            for axis in self.axes.get(captured) or ():
                self.ties.pin(axis, f"{step.why} reads it in a subgraph")
        made = self._made(step)
        for value, axes in zip(node.outputs, made, strict=False):
            self.axes[value] = self._checked(step, value, axes)

    def _made(self, step: Step) -> Sequence[Axes | None]:
        rule = None if step.node.op_identifier() in self._functions else RULES.get(operator_of(step.node))
        if rule is not None:
            try:
                return rule(step)
            except UnknownError:
                pass
        for axes in step.inputs:
            step.pin(*(axes or ()))
        return [self._fixed(value) for value in step.node.outputs]

    def _checked(self, step: Step, value: ir.Value, axes: Axes | None) -> Axes | None:
        """The axes that a rule found, where they fit the value's shape; else all that it gave stays."""
        lengths = self.lengths(value)
        if axes is None or lengths is None or len(lengths) != len(axes):
            step.pin(*(axes or ()))
            return self._fixed(value)
        checked: list[Axis] = []
        for axis, length in zip(axes, lengths, strict=True):
            fits = axis is None or axis.size == length
            step.pin(None if fits else axis)
            checked.append(axis if fits else None)
        return checked

    def _operand(self, node: ir.Node, index: int, value: ir.Value) -> Axes | None:
        if not self._view.is_constant(value):
            return self.axes.get(value)
        lengths = self.lengths(value) or ()
        if self._view.dtype(value) not in _FLOATS:
            return [None] * len(lengths)
        if sum(length > 1 for length in lengths) < 2:
            axes = self.uses[node, index] = self._fresh(lengths)
            return axes
        if value not in self._matrices:
            self._matrices[value] = self._fresh(lengths)
        axes = self.uses[node, index] = self._matrices[value]
        return axes

    def _fresh(self, lengths: Sequence[int]) -> Axes:
        return [self.ties.fresh(length) if length > 1 else None for length in lengths]

    def _fixed(self, value: ir.Value) -> Axes | None:
        lengths = self.lengths(value)
        return None if lengths is None else [None] * len(lengths)


def _captured(node: ir.Node) -> list[ir.Value]:
    """The values that a node's subgraphs may read from outside."""
    found: list[ir.Value] = []
    for attribute in node.attributes.values():
        if isinstance(attribute, ir.Attr) and attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS):
            graphs = [attribute.as_graph()] if attribute.type == ir.AttributeType.GRAPH else attribute.as_graphs()
            for graph in graphs:
                for inner in graph.all_nodes():
                    found.extend(value for value in inner.inputs if value is not None)
                found.extend(graph.outputs)
    return found

"""Rows that are taken out of a result are all that has to be computed of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import onnx_ir as ir

from graphopt.graph.edits import Builder
from graphopt.graph.forms import SliceParts, numbers_constant, slice_by, slice_parts
from graphopt.graph.shapes.dims import Dim
from graphopt.graph.terms import least_elements
from graphopt.graph.view import View, attribute
from graphopt.passes.rules import Change, Miss, rule
from graphopt.passes.simplify.along import PRODUCTS, VIEWS, Axes, axes_above

_LEAST_SAVED = 1 << 14
"""Elements that must not be computed any more for each operator that is added: what copying out a part takes, with a margin."""

_MACS = 8
"""Multiplications of a product that take as long as one element of other operators, with a margin."""

_UNKNOWN = 16
"""What a length that is not known is taken to be."""

_END = (1 << 63) - 1
_FUSING = ("Conv", "ConvTranspose", "Gemm", "MatMul", "BatchNormalization")
"""Operators that runtimes fuse what comes behind them into."""


@dataclass(frozen=True)
class _Taken:
    """What a Slice along one axis, or a Gather of one index, takes.

    Attributes:
        value: of which.
        axis: counted from the front.
        start, end: indices as a Slice has them.
        length: how many.
        most: how many at most.
        drops_axis: whether the axis goes.
    """

    value: ir.Value
    axis: int
    start: int
    end: int
    length: Dim
    most: int
    drops_axis: bool


@dataclass
class _Region:
    """Operators that nobody needs but for the part that is taken.

    Attributes:
        nodes: with the axes along which their inputs are cut; each stands before those that make its inputs.
        axes: of all values that are cut.
        met: how many uses of a value are cut.
    """

    nodes: dict[ir.Node, Axes] = field(default_factory=dict)
    axes: dict[ir.Value, int] = field(default_factory=dict)
    met: Counter[ir.Value] = field(default_factory=Counter)

    def cut(self, value: ir.Value, axis: int) -> None:
        """Notes a use of a part of a value."""
        self.axes[value] = axis
        self.met[value] += 1

    @property
    def sources(self) -> list[ir.Value]:
        """The values that parts are taken of."""
        return [value for value in self.axes if value.producer() not in self.nodes]


def compute_taken_rows_only(node: ir.Node, view: View) -> Change | Miss | None:
    """Replaces Slice(f(x)), or Gather(f(x)) at one index, with f(Slice(x)), where f makes each index of an axis from the same one of x.

    Where f is any number of elementwise operators, products, normalizations and views that nobody else uses: a classifier
    on one token leaves of the last layer of a transformer keys and values alone. Rounding-level. When less is computed
    than the parts cost that are taken instead. Measured at 1 thread: BERT of 6 layers 1.15, ViT of 12 layers 1.07 times as fast.
    """
    taken = _taken(node, view)
    if taken is None:
        return None
    region = _region(taken, view, node.graph)
    if not region.nodes:
        return None
    for source in region.sources:
        if view.producer(source, *_FUSING) is not None and region.met[source] == len(source.uses()) and not view.is_constant(source):
            return Miss("the runtime may fuse what is computed into the operator before it")
    saved = sum(_saved(inner, taken, view) for inner in region.nodes)
    if saved == 0 or saved < _LEAST_SAVED * (len(region.sources) - 1 + taken.drops_axis):
        return Miss("too little is computed in vain")
    bounds = {value: SliceParts((taken.start,), (taken.end,), (axis,), (1,)) for value, axis in region.axes.items()}

    def build(op: Builder) -> ir.Value:
        parts = {source: slice_by(op, view, source, bounds[source]) for source in region.sources}
        for inner, axes in reversed(region.nodes.items()):
            parts[inner.outputs[0]] = _on_parts(op, inner, axes, parts, region.axes[inner.outputs[0]], taken.length, view)
        return _without_axis(op, parts[taken.value], taken.axis, view) if taken.drops_axis else parts[taken.value]

    return Change(build)


def _taken(node: ir.Node, view: View) -> _Taken | None:
    """What an anchor takes; None where that may be nothing, or is everything."""
    value, shape = node.inputs[0], view.shape(node.inputs[0])
    if value is None or not shape or not view.is_private(value):
        return None
    if node.op_type == "Gather":
        index, axis = view.integers(node.inputs[1]), attribute(node, "axis", 0) % len(shape)
        if index is None or len(index) != 1 or shape[axis] == 1:
            return None
        return _Taken(value, axis, index[0], index[0] + 1 or _END, 1, 1, drops_axis=view.rank(node.inputs[1]) == 0)
    parts, result = slice_parts(node, view), view.shape(node.outputs[0])
    if parts is None or result is None or len(parts.axes) != 1 or parts.steps != (1,):
        return None
    axis, start, end = parts.axes[0] % len(shape), parts.starts[0], parts.ends[0]
    length = result[axis]
    at_an_end = (start == 0 < end) or (start < 0 and end >= (1 << 31) - 1)
    if length in (0, shape[axis]) or not (isinstance(length, int) or at_an_end):
        return None
    most = length if isinstance(length, int) else end if start == 0 else -start
    return _Taken(value, axis, start, end, length, most, drops_axis=False)


def _region(taken: _Taken, view: View, graph: object) -> _Region:
    """All operators of which only the part is needed."""
    region = _Region()
    region.cut(taken.value, taken.axis)
    pending = [taken.value]
    while pending:
        value = pending.pop()
        node = value.producer()
        if node is None or node in region.nodes or node.graph is not graph:
            continue
        if value.is_graph_output() or region.met[value] < len(value.uses()):
            continue
        axes = axes_above(node, region.axes[value], view)
        if axes is None or value is not node.outputs[0] or not _can_be_cut(node, axes, region, taken, view):
            continue
        region.nodes[node] = axes
        for index, axis in axes.items():
            operand = node.inputs[index]
            assert operand is not None
            region.cut(operand, axis)
            pending.append(operand)
    return region


def _can_be_cut(node: ir.Node, axes: Axes, region: _Region, taken: _Taken, view: View) -> bool:
    """Whether all operands are long enough, cut along one axis only, and a Reshape knows its new target."""
    if node.op_type == "Reshape" and not isinstance(taken.length, int) and not _copies_length(node, axes, region.axes[node.outputs[0]]):
        return False
    whole = (view.shape(taken.value) or ())[taken.axis]
    for index, axis in axes.items():
        operand = node.inputs[index]
        shape = view.shape(operand)
        if operand is None or shape is None or shape[axis] != whole or region.axes.get(operand, axis) != axis:
            return False
    return True


def _copies_length(node: ir.Node, axes: Axes, axis: int) -> bool:
    """Whether a 0 in the target of a Reshape would stand for the length of the part."""
    return axes[0] == axis and not attribute(node, "allowzero", 0)


def _saved(node: ir.Node, taken: _Taken, view: View) -> int:
    """Elements that need not be computed: those of a view count nothing, each multiplication an eighth."""
    if node.op_type in VIEWS:
        return 0
    count = least_elements(node.outputs[0], view)
    if node.op_type in PRODUCTS:
        inner = (view.shape(node.inputs[0]) or (1,))[-1]
        count = count * _number(inner) // _MACS
    whole = _number((view.shape(taken.value) or ())[taken.axis])
    return count * max(whole - taken.most, 0) // max(whole, 1)


def _number(dim: Dim) -> int:
    return dim if isinstance(dim, int) else _UNKNOWN


def _on_parts(op: Builder, node: ir.Node, axes: Axes, parts: Mapping[ir.Value, ir.Value], axis: int, length: Dim, view: View) -> ir.Value:
    """A copy of a node that works on the parts of its operands."""
    inputs = [parts[value] if index in axes and value is not None else value for index, value in enumerate(node.inputs)]
    if node.op_type == "Reshape":
        target = list(view.integers(node.inputs[1]) or ())
        target[axis] = length if isinstance(length, int) else 0
        inputs[1] = numbers_constant(op, target)
    return op.copy(node, *inputs)[0]


def _without_axis(op: Builder, value: ir.Value, axis: int, view: View) -> ir.Value:
    if view.opset < 13:
        return op.op("Squeeze", value, axes=[axis])
    return op.op("Squeeze", value, numbers_constant(op, [axis]))


RULES = (rule(compute_taken_rows_only, "Slice", "Gather"),)
"""The table of this module."""

"""Rotary position embedding in one operator."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphopt.graph.edits import Builder
from graphopt.graph.forms import numbers_constant, reshape, slice_parts
from graphopt.graph.shapes.inference import Dim
from graphopt.graph.view import Array, View, attribute
from graphopt.passes.rules import Change, Miss, rule

RUNTIME_OPERATOR = "com.microsoft::RotaryEmbedding"
_ELEMENTWISE = ("Cos", "Sin", "Cast", "Mul", "Identity")
_VIEWS = ("Unsqueeze", "Reshape", "Squeeze", "Expand")
_LONGEST_WALK = 8


@dataclass(frozen=True)
class _Half:
    """Where the two equal halves of a table of cosines or sines come from.

    Attributes:
        source: the first half of the angles [..., positions, size / 2], or None where the whole table is constant.
        shape: of the source.
        steps: elementwise nodes that make the table from the angles, first to last.
        table: the first half, where it is constant.
    """

    source: ir.Value | None
    shape: tuple[Dim, ...]
    steps: tuple[ir.Node, ...] = ()
    table: Array | None = None


def fuse_rotary_embedding(node: ir.Node, view: View) -> Change | Miss | None:
    """Replaces x * cos + concat(-x2, x1) * sin, where x1 and x2 are the halves of x, with RotaryEmbedding(x, cos, sin).

    When x is [batch, heads, positions, size] and both tables are known to consist of two equal halves, of which the
    operator takes one, computed as before: no position is out of its reach. Not for an empty batch of positions that differ
    by sample, which ONNX Runtime's kernel refuses. Rounding-level. Measured at 1 thread: 1.7 to 1.9 times as fast for one
    position, 2.7 times for 128; the standard operator 1.5 to 1.7 and 2.8 times.
    """
    found = _rotation(node, view)
    if found is None or isinstance(found, Miss):
        return found
    x, cosine, sine, between = found
    shape = view.shape(x)
    if shape is None or len(shape) != 4 or not isinstance(shape[3], int) or shape[3] % 2:
        return Miss("what is turned is not of rank 4 with a known even size")
    portable = view.runs("RotaryEmbedding", x)
    if not view.runs(RUNTIME_OPERATOR, x) and not portable:
        return Miss("the target has no RotaryEmbedding for this type")
    if not all(len(output.uses()) <= uses and not output.is_graph_output() for output, uses in between):
        return Miss("an intermediate result is used elsewhere")
    first, second = _half_of(cosine, shape[3], view), _half_of(sine, shape[3], view)
    if first is None or second is None:
        return Miss("the cosines or sines are not known to be two equal halves")
    reason = next((why for pair in ((cosine, first), (sine, second)) if (why := _why_not_aligned(*pair, shape, view))), "")
    if reason or first.shape[:-1] != second.shape[:-1]:
        return Miss(reason or "cosines and sines differ in shape")
    alike = all(dim == 1 for dim in first.shape[:-2])
    if view.runs(RUNTIME_OPERATOR, x):
        return Change(lambda op: _runtime_form(op, view, x, first, second, alike), kernels=(RUNTIME_OPERATOR,))
    return Change(lambda op: _standard_form(op, view, x, first, second, alike))


def _why_not_aligned(table: ir.Value, half: _Half, shape: tuple[Dim, ...], view: View) -> str:
    """Why a table does not hold one row for each position of [batch, heads, positions, size]; empty where it does."""
    full, batch = view.shape(table) or (), half.shape[:-2]
    padded = (1,) * (4 - len(full)) + full
    if len(full) > 4 or padded[1] != 1 or padded[2] != shape[2] or half.shape[-2] != shape[2]:
        return "positions are not on the last axis but one"
    if padded[0] not in (1, shape[0]):
        return "the tables widen the batch"
    if any(dim != 1 for dim in batch) and batch != (shape[0],):
        return "the tables differ in other axes than batch and positions"
    return ""


def _rotation(node: ir.Node, view: View) -> tuple[ir.Value, ir.Value, ir.Value, list[tuple[ir.Value, int]]] | Miss | None:
    """What an Add turns, the cosines, the sines, and the results in between with their expected uses."""
    for plain, turned in (node.inputs, tuple(reversed(node.inputs))):
        left, right = view.producer(plain, "Mul"), view.producer(turned, "Mul")
        if left is None or right is None:
            continue
        for place in (0, 1):
            swapped = _swapped_halves(right.inputs[place], view)
            sine = right.inputs[1 - place]
            if swapped is None or sine is None or plain is None or turned is None:
                continue
            x, inner = swapped
            if x not in left.inputs:
                return Miss("the two products are not of the same value")
            cosine = left.inputs[1 if left.inputs[0] is x else 0]
            if cosine is not None:
                return x, cosine, sine, [(plain, 1), (turned, 1), *inner]
    return None


def _swapped_halves(value: ir.Value | None, view: View) -> tuple[ir.Value, list[tuple[ir.Value, int]]] | None:
    """The value x whose halves (x1, x2) along the last axis another one holds as (-x2, x1)."""
    joined = view.producer(value, "Concat")
    negated = None if joined is None or len(joined.inputs) != 2 else view.producer(joined.inputs[0], "Neg")
    if joined is None or negated is None or value is None or attribute(joined, "axis", 0) not in (-1, (view.rank(value) or 0) - 1):
        return None
    second, first = negated.inputs[0], joined.inputs[1]
    if first is None or second is None:
        return None
    between = [(value, 1), (negated.outputs[0], 1), (first, 1), (second, 1)]
    split = view.producer(first, "Split")
    if split is not None and list(split.outputs) == [first, second] and split.inputs[0] is not None:
        equal = view.shape(first) is not None and view.shape(first) == view.shape(second)
        last = attribute(split, "axis", 0) in (-1, (view.rank(first) or 0) - 1)
        return (split.inputs[0], between) if equal and last else None
    low, high = _slice_bounds(first, view), _slice_bounds(second, view)
    if low is None or high is None or low[0] is not high[0]:
        return None
    size = (view.shape(low[0]) or (None,))[-1]
    if not isinstance(size, int) or (low[1], low[2]) != (0, size // 2) or high[1] != size // 2 or high[2] < size or size % 2:
        return None
    return low[0], between


def _slice_bounds(value: ir.Value, view: View) -> tuple[ir.Value, int, int] | None:
    """A slice along the last axis by constant bounds: of what, from where, to where."""
    node = view.producer(value, "Slice")
    parts = None if node is None else slice_parts(node, view)
    if node is None or parts is None or node.inputs[0] is None or len(parts.axes) != 1 or parts.steps != (1,):
        return None
    rank = view.rank(node.inputs[0])
    if rank is None or parts.axes[0] not in (-1, rank - 1) or parts.starts[0] < 0 or parts.ends[0] < 0:
        return None
    return node.inputs[0], parts.starts[0], parts.ends[0]


def _half_of(value: ir.Value, size: int, view: View) -> _Half | None:
    """The first half of a table whose second half is surely the same."""
    steps: list[ir.Node] = []
    current: ir.Value | None = value
    for _ in range(_LONGEST_WALK):
        if current is None or (view.shape(current) or (None,))[-1] != size:
            return None
        if view.is_constant(current):
            return _constant_half(current, steps, view)
        node = view.producer(current, *_ELEMENTWISE, *_VIEWS, "Concat")
        if node is None:
            return None
        if node.op_type == "Concat":
            source, shape = node.inputs[0], view.shape(node.inputs[0])
            halves = (
                len(node.inputs) == 2 and node.inputs[1] is source and attribute(node, "axis", 0) in (-1, (view.rank(current) or 0) - 1)
            )
            return _Half(source, shape, tuple(reversed(steps))) if halves and shape is not None and len(shape) >= 2 else None
        if node.op_type == "Mul":
            place = next(
                (index for index in (0, 1) if view.scalar(node.inputs[index]) is not None and view.rank(node.inputs[index]) == 0), None
            )
            if place is None:
                return None
            steps.append(node)
            current = node.inputs[1 - place]
            continue
        if node.op_type in _ELEMENTWISE:
            steps.append(node)
        current = node.inputs[0]
    return None


def _constant_half(value: ir.Value, steps: list[ir.Node], view: View) -> _Half | None:
    table = view.constant(value)
    if table is None or steps or table.ndim < 2:
        return None
    left, right = np.split(table, 2, axis=-1)
    return _Half(None, table.shape[:-1] + left.shape[-1:], table=left) if np.array_equal(left, right) else None


def _table(op: Builder, view: View, half: _Half) -> ir.Value:
    """Makes the first half of a table, in the shape of its source."""
    if half.table is not None:
        return op.constant(half.table)
    value = half.source
    assert value is not None
    for step in half.steps:
        value = op.copy(step, *(operand if view.is_constant(operand) else value for operand in step.inputs))[0]
    return value


def _runtime_form(op: Builder, view: View, x: ir.Value, cosine: _Half, sine: _Half, alike: bool) -> ir.Value:
    """Positions count from 0 through tables that hold just the positions at hand."""
    tables = [_table(op, view, half) for half in (cosine, sine)]
    size = cosine.shape[-1]
    assert isinstance(size, int)
    rows = [table if len(cosine.shape) == 2 else reshape(op, table, [-1, size]) for table in tables]
    positions = numbers_constant(op, [0]) if alike else _row_numbers(op, view, tables[0])
    return op.op("RotaryEmbedding", x, positions, *rows, domain="com.microsoft")


def _row_numbers(op: Builder, view: View, table: ir.Value) -> ir.Value:
    """0, 1, 2, … in the shape [batch, positions] of a table [batch, positions, size]."""
    whole = op.op("Shape", table)
    bounds = [numbers_constant(op, [number]) for number in (0, 2, 0)]
    shape = op.op("Slice", whole, *bounds) if view.opset >= 10 else op.op("Slice", whole, starts=[0], ends=[2], axes=[0])
    count = op.op("ReduceProd", shape, keepdims=0)
    zero, one = (op.constant(np.array(number, dtype=np.int64)) for number in (0, 1))
    return op.op("Reshape", op.op("Range", zero, count, one), shape)


def _standard_form(op: Builder, view: View, x: ir.Value, cosine: _Half, sine: _Half, alike: bool) -> ir.Value:
    """The standard operator takes a table for each sample of the batch."""
    tables = [_table(op, view, half) for half in (cosine, sine)]
    if alike:
        batch = op.op("Shape", x, start=0, end=1)
        target = op.op("Concat", batch, numbers_constant(op, [1, 1]), axis=0)
        size = cosine.shape[-1]
        assert isinstance(size, int)
        tables = [op.op("Expand", reshape(op, table, [1, -1, size]), target) for table in tables]
    return op.op("RotaryEmbedding", x, *tables)


RULES = (rule(fuse_rotary_embedding, "Add"),)
"""The table of this module."""

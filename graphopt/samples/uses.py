"""What a graph does with an integer input: which tables it indexes, what it is compared with, whether it is a shape."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

_CARRIERS = frozenset(
    {"Cast", "Reshape", "Unsqueeze", "Squeeze", "Identity", "Flatten", "Transpose", "Expand", "Slice", "Concat", "Split", "Tile"}
    | {"Clip", "Where", "Max", "Min", "Gather", "GatherND", "Pad"}
)
"""Operators whose output elements are input elements, or cut to a range."""

_TABLE_CASTS = frozenset({"Cast", "Identity", "DequantizeLinear", "CastLike"})
_SHAPE_POSITIONS = {
    "Reshape": (1,),
    "Expand": (1,),
    "Tile": (1,),
    "ConstantOfShape": (0,),
    "TopK": (1,),
    "Resize": (3,),
    "Range": (0, 1, 2),
    "Slice": (1, 2, 3, 4),
    "Pad": (1,),
    "Split": (1,),
    "Unsqueeze": (1,),
    "Squeeze": (1,),
}
_MOST_VISITED = 1000


@dataclass
class Uses:
    """What became of an input.

    Attributes:
        limit: it must stay below this: the shortest table that it indexes.
        compared: the first constant that it is tested against for equality.
        shapes: it serves as a shape, a count or a position.
    """

    limit: int | None = None
    compared: float | None = None
    shapes: bool = False

    def stay_below(self, limit: int | None) -> None:
        """Notes that the input indexes a table of length `limit`, where that is known."""
        if limit is not None:
            self.limit = limit if self.limit is None else min(self.limit, limit)


def integer_uses(value: ir.Value, model: ir.Model) -> Uses:
    """Follows an input through operators that only move or cast its elements, into subgraphs and functions too."""
    found = Uses()
    seen: set[int] = set()
    todo: list[tuple[ir.Value, int]] = [(value, 0)]
    while todo and len(seen) < _MOST_VISITED:
        current, offset = todo.pop()
        if id(current) in seen:
            continue
        seen.add(id(current))
        for node, position in current.uses():
            _note(node, position, offset, found)
            todo.extend((following, offset + shift) for following, shift in _carried(node, position, model))
    return found


def _note(node: ir.Node, position: int, offset: int, found: Uses) -> None:
    if position in _SHAPE_POSITIONS.get(node.op_type, ()):
        found.shapes = True
    elif node.op_type in ("Gather", "GatherElements", "GatherND", "GatherBlockQuantized") and position == 1:
        axis_name = "gather_axis" if node.op_type == "GatherBlockQuantized" else "axis"
        length = _length(node.inputs[0], node.attributes.get_int(axis_name, 0))
        found.stay_below(None if length is None else max(1, length - offset))
    elif node.op_type == "OneHot" and position == 0:
        depth = _constant(node.inputs[1])
        found.stay_below(None if depth is None else max(1, int(depth.flat[0]) - offset))
    elif node.op_type == "Equal" and found.compared is None:
        other = _constant(node.inputs[1 - position])
        if other is not None and other.size == 1:
            found.compared = float(other.flat[0])


def _carried(node: ir.Node, position: int, model: ir.Model) -> list[tuple[ir.Value, int]]:
    """The values that hold the input's elements after `node`, and by how much they have grown."""
    function = model.functions.get(node.op_identifier())
    if function is not None:
        return [(function.inputs[position], 0)]
    if node.op_type == "Where" and position == 0:
        return []
    if node.op_type in _CARRIERS and (position == 0 or node.op_type in ("Concat", "Where", "Max", "Min")):
        return [(output, 0) for output in node.outputs]
    if node.op_type == "Add":
        constant = _constant(node.inputs[1 - position])
        growth = 0.0 if constant is None else float(constant.max(initial=0))
        return [(node.outputs[0], int(growth))] if constant is not None and math.isfinite(growth) else []
    return []


def _length(table: ir.Value | None, axis: int) -> int | None:
    """The length of a table along an axis, where the graph fixes it."""
    for _ in range(8):
        if table is None:
            return None
        constant = ir.convenience.get_const_tensor(table)
        shape = table.shape if constant is None else constant.shape
        if shape is not None and -len(shape) <= axis < len(shape):
            length = shape[axis]
            if isinstance(length, int):
                return length
        producer = table.producer()
        if producer is None or producer.op_type not in _TABLE_CASTS:
            return None
        table = producer.inputs[0]
    return None


def _constant(value: ir.Value | None) -> np.ndarray | None:
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    return None if tensor is None or tensor.dtype == ir.DataType.STRING else tensor.numpy()

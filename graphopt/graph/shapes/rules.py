"""Shape rules of the operators that carry shape arithmetic or move elements; ``RULES`` names them by operator.

A rule returns the facts of the node's outputs, or None where the operands know too little.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from graphopt.graph.shapes import dims, elements, pieces
from graphopt.graph.shapes.dims import Dim
from graphopt.graph.shapes.facts import (
    CONTENT_LIMIT,
    INTEGERS,
    Content,
    Fact,
    Operands,
    Shape,
    content_of,
    content_of_array,
    count_of,
    fact_of_tensor,
    filled,
    lengths_of,
    vector,
    whole_numbers,
    with_content,
)

Rule = Callable[[Operands], "Fact | Sequence[Fact] | None"]


def broadcast_shapes(operands: Operands, shapes: Sequence[Shape | None]) -> Shape | None:
    """The shape after multidirectional broadcasting; an axis that depends on the symbols gets a fresh length."""
    known = [shape for shape in shapes if shape is not None]
    if len(known) < len(shapes):
        return None
    rank = max(map(len, known))
    result: list[Dim] = []
    for axis in range(-rank, 0):
        length: Dim | None = 1
        for shape in known:
            if -axis <= len(shape) and length is not None:
                length = dims.broadcast(length, shape[axis])
        result.append(operands.fresh() if length is None else length)
    return tuple(result)


def elementwise(operands: Operands) -> Fact:
    """Operators of one or more operands that broadcast; the type is that of the first."""
    return _broadcasting(operands, operands.dtype())


def comparison(operands: Operands) -> Fact:
    """Broadcasting operators with a boolean result."""
    return _broadcasting(operands, ir.DataType.BOOL)


def _broadcasting(operands: Operands, dtype: ir.DataType | None) -> Fact:
    content: Content | None = None
    contents = [operands.content(index) for index in range(len(operands.facts))]
    op_type = operands.node.op_type
    if contents and contents[0] is not None and not (op_type == "Mod" and operands.attribute("fmod", 0)):
        content = elements.unary_content(op_type, operands.dtype(), contents[0]) if len(contents) == 1 else contents[0]
        for other in contents[1:]:
            content = None if content is None or other is None else elements.binary_content(op_type, operands.dtype(), content, other)
    found = with_content(dtype, content)
    return found or Fact(dtype, broadcast_shapes(operands, [operands.shape(index) for index in range(len(operands.facts))]))


def where(operands: Operands) -> Fact:
    """Where."""
    found = with_content(operands.dtype(1), elements.where(operands))
    return found or Fact(operands.dtype(1), broadcast_shapes(operands, [operands.shape(index) for index in range(3)]))


def shape(operands: Operands) -> Fact | None:
    """Shape, with the start and end of opset 15."""
    of = operands.shape()
    if of is None:
        return None
    part = of[operands.attribute("start", 0) : operands.attribute("end", len(of))]
    return with_content(ir.DataType.INT64, vector(part)) or Fact(ir.DataType.INT64, (len(part),))


def size(operands: Operands) -> Fact:
    """Size."""
    of = operands.shape()
    return Fact(ir.DataType.INT64, (), None if of is None else content_of(dims.product(of)))


def gather(operands: Operands) -> Fact | None:
    """Gather; elements where the indices are numbers."""
    data, indices = operands.shape(0), operands.shape(1)
    if data is None or indices is None:
        return None
    axis = operands.attribute("axis", 0) % len(data)
    content, picked = operands.content(0), operands.content(1)
    found = None
    if content is not None and picked is not None and whole_numbers(picked.flat) is not None:
        found = with_content(operands.dtype(), content_of(np.take(content, picked.astype(np.int64), axis)))
    return found or Fact(operands.dtype(), (*data[:axis], *indices, *data[axis + 1 :]))


def _axes(operands: Operands) -> list[int] | None:
    """The axes of Squeeze, Unsqueeze and the like: an attribute before opset 13, then an input."""
    found = operands.attribute("axes")
    return list(found) if found is not None else operands.integers(1)


def unsqueeze(operands: Operands) -> Fact | None:
    """Unsqueeze."""
    of, axes = operands.shape(), _axes(operands)
    if of is None or axes is None:
        return None
    rank = len(of) + len(axes)
    new, kept = {axis % rank for axis in axes}, iter(of)
    return _viewed(operands, tuple(1 if axis in new else next(kept) for axis in range(rank)))


def squeeze(operands: Operands) -> Fact | None:
    """Squeeze; without axes only where every length is a number."""
    of, axes = operands.shape(), _axes(operands)
    if of is None or (axes is None and (operands.has(1) or not all(isinstance(d, int) for d in of))):
        return None
    gone = {axis for axis, d in enumerate(of) if d == 1} if axes is None else {axis % len(of) for axis in axes}
    return _viewed(operands, tuple(d for axis, d in enumerate(of) if axis not in gone))


def reshape(operands: Operands) -> Fact | None:
    """Reshape; -1 is solved by exact division.

    An entry that the model computes as zero would copy the input's length instead; models that reach this with another
    length there fail or have no elements anyway, so a computed entry is taken at its word.
    """
    of, target = operands.shape(), operands.attribute("shape") if operands.opset < 5 else operands.dims(1)
    if target is None:
        rank = count_of(operands.shape(1))
        return None if rank is None else Fact(operands.dtype(), operands.fresh_shape(rank))
    allow_zero = bool(operands.attribute("allowzero", 0))
    result: list[Dim | None] = [_target_length(entry, of, axis, allow_zero) for axis, entry in enumerate(target)]
    rest = [length for entry, length in zip(target, result, strict=True) if entry != -1]
    if -1 in target and of is not None and None not in rest:
        result[target.index(-1)] = dims.divide_exactly(dims.product(of), dims.product(d for d in rest if d is not None))
    return _viewed(operands, tuple(operands.fresh() if length is None else length for length in result))


def _target_length(entry: Dim | None, of: Shape | None, axis: int, allow_zero: bool) -> Dim | None:
    if entry == 0 and not allow_zero:
        return of[axis] if of is not None and axis < len(of) else None
    return entry if entry is not None and dims.at_least(entry, 0) else None


def flatten(operands: Operands) -> Fact | None:
    """Flatten."""
    of = operands.shape()
    if of is None:
        return None
    axis = operands.attribute("axis", 1)
    axis = axis + len(of) if axis < 0 else axis
    return _viewed(operands, (dims.product(of[:axis]), dims.product(of[axis:])))


def _viewed(operands: Operands, result: Shape) -> Fact:
    """The same elements in another shape."""
    content = operands.content(0)
    lengths = [d for d in result if isinstance(d, int)]
    if content is not None and len(lengths) == len(result) and int(np.prod(lengths)) == content.size:
        return Fact(operands.dtype(), result, content.reshape(lengths))
    return Fact(operands.dtype(), result)


def transpose(operands: Operands) -> Fact | None:
    """Transpose."""
    of, content = operands.shape(), operands.content(0)
    if of is None:
        return None
    order = operands.attribute("perm") or list(range(len(of)))[::-1]
    return Fact(operands.dtype(), tuple(of[axis] for axis in order), None if content is None else content.transpose(order))


def expand(operands: Operands) -> Fact | None:
    """Expand."""
    of, target = operands.shape(), operands.dims(1)
    if target is None:
        rank = count_of(operands.shape(1))
        return None if rank is None or of is None else Fact(operands.dtype(), operands.fresh_shape(max(rank, len(of))))
    if of is None:
        return None
    result = broadcast_shapes(operands, [of, lengths_of(operands, target)])
    return filled(operands.dtype(), result, operands.content(0)) or Fact(operands.dtype(), result)


def constant_of_shape(operands: Operands) -> Fact | None:
    """ConstantOfShape."""
    value = operands.attribute("value")
    dtype = ir.DataType.FLOAT if value is None else value.dtype
    target = operands.dims(0)
    if target is None:
        rank = count_of(operands.shape(0))
        return None if rank is None else Fact(dtype, operands.fresh_shape(rank))
    result = lengths_of(operands, target)
    element = content_of_array(np.zeros(1, np.float32) if value is None else value.numpy(), dtype)
    return filled(dtype, result, None if element is None else element.reshape(())) or Fact(dtype, result)


def range_(operands: Operands) -> Fact | None:
    """Range of integers; of floats only the number of elements of fully known ones."""
    start, limit, delta = (operands.content(index) for index in range(3))
    dtype = operands.dtype()
    if start is None or limit is None or delta is None:
        return Fact(dtype, (operands.fresh(),))
    a, b, d = start.item(), limit.item(), delta.item()
    if None in (a, b, d) or dtype not in INTEGERS or not isinstance(d, int) or d == 0:
        return Fact(dtype, (operands.fresh(),))
    distance = dims.subtract(b, a) if d > 0 else dims.subtract(a, b)
    count = dims.floor_divide(dims.add(distance, abs(d) - 1), abs(d))
    count = operands.fresh() if count is None else dims.maximum(0, count)
    if isinstance(count, int) and count <= CONTENT_LIMIT:
        return with_content(dtype, vector([dims.add(a, index * d) for index in range(count)]))
    return Fact(dtype, (count,))


def reduction(operands: Operands) -> Fact | None:
    """Reduce*, and of small integer vectors the sum, the product and the extremes."""
    of, axes = operands.shape(), _axes(operands)
    if of is None or (axes is None and operands.has(1)):
        return None
    if not axes:
        axes = [] if operands.attribute("noop_with_empty_axes", 0) else list(range(len(of)))
    gone, keep = {axis % len(of) for axis in axes}, bool(operands.attribute("keepdims", 1))
    result = tuple(1 if axis in gone else d for axis, d in enumerate(of) if keep or axis not in gone)
    content, op = operands.content(0), _REDUCED.get(operands.node.op_type)
    if content is not None and op is not None and operands.dtype() in INTEGERS and content.ndim == len(gone) == 1 and content.size:
        total = content[:1]
        for element in content[1:]:
            combined = elements.binary_content(op, operands.dtype(), total, content_of([element]))
            total = content_of([None]) if combined is None else combined
        return Fact(operands.dtype(), result, total.reshape([1] * len(result)))
    return Fact(operands.dtype(), result)


_REDUCED = {"ReduceProd": "Mul", "ReduceSum": "Add", "ReduceMin": "Min", "ReduceMax": "Max"}


def constant(operands: Operands) -> Fact | None:
    """Constant."""
    found = ir.convenience.get_const_tensor(operands.node.outputs[0])
    return None if found is None else fact_of_tensor(found)


def _table() -> dict[str, Rule]:
    table: dict[str, Rule] = {
        "Shape": shape, "Size": size, "Gather": gather, "Slice": pieces.slice_,
        "Concat": pieces.concat, "Split": pieces.split, "Tile": pieces.tile, "Pad": pieces.pad,
        "Unsqueeze": unsqueeze, "Squeeze": squeeze, "Reshape": reshape, "Flatten": flatten, "Transpose": transpose,
        "Expand": expand, "ConstantOfShape": constant_of_shape, "Range": range_,
        "Constant": constant, "Where": where, "Cast": elements.cast, "CastLike": elements.cast,
    }  # fmt: skip
    table |= dict.fromkeys("Add Sub Mul Div Mod Min Max Sum Mean Pow PRelu BitwiseAnd BitwiseOr BitwiseXor BitShift".split(), elementwise)
    table |= dict.fromkeys("Equal Less Greater LessOrEqual GreaterOrEqual And Or Xor".split(), comparison)
    table |= {f"Reduce{kind}": reduction for kind in "Sum Mean Max Min Prod L1 L2 LogSum LogSumExp SumSquare".split()}
    return table


RULES = _table()

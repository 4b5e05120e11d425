"""Shape rules of the operators that cut tensors apart and join them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from graphopt.graph.shapes import dims
from graphopt.graph.shapes.dims import Dim
from graphopt.graph.shapes.facts import CONTENT_LIMIT, INTEGERS, Fact, Operands, count_of, lengths_of, with_content

_FARTHEST = 1 << 30
"""Slice bounds beyond this mean "to the end"."""


def slice_(operands: Operands) -> Fact | None:
    """Slice, with attributes (before opset 10) or inputs."""
    of = operands.shape()
    if of is None:
        return None
    bounds = slice_bounds(operands, len(of))
    if bounds is None:
        starts = operands.shape(1)
        axes = operands.integers(3) if operands.has(3) else list(range(len(of)))
        touched = {axis % len(of) for axis in axes or range(len(of))} if starts is not None else set(range(len(of)))
        return Fact(operands.dtype(), tuple(operands.fresh() if axis in touched else d for axis, d in enumerate(of)))
    result, content = list(of), operands.content(0)
    for axis, (start, end, step) in bounds.items():
        length = None if start is None or end is None else sliced_length(of[axis], start, end, step)
        result[axis] = operands.fresh() if length is None else length
        if content is not None and isinstance(start, int) and isinstance(end, int):
            content = content[(slice(None),) * axis + (_python_slice(start, end, step),)]
        else:
            content = None
    return with_content(operands.dtype(), content) or Fact(operands.dtype(), tuple(result))


def slice_bounds(operands: Operands, rank: int) -> dict[int, tuple[Dim | None, Dim | None, int]] | None:
    """Start, end and step of each sliced axis (start or end None where unknown), or None where axes or steps are unknown."""
    if operands.opset < 10:
        starts, ends = operands.attribute("starts"), operands.attribute("ends")
        axes: list[int] | None = operands.attribute("axes", list(range(len(starts))))
        steps: list[int] | None = [1] * len(starts)
    else:
        starts, ends = operands.dims(1), operands.dims(2)
        count = count_of(operands.shape(1)) or count_of(operands.shape(2))
        if count is None:
            return None
        starts, ends = starts or [None] * count, ends or [None] * count
        axes = operands.integers(3) if operands.has(3) else list(range(count))
        steps = operands.integers(4) if operands.has(4) else [1] * count
    if axes is None or steps is None or 0 in steps:
        return None
    return {axis % rank: bounds for axis, *bounds in zip(axes, starts, ends, steps, strict=True)}  # type: ignore[misc]


def sliced_length(length: Dim, start: Dim, end: Dim, step: int) -> Dim | None:
    """How many elements a slice takes of an axis; None where that depends on the symbols in ways that have no normal form."""
    if step < 0:
        if isinstance(length, int) and isinstance(start, int) and isinstance(end, int):
            return len(range(length)[_python_slice(start, end, step)])
        return length if (start, step) == (-1, -1) and isinstance(end, int) and end < -_FARTHEST else None
    first, last = _clamped(start, length), _clamped(end, length)
    if first is None or last is None:
        return None
    taken = dims.maximum(0, dims.subtract(last, first))
    return taken if step == 1 else dims.floor_divide(dims.add(taken, step - 1), step)


def _clamped(bound: Dim, length: Dim) -> Dim | None:
    """A slice bound as a position in [0, length], for positive steps."""
    if dims.at_least(bound, 0):
        return length if isinstance(bound, int) and bound > _FARTHEST else dims.minimum(bound, length)
    if dims.at_most(bound, -1):
        return 0 if isinstance(bound, int) and bound < -_FARTHEST else dims.minimum(dims.maximum(0, dims.add(bound, length)), length)
    return None


def _python_slice(start: int, end: int, step: int) -> slice:
    return slice(start, None if step < 0 and end < -_FARTHEST else end, step)


def concat(operands: Operands) -> Fact | None:
    """Concat; an operand whose elements are not followed contributes unknown ones."""
    shapes = [operands.shape(index) for index in range(len(operands.facts))]
    first = shapes[0]
    if first is None or any(s is None or len(s) != len(first) for s in shapes):
        return None
    known = [s for s in shapes if s is not None]
    axis = operands.attribute("axis") % len(first)
    total: Dim = 0
    for s in known:
        total = dims.add(total, s[axis])
    result = [_agreed([s[i] for s in known]) if i != axis else total for i in range(len(first))]
    if operands.dtype() in INTEGERS and len(first) == 1 and isinstance(total, int) and total <= CONTENT_LIMIT:
        parts = [operands.content(index) for index in range(len(known))]
        filled = [np.full(int(s[0]), None, dtype=object) if part is None else part for s, part in zip(known, parts, strict=True)]
        return with_content(operands.dtype(), np.concatenate(filled))
    contents = [content for index in range(len(known)) if (content := operands.content(index)) is not None]
    joined = np.concatenate(contents, axis) if len(contents) == len(known) else None
    return with_content(operands.dtype(), joined) or Fact(operands.dtype(), tuple(result))


def _agreed(candidates: list[Dim]) -> Dim:
    """Lengths that must be equal while the model runs: a number says more than a symbol."""
    return next((d for d in candidates if isinstance(d, int)), candidates[0])


def split(operands: Operands) -> list[Fact] | None:
    """Split by sizes, or into equal parts."""
    of = operands.shape()
    if of is None:
        return None
    axis, count = operands.attribute("axis", 0) % len(of), len(operands.node.outputs)
    sizes: Sequence[Dim | None] | None = operands.attribute("split") if operands.opset < 13 else operands.dims(1)
    if sizes is None and not operands.has(1):
        chunk = dims.floor_divide(dims.add(of[axis], count - 1), count)
        if isinstance(chunk, int) and isinstance(of[axis], int):
            sizes = [*[chunk] * (count - 1), dims.subtract(of[axis], chunk * (count - 1))]
        else:
            sizes = [dims.divide_exactly(of[axis], count)] * count
    lengths = [operands.fresh() if part is None else part for part in sizes or [None] * count]
    return [Fact(operands.dtype(), (*of[:axis], length, *of[axis + 1 :])) for length in lengths]


def tile(operands: Operands) -> Fact | None:
    """Tile."""
    of, repeats = operands.shape(), operands.dims(1)
    if of is None or operands.opset < 6:
        return None
    content = operands.content(0)
    whole = operands.integers(1)
    if content is not None and whole is not None:
        found = with_content(operands.dtype(), np.tile(content, whole))
        if found is not None:
            return found
    known = lengths_of(operands, repeats or [None] * len(of))
    return Fact(operands.dtype(), tuple(dims.multiply(d, r) for d, r in zip(of, known, strict=True)))


def pad(operands: Operands) -> Fact | None:
    """Pad, with attributes (before opset 11) or inputs."""
    of = operands.shape()
    pads = operands.attribute("pads") if operands.opset < 11 else operands.dims(1)
    axes = operands.integers(3) if operands.has(3) else list(range(len(of or ())))
    if of is None or axes is None or (pads is not None and len(pads) != 2 * len(axes)):
        return None
    result = list(of)
    for index, axis in enumerate(axes):
        before, after = (None, None) if pads is None else (pads[index], pads[index + len(axes)])
        known = before is not None and after is not None
        length = dims.add(of[axis % len(of)], dims.add(before, after)) if known else None
        result[axis % len(of)] = operands.fresh() if length is None else length
    return Fact(operands.dtype(), tuple(result))

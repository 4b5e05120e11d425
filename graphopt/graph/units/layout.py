"""Operators that move indices: concatenation, selection, transposition, and all forms of reshaping."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from graphopt.graph.units.lengths import settable
from graphopt.graph.units.step import Axes, Rule, Step, UnknownError
from graphopt.graph.units.ties import Array, Axis
from graphopt.graph.view import attribute

_LARGEST = 1 << 24
"""Elements of the axes that a reshape mixes, beyond which what it mixes stays."""
_PACKED = 3
"""An outermost length up to this packs several tensors, as queries, keys and values: not what one would remove."""


def transpose(step: Step) -> Sequence[Axes]:
    """Permutes the axes."""
    axes = step.axes()
    order = attribute(step.node, "perm", tuple(range(len(axes)))[::-1])
    return [[axes[index] for index in order]]


def concat(step: Step) -> Sequence[Axes]:
    """Indices one after the other."""
    axis, count = step.axis(), len(step.node.inputs)
    merged = list(step.axes(0))
    for index in range(1, count):
        merged = [a if i == axis else step.tie(a, b) for i, (a, b) in enumerate(zip(merged, step.axes(index), strict=True))]
    parts = [(step.axes(index)[axis], step.length(index)[axis]) for index in range(count)]
    live = [part is not None for part, _ in parts]
    if all(live):
        merged[axis] = np.concatenate([part for part, _ in parts if part is not None])
    elif any(live):
        merged[axis] = np.concatenate([_or_fixed(step, part, length) for part, length in parts])
    else:
        merged[axis] = None
    return [merged]


def split(step: Step) -> Sequence[Axes]:
    """Consecutive indices to each output."""
    axes, axis = step.axes(), step.axis()
    lengths = [step.length_of(value)[axis] for value in step.node.outputs]
    ends = np.cumsum(lengths)
    whole = axes[axis]
    parts = [None if whole is None else whole[end - length : end] for end, length in zip(ends, lengths, strict=True)]
    return [[*axes[:axis], part, *axes[axis + 1 :]] for part in parts]


def slice_(step: Step) -> Sequence[Axes]:
    """Constant bounds select indices; along other axes they pin."""
    axes = list(step.axes())
    if step.has(1):
        starts, ends = (step.view.integers(step.node.inputs[i]) for i in (1, 2))
        chosen = step.view.integers(step.node.inputs[3]) if step.has(3) else tuple(range(step.length(1)[0]))
        steps = step.view.integers(step.node.inputs[4]) if step.has(4) else None
    else:
        starts, ends = attribute(step.node, "starts", ()), attribute(step.node, "ends", ())
        chosen, steps = attribute(step.node, "axes", tuple(range(len(starts)))), None
    if chosen is None:
        raise UnknownError
    for place, axis in enumerate(index % len(axes) for index in chosen):
        units = axes[axis]
        if units is None or (starts is not None and ends is not None and _takes_all(starts[place], ends[place], steps, place)):
            continue
        if starts is None or ends is None or (step.has(4) and steps is None):
            step.pin(units)
            axes[axis] = None
        else:
            stride = 1 if steps is None else steps[place]
            axes[axis] = units[_bounds(starts[place], ends[place], stride)]
            if stride != 1:  # every second index of fewer is another selection
                step.pin(units)
    return [axes]


def gather(step: Step) -> Sequence[Axes]:
    """Constant indices select; others reach any index of the axis, which stays."""
    axes, axis = step.axes(), step.axis()
    units, chosen = axes[axis], step.view.constant(step.node.inputs[1])
    if units is not None and chosen is not None and chosen.ndim <= 1:
        picked = units[chosen.astype(np.int64)]
        if not chosen.ndim:  # one index, which becomes a value of its own
            step.pin(picked)
        return [[*axes[:axis], *([picked] if chosen.ndim else []), *axes[axis + 1 :]]]
    step.pin(units, *step.axes(1))
    return [[*axes[:axis], *[None] * len(step.axes(1)), *axes[axis + 1 :]]]


def expand(step: Step) -> Sequence[Axes]:
    """Axes that keep their length keep their units."""
    kept = step.broadcast((step.axes(), step.length()), out=step.out)
    return [_settable(step, kept, step.out)]


def filled(step: Step) -> Sequence[Axes]:
    """One number everywhere, as a recurrence begins with: as many of them as what it meets."""
    fresh = [step.ties.fresh(length) if length > 1 else None for length in step.out]
    return [_settable(step, fresh, step.out, index=0)]


def tile(step: Step) -> Sequence[Axes]:
    """Indices repeated as a whole."""
    repeats = step.view.integers(step.node.inputs[1])
    if repeats is None:
        raise UnknownError
    return [[None if axis is None else np.tile(axis, times) for axis, times in zip(step.axes(), repeats, strict=True)]]


def pad(step: Step) -> Sequence[Axes]:
    """What is padded stays, the rest keeps its units."""
    axes = step.axes()
    pads = step.view.integers(step.node.inputs[1]) if step.has(1) else attribute(step.node, "pads", ())
    if not pads or len(pads) != 2 * len(axes):
        raise UnknownError
    rank = len(axes)
    moved = [bool(pads[i] or pads[i + rank]) for i in range(rank)]
    step.pin(*(axis for axis, is_moved in zip(axes, moved, strict=True) if is_moved))
    return [[None if is_moved else axis for axis, is_moved in zip(axes, moved, strict=True)]]


def resize(step: Step) -> Sequence[Axes]:
    """Axes that keep their length keep their units."""
    axes, lengths = step.axes(), step.length()
    moved = [a != b for a, b in zip(lengths, step.out, strict=True)]
    step.pin(*(axis for axis, is_moved in zip(axes, moved, strict=True) if is_moved))
    kept = [None if is_moved else axis for axis, is_moved in zip(axes, moved, strict=True)]
    by_sizes = step.node.op_type == "Resize" and step.has(3)
    return [_settable(step, kept, step.out, index=3) if by_sizes else kept]


def depth_to_space(step: Step) -> Sequence[Axes]:
    """Channels of a block go together."""
    batch, channels, *spatial = step.axes()
    step.pin(*spatial)
    if channels is not None:
        blocks = attribute(step.node, "blocksize", 1) ** 2
        outer_first = attribute(step.node, "mode", "DCR") == "DCR"
        channels = step.ties.tie_rows(channels.reshape(blocks, -1).T if outer_first else channels.reshape(-1, blocks))
    return [[batch, channels, None, None]]


def shape(step: Step) -> Sequence[Axes]:
    """What reads a length hears of the length that is left: only lengths that nobody reads may change."""
    axes = step.axes()
    rank = len(axes)
    first, last = (attribute(step.node, name, end) for name, end in (("start", 0), ("end", rank)))
    counted = list(range(rank))[first:last]
    read: set[int] = set()
    for user, _ in step.node.outputs[0].uses():
        chosen = (
            step.view.integers(user.inputs[1]) if user.op_type in ("Gather", "Slice") and user.inputs[0] is step.node.outputs[0] else None
        )
        if chosen is None:
            read.update(counted)
        elif user.op_type == "Gather":
            read.update(counted[index] for index in chosen)
        else:
            ends = step.view.integers(user.inputs[2])
            plain = ends is not None and len(user.inputs) < 5 and len(chosen) == 1
            read.update(counted[chosen[0] : ends[0]] if plain and ends is not None else counted)
    step.pin(*(axes[index] for index in read))
    return [[None]]


def reshape(step: Step) -> Sequence[Axes]:
    """Splits both shapes into the smallest groups of axes with equal products; each group of one live axis carries its units on."""
    axes, before, after = step.axes(), step.length(), step.out
    if 0 in before or 0 in after or math.prod(before) != math.prod(after):
        raise UnknownError  # empty, or a length that only the data tells
    result: list[Axis] = [None] * len(after)
    for sources, targets in _groups(before, after):
        live = [index for index in sources if axes[index] is not None and before[index] > 1]
        if len(live) == 1:
            kept = _carried(step, axes[live[0]], [before[i] for i in sources], sources.index(live[0]), [after[j] for j in targets])
            for target, axis in zip(targets, kept, strict=True):
                result[target] = axis
        else:
            step.pin(*(axes[index] for index in live))
    if step.node.op_type == "Reshape":
        return [_settable(step, result, after)]
    return [result]


def _carried(step: Step, units: Axis, before: Sequence[int], place: int, after: Sequence[int]) -> list[Axis]:
    """The axes of a group whose one live axis stands at a place of the shape before."""
    result: list[Axis] = [None] * len(after)
    long = [index for index, length in enumerate(after) if length > 1]
    if len(long) == 1 and before[place] == after[long[0]]:
        result[long[0]] = units
        return result
    if math.prod(before) > _LARGEST or units is None:
        step.pin(units)
        return result
    aligned = units.reshape([-1 if index == place else 1 for index in range(len(before))])
    grid = np.broadcast_to(aligned, before).reshape(after)
    chosen = next((index for index in long if _varies_along(grid, index)), None)
    if chosen is None:
        chosen = long[1] if after[long[0]] <= _PACKED and len(long) > 2 else long[0]
    rows = np.moveaxis(grid, chosen, 0).reshape(after[chosen], -1)
    result[chosen] = rows[:, 0] if _varies_along(grid, chosen) else step.ties.tie_rows(rows)
    return result


def _varies_along(grid: Array, axis: int) -> bool:
    """Whether an index along one axis tells the unit."""
    first = grid[tuple(slice(None) if index == axis else slice(1) for index in range(grid.ndim))]
    return bool((grid == first).all())


def _groups(before: Sequence[int], after: Sequence[int]) -> Iterator[tuple[list[int], list[int]]]:
    """The smallest groups of neighbouring axes whose products are equal."""
    i = j = 0
    while i < len(before) or j < len(after):
        sources: list[int] = []
        targets: list[int] = []
        left = right = 1
        while not sources or not targets or left != right:
            if i >= len(before) and j >= len(after):
                break
            if j >= len(after) or (i < len(before) and (not sources or left < right)):
                left *= before[i]
                sources.append(i)
                i += 1
            else:
                right *= after[j]
                targets.append(j)
                j += 1
        yield sources, targets


def _settable(step: Step, axes: list[Axis], lengths: Sequence[int], index: int = 1) -> Axes:
    """The axes; those whose new length could not be written into the operand that holds it stay."""
    stuck = [axis is not None and not settable(step.view, step.node.inputs[index], i, lengths[i]) for i, axis in enumerate(axes)]
    step.pin(*(axis for axis, is_stuck in zip(axes, stuck, strict=True) if is_stuck))
    return [None if is_stuck else axis for axis, is_stuck in zip(axes, stuck, strict=True)]


def _or_fixed(step: Step, part: Axis, length: int) -> Array:
    """Units of a part of an axis; new ones that stay where it has none."""
    if part is not None:
        return part
    units = step.ties.fresh(length)
    step.pin(units)
    return units


def _takes_all(start: int, end: int, steps: Sequence[int] | None, place: int) -> bool:
    return start == 0 and end >= 2**31 - 1 and (steps is None or steps[place] == 1)


def _bounds(start: int, end: int, step: int) -> slice:
    """Python's slice; the smallest integers stand for "from before the first"."""
    return slice(start, None if step < 0 and end < -(2**31) + 1 else end, step)


LAYOUT: Mapping[str, Rule] = {
    "Transpose": transpose,
    "Concat": concat,
    "Split": split,
    "Slice": slice_,
    "Gather": gather,
    "Expand": expand,
    "ConstantOfShape": filled,
    "Tile": tile,
    "Pad": pad,
    "Resize": resize,
    "Upsample": resize,
    "DepthToSpace": depth_to_space,
    "Shape": shape,
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze"), reshape),
}
"""Rules by operator."""

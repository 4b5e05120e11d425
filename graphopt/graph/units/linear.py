"""Operators that sum over an axis: what they contract goes together, what they make is their weight's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from graphopt.graph.units.step import Axes, Rule, Step, UnknownError
from graphopt.graph.units.ties import Axis
from graphopt.graph.view import attribute


def conv(step: Step) -> Sequence[Axes]:
    """Channels in and out; a depthwise convolution ties both, a grouped one keeps its groups equal."""
    batch, channels, *spatial = step.axes()
    step.pin(*spatial)
    made, used, *kernel = step.axes(1)
    step.pin(*kernel)
    groups = attribute(step.node, "group", 1)
    out, width = step.length(1)[:2]
    if groups == 1:
        step.tie(channels, used)
    elif width == 1:
        made = step.tie(_repeated(channels, out // groups), made)
    else:
        step.tie(_by_group(step, channels, groups), used)
        _by_group(step, made, groups)
    return _with_bias(step, 2, [[batch, made, *[None] * len(spatial)]])


def conv_transpose(step: Step) -> Sequence[Axes]:
    """As a convolution, with the weight's first two axes in the other order."""
    batch, channels, *spatial = step.axes()
    step.pin(*spatial)
    used, made, *kernel = step.axes(1)
    step.pin(*kernel)
    groups = attribute(step.node, "group", 1)
    used = step.tie(channels, used)
    if groups > 1:
        step.pin(used, made)
        made = None
    return _with_bias(step, 2, [[batch, made, *[None] * len(spatial)]])


def gemm(step: Step) -> Sequence[Axes]:
    """Matrices, each perhaps transposed, and a bias that broadcasts."""
    a, b = list(step.axes(0)), list(step.axes(1))
    if attribute(step.node, "transA", 0):
        a.reverse()
    if attribute(step.node, "transB", 0):
        b.reverse()
    step.tie(a[1], b[0])
    made = [a[0], b[1]]
    if step.has(2):
        made = step.broadcast((made, step.out), (step.axes(2), step.length(2)), out=step.out)
    return [made]


def matmul(step: Step) -> Sequence[Axes]:
    """Stacks of matrices that broadcast; vectors lose the axis that was added for them."""
    a, b = list(step.axes(0)), list(step.axes(1))
    a_lengths, b_lengths = list(step.length(0)), list(step.length(1))
    if any(attribute(step.node, name, 0) for name in ("transBatchA", "transBatchB")):
        raise UnknownError
    for name, axes, lengths in (("transA", a, a_lengths), ("transB", b, b_lengths)):
        if attribute(step.node, name, 0):
            axes[-2:], lengths[-2:] = axes[:-3:-1], lengths[:-3:-1]
    is_row, is_column = len(a) == 1, len(b) == 1
    if is_row:
        a, a_lengths = [None, *a], [1, *a_lengths]
    if is_column:
        b, b_lengths = [*b, None], [*b_lengths, 1]
    step.tie(a[-1], b[-2])
    if not any(step.view.is_constant(step.node.inputs[index]) for index in (0, 1)):
        step.pin(a[-1], b[-2])  # products of two computed values: no weight takes up what would go
    batch_lengths = np.broadcast_shapes(tuple(a_lengths[:-2]), tuple(b_lengths[:-2]))
    batch = step.broadcast((a[:-2], a_lengths[:-2]), (b[:-2], b_lengths[:-2]), out=batch_lengths)
    return [[*batch, *([] if is_row else [a[-2]]), *([] if is_column else [b[-1]])]]


def einsum(step: Step) -> Sequence[Axes]:
    """Axes with the same letter go together; sums over letters that only one operand has stay."""
    terms, arrow, result = attribute(step.node, "equation", "").replace(" ", "").partition("->")
    operands = terms.split(",")
    if not arrow or "." in terms or any(len(set(operand)) < len(operand) for operand in operands):
        raise UnknownError
    letters: dict[str, Axis] = {}
    for index, operand in enumerate(operands):
        for letter, axis in zip(operand, step.axes(index), strict=True):
            letters[letter] = step.tie(letters[letter], axis) if letter in letters else axis
    for letter, axis in letters.items():
        if letter not in result and terms.count(letter) == 1:
            step.pin(axis)
    return [[letters[letter] for letter in result]]


def _with_bias(step: Step, index: int, made: list[list[Axis]]) -> Sequence[Axes]:
    if step.has(index):
        made[0][1] = step.tie(made[0][1], step.axes(index)[0])
    if step.has(index + 1):  # what com.microsoft::FusedConv adds
        made[0] = step.broadcast((made[0], step.out), (step.axes(index + 1), step.length(index + 1)), out=step.out)
    return made


def _repeated(axis: Axis, times: int) -> Axis:
    return None if axis is None else np.repeat(axis, times)


def _by_group(step: Step, axis: Axis, groups: int) -> Axis:
    """The units of the first group; those at the same place of the other groups go with them."""
    return None if axis is None else step.ties.tie_rows(axis.reshape(groups, -1).T)


LINEAR: Mapping[str, Rule] = {
    "Conv": conv,
    "com.microsoft::FusedConv": conv,
    "ConvTranspose": conv_transpose,
    "Gemm": gemm,
    "com.microsoft::FusedGemm": gemm,
    "MatMul": matmul,
    "com.microsoft::FusedMatMul": matmul,
    "Einsum": einsum,
}
"""Rules by operator."""

"""Rules that take shape arithmetic out of a graph: what follows from the lengths of the inputs is not computed at run time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from graphopt.graph.shapes import dims
from graphopt.graph.shapes.dims import Dim
from graphopt.graph.shapes.facts import Content
from graphopt.graph.view import View, attribute, input_of
from graphopt.passes.rules import Change, Miss, Rule, RulePass, rule
from graphopt.passes.shapes import vectors

BROADCASTING = (
    "Add", "Sub", "Mul", "Div", "Pow", "Mod", "Min", "Max", "Where", "And", "Or", "Xor",
    "Equal", "Less", "Greater", "LessOrEqual", "GreaterOrEqual",
)  # fmt: skip
ELEMENTWISE = ("Abs", "Cast", "Exp", "IsInf", "IsNaN", "Log", "Neg", "Not", "Reciprocal", "Sigmoid", "Sqrt", "Tanh")


def fold_known_content(node: ir.Node, view: View) -> Change | None:
    """Replaces a small tensor that follows from static lengths and constants with a constant.

    When every element of it (at most 64) is a known number. Exact; the nodes that computed it go.
    """
    if not _can_be_folded(node, view):
        return None
    result = node.outputs[0]
    if result.uses() and not result.is_graph_output() and all(_can_be_folded(use.node, view) for use in result.uses()):
        return None  # the constants further on do not need this one
    fact = view.shapes.fact(result)
    if fact.content is None or fact.dtype is None:
        return None
    array = np.array(fact.content.tolist(), dtype=fact.dtype.numpy()).reshape(fact.content.shape)
    return Change(lambda build: build.constant(array))


def _can_be_folded(node: ir.Node, view: View) -> bool:
    """Whether a node's only output is known; an Identity that gives a constant the name of an output is needed."""
    if len(node.outputs) != 1 or node.op_type == "Constant" or (node.op_type == "Identity" and node.outputs[0].is_graph_output()):
        return False
    content = view.shapes.content(node.outputs[0])
    return content is not None and _is_numbers(content)


def _is_numbers(content: Content) -> bool:
    return all(element is not None and not vectors.is_symbolic(element) for element in content.flat)


def make_reshape_target_constant(node: ir.Node, view: View) -> Change | Miss | None:
    """Replaces the computed target of a Reshape with a constant.

    The entries are 0 where the length is the input's, numbers where it is static, and at most one -1, which no other length
    that can be zero may stand beside (the runtime cannot solve it then), unless the computed target has it there too: then it
    stays, so that what refuses empty tensors still tells that there are none. Exact.
    """
    source, target = node.inputs[0], input_of(node, 1)
    if source is None or target is None or view.is_constant(target):
        return None
    before, after = view.shape(source), view.shape(node.outputs[0])
    if before is None or after is None:
        return None
    wanted = view.shapes.operands(node).dims(1)
    # With allowzero the runtime solves a -1 beside a length of 0 too, which it does not in the constant form.
    inferred = None if wanted is None or -1 not in wanted or attribute(node, "allowzero", 0) else wanted.index(-1)
    entries = _constant_target(before, after, inferred)
    if isinstance(entries, Miss):
        return entries
    return Change(lambda build: build.op("Reshape", source, build.constant(np.array(entries, np.int64))))


def _constant_target(before: Sequence[Dim], after: Sequence[Dim], inferred: int | None) -> list[int] | Miss:
    """A constant target that gives the same shape; ``inferred`` is where the node itself has a -1."""
    entries: list[int] = []
    for axis, dim in enumerate(after):
        if axis < len(before) and dim == before[axis]:
            entries.append(dim if isinstance(dim, int) and dim else 0)
        elif isinstance(dim, int):
            if dim == 0:
                return Miss("a length is zero where the input's is not")
            entries.append(dim)
        else:
            entries.append(-1)
    if inferred is not None and 0 in entries and -1 not in entries:
        entries[inferred] = -1
    if entries.count(-1) > 1:
        return Miss("more than one length depends on the inputs")
    if -1 in entries and entries.index(-1) != inferred:
        rest = [dim for axis, dim in enumerate(after) if axis != entries.index(-1)]
        if not all(dims.at_least(dim, 1) for dim in rest):
            return Miss("-1 cannot be solved where another length is zero")
    return entries


def transpose_before_merging_axes(node: ir.Node, view: View) -> Change | None:
    """Replaces Reshape, Transpose, Reshape with a Transpose, or with a Transpose and a Reshape.

    When the first Reshape only merges axes, and so moves them together. Exact; one or two copies less.
    """
    transpose = view.producer(node.inputs[0], "Transpose")
    merge = None if transpose is None else view.producer(transpose.inputs[0], "Reshape")
    if transpose is None or merge is None or any(view.only_use(n.outputs[0]) is None for n in (transpose, merge)):
        return None
    source, after = merge.inputs[0], view.shape(node.outputs[0])
    groups = _merged_axes(view.shape(source), view.shape(merge.outputs[0]))
    if source is None or groups is None or after is None:
        return None
    order = [axis for group in attribute(transpose, "perm", tuple(reversed(range(len(groups))))) for axis in groups[group]]
    moved = [(view.shape(source) or ())[axis] for axis in order]
    entries = _constant_target(moved, after, None)
    if tuple(moved) == tuple(after):
        return Change(lambda build: build.op("Transpose", source, perm=order))
    if isinstance(entries, Miss):
        return None
    return Change(lambda build: build.op("Reshape", build.op("Transpose", source, perm=order), build.constant(np.array(entries, np.int64))))


def _merged_axes(before: Sequence[Dim] | None, after: Sequence[Dim] | None) -> list[list[int]] | None:
    """The axes that each axis of ``after`` consists of, or None where it does not consist of whole axes of ``before``."""
    if before is None or after is None:
        return None
    groups: list[list[int]] = []
    axis = 0
    for length in after:
        group: list[int] = []
        while axis < len(before) and (not group or dims.product(before[a] for a in group) != length):
            group.append(axis)
            axis += 1
        if not group or dims.product(before[a] for a in group) != length:
            return None
        groups.append(group)
    while axis < len(before) and before[axis] == 1 and groups:
        groups[-1].append(axis)
        axis += 1
    return groups if axis == len(before) else None


def drop_expand_before_broadcast(node: ir.Node, view: View) -> Change | None:
    """Replaces the operand Expand(x) of a broadcasting operator with x.

    When the operator broadcasts x to the same result anyway. Exact; one copy less.
    """
    inputs = list(node.inputs)
    for index, value in enumerate(inputs):
        expand = view.producer(value, "Expand")
        source = None if expand is None else expand.inputs[0]
        if source is None:
            continue
        changed = [*inputs[:index], source, *inputs[index + 1 :]]
        shape = _broadcast([view.shape(operand) for operand in changed])
        if shape is not None and shape == view.shape(node.outputs[0]):
            return Change(lambda build, changed=changed: build.copy(node, *changed))  # type: ignore[misc]
    return None


def move_expand_behind_elementwise(node: ir.Node, view: View) -> Change | None:
    """Replaces f(Expand(x)) with Expand(f(x)), f elementwise.

    When nobody else uses the Expand. Exact; f works on fewer elements, and the Expand may prove useless further on.
    """
    inputs = list(node.inputs)
    for index, value in enumerate(inputs):
        expand = view.producer(value, "Expand")
        if expand is None or value is None or view.only_use(value) is not node or len(node.outputs) != 1:
            continue
        source, target = expand.inputs[0], expand.inputs[1]
        if source is None or target is None:
            continue
        changed = [*inputs[:index], source, *inputs[index + 1 :]]
        small, wanted = _broadcast([view.shape(operand) for operand in changed]), view.shapes.operands(expand).dims(1)
        if small is None or wanted is None or any(dim is None or not dims.at_least(dim, 0) for dim in wanted):
            continue
        if _broadcast([small, [dim for dim in wanted if dim is not None]]) == view.shape(node.outputs[0]):
            return Change(lambda build, changed=changed, target=target: build.op("Expand", build.copy(node, *changed)[0], target))  # type: ignore[misc]
    return None


def _broadcast(shapes: Sequence[Sequence[Dim] | None]) -> tuple[Dim, ...] | None:
    """The shape that operands broadcast to, or None where that is not certain."""
    known = [shape for shape in shapes if shape is not None]
    if len(known) < len(shapes):
        return None
    result: list[Dim] = []
    for axis in range(-max(map(len, known)), 0):
        length: Dim | None = 1
        for shape in known:
            if -axis <= len(shape) and length is not None:
                length = dims.broadcast(length, shape[axis])
        if length is None:
            return None
        result.append(length)
    return tuple(result)


def read_lengths_directly(node: ir.Node, view: View) -> Change | Miss | None:
    """Replaces the arithmetic behind a scalar or vector of lengths with as few nodes as possible.

    Parts of Shape (from opset 15 on), of the model's inputs where they have the lengths, joined by Concat. Exact.
    """
    if len(node.outputs) != 1 or not _is_root(node.outputs[0], view):
        return None
    fact = view.shapes.fact(node.outputs[0])
    content = fact.content
    if content is None or content.ndim > 1 or fact.dtype not in (ir.DataType.INT64, ir.DataType.INT32):
        return None
    if view.opset < 15:
        return Miss("Shape with start and end needs opset 15")
    behind = vectors.arithmetic_behind(node.outputs[0], view.shapes)
    read = [n.inputs[0] for n in behind if n.op_type in ("Shape", "Size") and n.inputs[0] is not None]
    plan = vectors.plan_vector(list(content.reshape(-1)), vectors.sources_of([*view.shapes.inputs, *read], view.shapes))
    if plan is None:
        return Miss("a length is no sum or product of lengths that can be read")
    if content.ndim == 0:
        plan = vectors.Call("Squeeze", (plan,))
    if fact.dtype == ir.DataType.INT32:
        plan = vectors.Call("Cast", (plan,), fact.dtype)
    if vectors.cost(plan) > len(behind) or vectors.matches(plan, node.outputs[0], view):
        return None
    return Change(lambda build: vectors.emit(plan, build))


def _is_root(value: ir.Value, view: View) -> bool:
    """Whether a value holds lengths, all followed, and some user does more with it than arithmetic that is followed too."""
    content = view.shapes.content(value)
    if content is None or not vectors.is_known(content) or _is_numbers(content):
        return False
    made = [output for use in value.uses() for output in use.node.outputs]
    return value.is_graph_output() or not all(vectors.is_known(view.shapes.content(output)) for output in made)


class ShapesPass(RulePass):
    """Replaces shape arithmetic with constants, or with as few Shape nodes as possible.

    Applies wherever lengths follow symbolically from those of the inputs. Exact: element values do not change.
    """

    name: ClassVar[str] = "shapes"
    rules: ClassVar[tuple[Rule, ...]] = (
        rule(fold_known_content, "*"),
        rule(make_reshape_target_constant, "Reshape"),
        rule(drop_expand_before_broadcast, *BROADCASTING),
        rule(move_expand_behind_elementwise, *BROADCASTING, *ELEMENTWISE),
        rule(transpose_before_merging_axes, "Reshape"),
        rule(read_lengths_directly, "*"),
    )

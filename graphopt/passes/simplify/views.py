"""Rules that merge and cancel operators which only look at the same elements in another way: Reshape, Transpose and their kin."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import onnx_ir as ir

from graphopt.graph.edits import Builder
from graphopt.graph.forms import reshape
from graphopt.graph.shapes import dims
from graphopt.graph.shapes.dims import Dim
from graphopt.graph.view import View, attribute, input_of
from graphopt.passes.rules import Change, Miss, rule
from graphopt.passes.simplify.identities import keep

RESHAPES = ("Reshape", "Flatten", "Squeeze", "Unsqueeze")
"""Operators that keep the elements and their order."""

UNARY = frozenset(
    """
    Abs Acos Asin Atan Cast Ceil Celu Clip Cos Dropout Elu Erf Exp Floor Gelu HardSigmoid HardSwish Identity IsInf IsNaN LeakyRelu
    Log Mish Neg Not Reciprocal Relu Round Selu Sigmoid Sign Sin Softplus Softsign Sqrt Tan Tanh ThresholdedRelu
    """.split()
)
"""Operators that work on each element of their first input alone; any further inputs are scalars."""

BINARY = frozenset("Add Sub Mul Div Pow Min Max And Or Equal Less Greater LessOrEqual GreaterOrEqual".split())
"""Operators that work on pairs of elements, with broadcasting."""

_LONGEST_CHAIN = 8


def drop_reshape(node: ir.Node, view: View) -> Change | None:
    """Replaces Reshape, Flatten, Squeeze or Unsqueeze with its input.

    When the shape, symbolic lengths included, stays the same. Exact; one node less.
    """
    value, shape = node.inputs[0], view.shape(node.outputs[0])
    return keep(value) if value is not None and shape is not None and view.shape(value) == shape else None


def merge_reshapes(node: ir.Node, view: View) -> Change | Miss | None:
    """Replaces Reshape, Flatten, Squeeze or Unsqueeze of another one of them with one Reshape of the first one's input.

    When the final shape can be written as a constant, or the outer one is a Reshape that copies no length. Exact.
    """
    merged = list(_reshapes_from(node, view))
    root, shape = merged[-1].inputs[0], view.shape(node.outputs[0])
    if len(merged) < 2 or root is None or shape is None:
        return None
    if view.shape(root) == shape:
        return keep(root)
    target = constant_target(view.shape(root), shape)
    if target is not None and _can_be_solved(target, shape, merged, view):
        return Change(lambda op: reshape(op, root, target))
    if node.op_type == "Reshape" and _copies_no_length(node, view):
        return Change(lambda op: op.copy(node, root, node.inputs[1]))
    return Miss("the final shape cannot be written as a constant")


def constant_target(source: Sequence[Dim] | None, shape: Sequence[Dim]) -> list[int] | None:
    """The target of a Reshape from one shape to another: 0 where a length is the source's, at most one -1; None if there is none."""
    target: list[int] = []
    for axis, dim in enumerate(shape):
        if isinstance(dim, int) and dim > 0:
            target.append(dim)
        elif source is not None and axis < len(source) and source[axis] == dim:
            target.append(0)
        elif -1 not in target and not isinstance(dim, int):
            target.append(-1)
        else:
            return None
    return target


def _can_be_solved(target: Sequence[int], shape: Sequence[Dim], merged: Sequence[ir.Node], view: View) -> bool:
    """Whether a -1 can be solved for all lengths for which the merged nodes could be run: the runtime cannot where another one is zero."""
    if -1 not in target:
        return True
    empty = {dim for axis, dim in enumerate(shape) if target[axis] != -1 and not dims.at_least(dim, 1)}
    for node in merged:
        wanted = view.shapes.operands(node).dims(1) if node.op_type == "Reshape" else None
        before = view.shape(node.outputs[0])
        if wanted is not None and before is not None and -1 in wanted:
            empty -= {dim for axis, dim in enumerate(before) if axis != wanted.index(-1)}
    return not empty


def _reshapes_from(node: ir.Node, view: View) -> Iterator[ir.Node]:
    """A reshaping node and the ones before it."""
    found: ir.Node | None = node
    while found is not None:
        yield found
        found = view.producer(found.inputs[0], *RESHAPES)


def drop_transpose(node: ir.Node, view: View) -> Change | None:
    """Replaces a Transpose that leaves each axis where it is with its input.

    Exact; one copy less.
    """
    perm, value = perm_of(node, view), node.inputs[0]
    return keep(value) if value is not None and perm is not None and perm == tuple(range(len(perm))) else None


def merge_transposes(node: ir.Node, view: View) -> Change | None:
    """Replaces Transpose(Transpose(x)) with one Transpose, or with x.

    Exact; one copy less where the inner one has no other use.
    """
    inner = view.producer(node.inputs[0], "Transpose")
    if inner is None or inner.inputs[0] is None:
        return None
    value, outer_perm, inner_perm = inner.inputs[0], perm_of(node, view), perm_of(inner, view)
    if outer_perm is None or inner_perm is None:
        return None
    perm = tuple(inner_perm[axis] for axis in outer_perm)
    if perm == tuple(range(len(perm))):
        return keep(value)
    return Change(lambda op: op.op("Transpose", value, perm=perm))


def cancel_around_elementwise(node: ir.Node, view: View) -> Change | None:
    """Replaces Transpose(f(Transpose(x))) and Reshape(f(Reshape(x))) with f(x).

    When the outer one undoes the inner one and f is a chain of elementwise operators, each with no other use, whose
    other operands are constants of one element. Exact; two copies less.
    """
    kinds = ("Transpose",) if node.op_type == "Transpose" else RESHAPES
    chain = list(_elementwise_chain(node.inputs[0], view))
    if not chain:
        return None
    inner = view.producer(chain[-1][0].inputs[chain[-1][1]], *kinds)
    root = None if inner is None else inner.inputs[0]
    if inner is None or root is None or not _undoes(node, inner, view):
        return None
    if view.rank(root) == 0:  # an operand of shape [1] would raise its rank
        return None

    def build(op: Builder) -> ir.Value:
        value = root
        for member, position in reversed(chain):
            value = op.copy(member, *(value if index == position else other for index, other in enumerate(member.inputs)))[0]
        return value

    return Change(build)


def perm_of(node: ir.Node, view: View) -> tuple[int, ...] | None:
    """The permutation of a Transpose; reversed axes where none is written; None where that needs an unknown rank."""
    perm: tuple[int, ...] = attribute(node, "perm", ())
    rank = view.rank(node.inputs[0])
    if perm or rank is None:
        return perm or None
    return tuple(reversed(range(rank)))


def _undoes(outer: ir.Node, inner: ir.Node, view: View) -> bool:
    """Whether the elements end up in the shape and order that they had before ``inner``."""
    if outer.op_type == "Transpose":
        first, second = perm_of(inner, view), perm_of(outer, view)
        return first is not None and second is not None and tuple(first[axis] for axis in second) == tuple(range(len(first)))
    shape = view.shape(outer.outputs[0])
    return shape is not None and shape == view.shape(inner.inputs[0])


def _elementwise_chain(value: ir.Value | None, view: View) -> Iterator[tuple[ir.Node, int]]:
    """Elementwise nodes from a value upwards, each the only user of the next, with the position of the input that is followed."""
    for _ in range(_LONGEST_CHAIN):
        node = None if value is None else value.producer()
        if value is None or node is None or not view.is_private(value) or node.domain not in ("", "ai.onnx"):
            return
        if node.op_type in UNARY and len(node.outputs) == 1:
            position = 0
        elif node.op_type in BINARY and any(_is_single(operand, view) for operand in node.inputs):
            position = 1 if _is_single(node.inputs[0], view) else 0
        else:
            return
        if not view.is_private(node.outputs[0]):
            return
        yield node, position
        value = node.inputs[position]


def _is_single(value: ir.Value | None, view: View) -> bool:
    """Whether a value is a constant with one element that does not raise the rank of what it meets."""
    return value is not None and view.is_constant(value) and view.static_shape(value) in ((), (1,))


def _copies_no_length(node: ir.Node, view: View) -> bool:
    """Whether the target of a Reshape surely holds no 0 that copies a length of its input."""
    if attribute(node, "allowzero", 0):
        return True
    target = input_of(node, 1)
    content = None if target is None else view.shapes.content(target)
    return content is not None and all(element is not None and (not isinstance(element, int) or element != 0) for element in content.flat)


RULES = (
    rule(drop_reshape, *RESHAPES),
    rule(merge_reshapes, *RESHAPES),
    rule(drop_transpose, "Transpose"),
    rule(merge_transposes, "Transpose"),
    rule(cancel_around_elementwise, "Transpose", *RESHAPES),
)
"""The table of this module."""

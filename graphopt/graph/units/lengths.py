"""Lengths that stand in constants: where the length of an axis is written, so that it can be written anew."""

from __future__ import annotations

import onnx_ir as ir

from graphopt.graph.view import View, operator_of

_FROM_INPUT = (0, -1)
"""What Reshape writes for "as before" and "what is left": these follow by themselves."""


def settable(view: View, target: ir.Value | None, index: int, length: int) -> bool:
    """Whether one element of a vector of lengths follows a change by itself, or stands in a constant."""
    found = holder(view, target, index)
    if found is None:
        return False
    content = view.integers(found[0])
    return content is not None and content[found[1]] in (*_FROM_INPUT, 1, length)


def holder(view: View, target: ir.Value | None, index: int) -> tuple[ir.Value, int] | None:
    """The constant that holds one element of a vector, and where; None where it is computed.

    Args:
        view: of the model.
        target: the vector.
        index: of the element.
    """
    if target is None:
        return None
    content = view.integers(target)
    if content is not None:
        return (target, index) if index < len(content) else None
    node = target.producer()
    if node is None or operator_of(node) != "Concat":
        return None
    for part in node.inputs:
        lengths = None if part is None else view.static_shape(part)
        if part is None or lengths is None or len(lengths) != 1:
            return None
        if index < lengths[0]:
            return holder(view, part, index)
        index -= lengths[0]
    return None

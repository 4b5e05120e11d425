"""Putting new values in the place of a node, as a pass does that is no table of rules."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from graphopt.graph.edits import Builder, can_stand_for, remove_dead, remove_node, replace_value


def take_place(anchor: ir.Node, new: Sequence[ir.Value], builder: Builder) -> tuple[str, ...]:
    """Lets values take the place of a node's outputs; removes the node, and what only it needed.

    Args:
        anchor: the node.
        new: one value for each of its outputs; they take over the names too.
        builder: has made them.

    Returns:
        The names of the nodes that went.
    """
    for old, value in zip(anchor.outputs, new, strict=True):
        _stand_in(old, value, builder)
    gone = [anchor, *remove_dead(remove_node(anchor)).nodes]
    return tuple(node.name or "" for node in gone)


def take_place_of_constant(old: ir.Value, new: ir.Value) -> None:
    """Lets a value take the place of a constant in all its uses; the constant goes.

    Args:
        old: an initializer, or the output of a Constant node, and no graph output.
        new: of its type and shape.
    """
    replace_value(old, new)
    remove_dead([old])


def _stand_in(old: ir.Value, new: ir.Value, builder: Builder) -> None:
    if not can_stand_for(old, new):
        new = builder.op("Identity", new)
    name, keeps_name = old.name or "", not old.is_graph_output()
    replace_value(old, new)
    if keeps_name and name:
        old.name, new.name = f"{name}/replaced", name

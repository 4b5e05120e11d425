"""Rules that drop operators which change nothing, and branches that are never taken."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphopt.graph.edits import Builder, can_stand_for
from graphopt.graph.forms import pads_of
from graphopt.graph.view import View, attribute, input_of
from graphopt.passes.rules import Change, Miss, rule

_NEUTRAL: dict[str, tuple[float, tuple[int, ...]]] = {
    "Add": (0, (0, 1)),
    "Sub": (0, (1,)),
    "Mul": (1, (0, 1)),
    "Div": (1, (1,)),
    "Pow": (1, (1,)),
    "And": (1, (0, 1)),
    "Or": (0, (0, 1)),
}
"""The element that changes nothing, and the inputs at which it may stand."""


def keep(value: ir.Value) -> Change:
    """The change that lets an existing value stand for the anchor's only output that is used."""
    return Change(lambda _: (value,))


def drop_identity(node: ir.Node, _: View) -> Change | None:
    """Replaces Identity(x) with x.

    When x can take over the name where the result is a graph output. Exact; one copy less.
    """
    value = node.inputs[0]
    return keep(value) if value is not None and can_stand_for(node.outputs[0], value) else None


def drop_dropout(node: ir.Node, view: View) -> Change | Miss | None:
    """Replaces Dropout(x) with x.

    When it does not train and nobody reads its mask. Exact; one node less.
    """
    value = node.inputs[0]
    if value is None:
        return None
    training = input_of(node, 2)
    if training is not None and view.scalar(training) != 0:
        return Miss("it trains, or may train: training_mode is not constantly false")
    if any(output.uses() or output.is_graph_output() for output in node.outputs[1:]):
        return Miss("its mask is used")
    return Change(lambda _: (value, *(None for _ in node.outputs[1:])))


def drop_neutral_operand(node: ir.Node, view: View) -> Change | Miss | None:
    """Replaces x + 0, x - 0, x * 1, x / 1, x ** 1, x and true, x or false with x.

    When the constant does not widen the shape of x. Exact but for -0 + 0, which stays -0; one node less.
    """
    neutral, positions = _NEUTRAL[node.op_type]
    for position in positions:
        constant, value = node.inputs[position], node.inputs[1 - position]
        if constant is None or value is None or not _is_filled_with(constant, neutral, view):
            continue
        if not fits_into(constant, value, view):
            return Miss(f"the constant {constant.name} may widen the shape")
        return keep(value)
    return None


def drop_cast(node: ir.Node, view: View) -> Change | None:
    """Replaces Cast(x) and CastLike(x, y) with x.

    When x has that element type already. Exact; one copy less.
    """
    value = node.inputs[0]
    target = view.dtype(node.inputs[1]) if node.op_type == "CastLike" else ir.DataType(attribute(node, "to", 0))
    return keep(value) if value is not None and target is not None and view.dtype(value) == target else None


def drop_single_input(node: ir.Node, view: View) -> Change | None:
    """Replaces Concat, Sum, Max, Min and Mean of one input, and Split into one part, with the input.

    Exact; one copy less.
    """
    value = node.inputs[0]
    if value is None or len(node.outputs) != 1 or (len(node.inputs) != 1 and node.op_type != "Split"):
        return None
    return keep(value) if node.op_type != "Split" or view.shape(value) == view.shape(node.outputs[0]) else None


def drop_same_shape(node: ir.Node, view: View) -> Change | None:
    """Replaces Expand and Tile with their input.

    When the shape, symbolic lengths included, stays the same. Exact; one copy less.
    """
    value, shape = node.inputs[0], view.shape(node.outputs[0])
    return keep(value) if value is not None and shape is not None and view.shape(value) == shape else None


def drop_empty_pad(node: ir.Node, view: View) -> Change | None:
    """Replaces a Pad by zero everywhere with its input.

    Exact; one copy less.
    """
    pads, value = pads_of(node, view), node.inputs[0]
    return keep(value) if value is not None and pads and not any(pads) else None


def drop_resize(node: ir.Node, view: View) -> Change | None:
    """Replaces a Resize or Upsample to the size that there is with its input.

    When all scales are 1, or the sizes asked for are the input's. Exact; one copy less.
    """
    value = node.inputs[0]
    if value is None or attribute(node, "coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize":
        return None
    shape = view.shape(value)
    if input_of(node, 3) is not None:
        unchanged = shape is not None and shape == view.shape(node.outputs[0])
    else:
        scales = view.constant(input_of(node, 1 if node.op_type == "Upsample" or view.opset < 11 else 2))
        given = attribute(node, "scales", ()) if scales is None else tuple(scales.reshape(-1))
        unchanged = bool(given) and all(scale == 1 for scale in given)
    return keep(value) if unchanged else None


def choose_constant_where(node: ir.Node, view: View) -> Change | Miss | None:
    """Replaces Where(condition, a, b) with a or with b.

    When the condition is constant and the same everywhere, or a is b, and the shape of the choice is the result's. Exact.
    """
    condition, first, second = node.inputs
    if condition is None or first is None or second is None:
        return None
    found = view.constant(condition)
    if first is second:
        choice = first
    elif found is not None and found.size and (found.all() or not found.any()):
        choice = first if found.all() else second
    else:
        return None
    shape = view.shape(node.outputs[0])
    if shape is None or view.shape(choice) != shape:
        return Miss("the choice may have a smaller shape than the result")
    return keep(choice)


def inline_taken_branch(node: ir.Node, view: View) -> Change | None:
    """Replaces If with the nodes of the branch that is taken.

    When the condition is constant. Exact; the other branch goes with its weights.
    """
    condition = view.constant(node.inputs[0])
    if condition is None or condition.size != 1:
        return None
    branch = node.attributes["then_branch" if condition.reshape(())[()] else "else_branch"].as_graph()

    def build(op: Builder) -> list[ir.Value]:
        outputs = list(branch.outputs)
        branch.outputs.clear()
        op.move(branch)
        return outputs

    return Change(build)


def fits_into(small: ir.Value, large: ir.Value, view: View) -> bool:
    """Whether ``small`` broadcast against ``large`` surely has the shape of ``large``."""
    a, b = view.shape(small), view.shape(large)
    if a is None or b is None:
        return a == ()
    return len(a) <= len(b) and all(x in (1, y) for x, y in zip(reversed(a), reversed(b), strict=False))


def _is_filled_with(value: ir.Value, number: float, view: View) -> bool:
    """Whether a constant consists of one number; looks at its first element before it reads the rest."""
    if not view.is_constant(value):
        return False
    found = view.constant(value)
    return found is not None and found.size > 0 and bool(found.flat[0] == number) and bool(np.all(found == number))


RULES = (
    rule(drop_identity, "Identity"),
    rule(drop_dropout, "Dropout"),
    rule(drop_neutral_operand, *_NEUTRAL),
    rule(drop_cast, "Cast", "CastLike"),
    rule(drop_single_input, "Concat", "Sum", "Max", "Min", "Mean", "Split"),
    rule(drop_same_shape, "Expand", "Tile"),
    rule(drop_empty_pad, "Pad"),
    rule(drop_resize, "Resize", "Upsample"),
    rule(choose_constant_where, "Where"),
    rule(inline_taken_branch, "If"),
)
"""The table of this module."""

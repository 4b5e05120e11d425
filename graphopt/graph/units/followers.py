"""Followers: attributes and constants that count channels or name them by number, written anew when some go."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx_ir as ir

from graphopt.graph.units.cut import Cut
from graphopt.graph.units.lengths import holder
from graphopt.graph.view import attribute, operator_of

_HEADS = (("num_heads", 0), ("q_num_heads", 0), ("kv_num_heads", 1))
"""Attributes that count heads, and the input whose heads they count."""


def groups(cut: Cut, node: ir.Node) -> None:
    """A depthwise convolution has as many groups as channels."""
    axes = cut.axes(node.inputs[0])
    kept = cut.kept(axes[1]) if len(axes) > 1 else None
    count = attribute(node, "group", 1)
    if kept is None or count == 1 or axes[1] is None or count != axes[1].size:
        return
    node.attributes["group"] = ir.AttrInt64("group", kept.size)


def parts(cut: Cut, node: ir.Node) -> None:
    """The lengths that Split makes."""
    axes = cut.axes(node.inputs[0])
    axis = attribute(node, "axis", 0) % max(len(axes), 1)
    if not axes or cut.kept(axes[axis]) is None:
        return
    made = [cut.axes(value)[axis] for value in node.outputs]
    lengths = [cut.length(units) for units in made if units is not None]
    if cut.view.opset < 13:
        node.attributes["split"] = ir.AttrInt64s("split", lengths)
    else:
        node.attributes.pop("num_outputs", None)
        cut.put(node, 1, np.array(lengths, np.int64))


def bounds(cut: Cut, node: ir.Node) -> None:
    """The bounds of Slice move by what goes before them."""
    axes = cut.axes(node.inputs[0])
    if not any(cut.kept(axis) is not None for axis in axes):
        return
    if len(node.inputs) > 1:
        starts, ends = (list(cut.view.integers(node.inputs[index]) or ()) for index in (1, 2))
        chosen = cut.view.integers(node.inputs[3]) if len(node.inputs) > 3 else tuple(range(len(starts)))
    else:
        starts, ends = (list(attribute(node, name, ())) for name in ("starts", "ends"))
        chosen = attribute(node, "axes", tuple(range(len(starts))))
    changed = False
    for place, axis in enumerate(index % len(axes) for index in chosen or ()):
        units = axes[axis]
        if units is None or cut.kept(units) is None:
            continue
        low, high, _ = slice(starts[place], ends[place]).indices(units.size)
        stays = cut.stays(units)
        starts[place], ends[place], changed = int(stays[:low].sum()), int(stays[:high].sum()), True
    if changed and len(node.inputs) > 1:
        for index, array in ((1, starts), (2, ends)):
            cut.put(node, index, np.array(array, np.int64))
    elif changed:
        node.attributes["starts"], node.attributes["ends"] = ir.AttrInt64s("starts", starts), ir.AttrInt64s("ends", ends)


def indices(cut: Cut, node: ir.Node) -> None:
    """The indices that Gather selects: those that stay, counted anew."""
    axes = cut.axes(node.inputs[0])
    units = axes[attribute(node, "axis", 0) % len(axes)] if axes else None
    chosen = cut.view.constant(node.inputs[1])
    if units is None or cut.kept(units) is None or chosen is None:
        return
    stays = cut.stays(units)
    wanted = chosen.astype(np.int64) % units.size
    cut.put(node, 1, (np.cumsum(stays) - 1)[wanted[stays[wanted]] if wanted.ndim else wanted].astype(chosen.dtype))


def lengths(cut: Cut, node: ir.Node) -> None:
    """Lengths that Reshape, Expand, Resize and ConstantOfShape are told."""
    index = {"Resize": 3, "ConstantOfShape": 0}.get(node.op_type, 1)
    for axis, units in enumerate(cut.axes(node.outputs[0])):
        if units is None or cut.kept(units) is None or index >= len(node.inputs):
            continue
        found = holder(cut.view, node.inputs[index], axis)
        content = list(cut.view.integers(found[0]) or ()) if found is not None else []
        if found is not None and content[found[1]] not in (0, 1, -1):
            content[found[1]] = cut.length(units)
            _write(cut, node, index, axis, np.array(content, np.int64))


def _write(cut: Cut, node: ir.Node, index: int, element: int, array: np.ndarray[tuple[int, ...], np.dtype[np.int64]]) -> None:
    """Puts a vector of lengths where the one stands that holds an element: at the node itself, or at a part of the Concat before it."""
    value = node.inputs[index]
    joined = None if value is None else value.producer()
    if value is None or joined is None or operator_of(joined) != "Concat":
        cut.put(node, index, array)
        return
    if len(value.uses()) > 1:
        joined = cut.copy_of(joined, node)
        node.replace_input_with(index, joined.outputs[0])
    for place, part in enumerate(joined.inputs):
        size = (cut.view.static_shape(part) or (0,))[0]
        if element < size:
            _write(cut, joined, place, element, array)
            return
        element -= size


def heads(cut: Cut, node: ir.Node) -> None:
    """The numbers of heads of fused attention."""
    for name, index in _HEADS:
        packed = operator_of(node) == "com.microsoft::Attention"
        axes = cut.axes(node.outputs[0] if packed else node.inputs[index])
        units = axes[-1] if len(axes) == 3 else None
        count = attribute(node, name, 0)
        if count and units is not None and cut.kept(units) is not None:
            node.attributes[name] = ir.AttrInt64(name, count * cut.length(units) // units.size)


_ATTENTION = (
    *("Attention", "RotaryEmbedding", "com.microsoft::RotaryEmbedding", "com.microsoft::MultiHeadAttention"),
    *("com.microsoft::GroupQueryAttention", "com.microsoft::Attention"),
)

FOLLOWERS: Mapping[str, Callable[[Cut, ir.Node], None]] = {
    "Conv": groups,
    "com.microsoft::FusedConv": groups,
    "Split": parts,
    "Slice": bounds,
    "Gather": indices,
    **dict.fromkeys(("Reshape", "Expand", "Resize", "ConstantOfShape"), lengths),
    **dict.fromkeys(_ATTENTION, heads),
}
"""By operator."""

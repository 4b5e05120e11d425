"""Quantization taken out of a model, so that other passes can start from float."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from graphopt import ledger
from graphopt.graph.edits import Builder, Names, all_nodes, remove_dead, remove_node, replace_value
from graphopt.graph.view import View, attribute, input_of, operator_of
from graphopt.passes.base import Context, GuidedPass, Role
from graphopt.passes.quantize.existing import DEQUANTIZE, QUANTIZE, Island, grid_of, island_of
from graphopt.passes.quantize.replacing import take_place

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class StripQuantization(GuidedPass):
    """Replaces pairs of QuantizeLinear and DequantizeLinear with nothing, and dequantized constants with float ones.

    Applies to pairs with one scale and the same one at both ends. Where the codes end at zero, as they do after a ReLU that the
    quantizer dropped, a Clip keeps that bound. Approximate: the rounding of data goes, that of weights stays. The result is a float
    model that other passes can start from; its file is larger than the quantized one unless they shrink it.
    """

    name: ClassVar[str] = "strip-quantization"
    role: ClassVar[Role] = "approximate"

    def run(self, model: ir.Model, context: Context) -> bool:
        """Strips all pairs and constants."""
        view, names, changed = View(model), Names(model), False
        for node in list(all_nodes(model)):
            if operator_of(node) in DEQUANTIZE and view.is_constant(node.inputs[0]):
                changed |= self._strip_constant(node, view, names)
        for node in list(all_nodes(model)):
            if operator_of(node) in QUANTIZE:
                changed |= self._strip_data(node, view, names)
        return changed

    def _strip_constant(self, node: ir.Node, view: View, names: Names) -> bool:
        key = ledger.Key(self.name, "", node.name or "")
        array = _dequantized(node, view)
        if array is None:
            ledger.miss(key, "its scale or zero point is not constant")
            return False
        if not ledger.allow(key):
            return False
        builder = Builder(node, names)
        codes = node.inputs[0]
        removed = take_place(node, [builder.constant(array, codes.name or "" if codes is not None else "")], builder)
        ledger.record(ledger.Rewrite(key, removed, tuple(one.name or "" for one in builder.added)))
        return True

    def _strip_data(self, node: ir.Node, view: View, names: Names) -> bool:
        key = ledger.Key(self.name, "", node.name or "")
        island = island_of(node)
        obstacle = island.obstacle or ("" if _is_uniform(island, view) else "its scales differ, or are not one constant")
        if obstacle:
            ledger.miss(key, obstacle)
            return False
        if not ledger.allow(key):
            return False
        data = node.inputs[0]
        assert data is not None, "QuantizeLinear has data"
        builder = Builder(node, names)
        bounds = _bounds(node, view)
        if bounds is not None and not view.is_constant(data):
            dtype = np.dtype((view.dtype(data) or ir.DataType.FLOAT).numpy())
            data = builder.op("Clip", data, *(builder.constant(np.array(bound, dtype)) for bound in bounds))
        removed = _remove_pair(island, data)
        ledger.record(ledger.Rewrite(key, removed, tuple(one.name or "" for one in builder.added)))
        return True


def _remove_pair(island: Island, data: ir.Value) -> tuple[str, ...]:
    """Lets numbers flow where codes did; returns the names of the nodes that went."""
    for output in (output for node in island.inner for output in node.outputs):
        output.type = data.type
    start = island.start.outputs[0]
    start.type, start.shape = data.type, data.shape
    replace_value(start, data)
    for end in island.ends:
        codes = end.inputs[0]
        assert codes is not None, "DequantizeLinear has codes"
        _pass_on(end, codes)
    gone = (*island.ends, island.start)
    for node in gone:
        remove_dead(remove_node(node))
    return tuple(node.name or "" for node in gone)


def _pass_on(end: ir.Node, value: ir.Value) -> None:
    """Lets a value take the place of a node's output; by an Identity where the output's name must stay."""
    old = end.outputs[0]
    if old.is_graph_output():
        identity = ir.node("Identity", [value], name=f"{end.name}/Identity")
        assert end.graph is not None, "it stands in a graph"
        end.graph.insert_before(end, identity)
        value = identity.outputs[0]
    replace_value(old, value)


def _is_uniform(island: Island, view: View) -> bool:
    """Whether one scale and one zero point hold from the start of an island to its ends."""
    first = grid_of(island.start, view)
    return first is not None and all(grid_of(end, view) == first for end in island.ends)


def _bounds(node: ir.Node, view: View) -> tuple[float, float] | None:
    """The numbers at both ends of the codes, where one of them is zero; else None."""
    grid, dtype = grid_of(node, view), view.dtype(node.outputs[0]) or view.dtype(input_of(node, 2))
    if grid is None or dtype not in (ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT16, ir.DataType.UINT16):
        return None
    limits = np.iinfo(dtype.numpy())
    low, high = ((end - grid[1]) * grid[0] for end in (limits.min, limits.max))
    return (low, high) if low == 0 or high == 0 else None


def _dequantized(node: ir.Node, view: View) -> Array | None:
    """The numbers that a DequantizeLinear makes of constants; None where one of them is not constant."""
    codes, scale = view.constant(node.inputs[0]), view.constant(node.inputs[1])
    given = input_of(node, 2)
    zero_point = None if given is None else view.constant(given)
    if codes is None or scale is None or (given is not None and zero_point is None):
        return None
    axis, block = attribute(node, "axis", 1), attribute(node, "block_size", 0)
    numbers = codes.astype(np.float32)
    if zero_point is not None:
        numbers = numbers - _spread(zero_point.astype(np.float32), codes.shape, axis, block)
    return np.asarray(numbers * _spread(scale.astype(np.float32), codes.shape, axis, block)).astype(scale.dtype)


def _spread(part: Array, shape: Sequence[int], axis: int, block: int) -> Array:
    """Scales or zero points, one for all, one per index of an axis, or one per block, so that they broadcast."""
    if part.size == 1:
        return part.reshape(())
    if not block:
        return part.reshape([-1 if index == axis % len(shape) else 1 for index in range(len(shape))])
    return np.repeat(part, block, axis=axis).take(range(shape[axis]), axis=axis)

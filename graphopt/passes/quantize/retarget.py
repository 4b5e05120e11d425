"""Signed codes of data, as other runtimes want them, made unsigned."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import onnx_ir as ir

from graphopt import ledger
from graphopt.graph.edits import Builder, Names, all_nodes, remove_dead
from graphopt.graph.view import View, input_of, operator_of
from graphopt.passes.base import Pass
from graphopt.passes.quantize.existing import DEQUANTIZE, QUANTIZE, grid_of, island_of
from graphopt.passes.quantize.replacing import take_place

Array = np.ndarray[Any, Any]

_SHIFT = 128
"""From the codes of int8 to those of uint8 for the same numbers."""
_UNSIGNED_MACHINES = ("x86_64", "amd64")
"""Processors whose kernels were measured to want unsigned data."""
_MEET = ("Add", "Concat", "Mul", "Where")
"""Operators with kernels for codes of one type on all sides."""
_CLIPS_INTEGERS = 12
"""The opset from which Clip takes integers."""


@dataclass(frozen=True)
class Retarget(Pass):
    """Replaces int8 codes of data with uint8 codes of the same numbers: all codes and zero points move up by 128.

    Applies to pairs of QuantizeLinear and DequantizeLinear with one scale, and to int8 constants that meet such data; weights of layers
    stay int8. A ReLU between two pairs of the same scale becomes a Clip of the codes. Exact: every dequantized number is the same. ONNX
    Runtime's x86 kernels want unsigned data: of a residual network with int8 data half of the convolutions run in float. Other targets
    and processors, whose kernels take signed data, are left alone.

    Attributes:
        target: what the result is made for; a recipe's own target where it is not given.
    """

    name: ClassVar[str] = "retarget"
    steps: ClassVar[dict[str, str]] = {
        "unsigned-data": "Replaces int8 codes of data with uint8 codes of the same numbers.",
        "unsigned-constants": "Replaces int8 constants that meet such data with uint8 ones.",
        "relu-on-codes": "Replaces a Relu between two pairs of the same scale with a Clip of the codes.",
    }

    target: Literal["cpu", "portable", "cuda"] = "cpu"

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Shifts all data that can be shifted."""
        if self.target != "cpu" or platform.machine().lower() not in _UNSIGNED_MACHINES:
            return ir.passes.PassResult(model, modified=False)
        shifter = _Shifter(model)
        changed = False
        for node in list(all_nodes(model)):
            operator = operator_of(node)
            if operator in QUANTIZE:
                changed |= self._shift_data(node, shifter)
            elif operator in DEQUANTIZE:
                changed |= self._shift_constant(node, shifter)
        for node in list(all_nodes(model)):  # now that both of its neighbours have their codes
            if operator_of(node) == "Relu":
                changed |= self._clip_codes(node, shifter)
        return ir.passes.PassResult(model, changed)

    def _shift_data(self, node: ir.Node, shifter: _Shifter) -> bool:
        if shifter.view.is_constant(node.inputs[0]) or not shifter.has_int8_codes(node, node.outputs[0]):
            return False
        key = ledger.Key(self.name, "unsigned-data", node.name or "")
        island = island_of(node)
        ends = (node, *island.ends)
        known = all(shifter.zero_point(one) is not None for one in ends)
        obstacle = island.obstacle or ("" if known else "a zero point is not one constant")
        if obstacle:
            ledger.miss(key, obstacle)
            return False
        if not ledger.allow(key):
            return False
        for one in ends:
            shifter.shift_zero_point(one)
        for value in (*node.outputs, *(output for one in island.inner for output in one.outputs)):
            value.dtype = ir.DataType.UINT8
        ledger.record(ledger.Rewrite(key, reason=f"{len(island.ends)} readers"))
        return True

    def _shift_constant(self, node: ir.Node, shifter: _Shifter) -> bool:
        codes = node.inputs[0]
        if codes is None or not shifter.view.is_constant(codes) or not shifter.has_int8_codes(node, codes):
            return False
        meets_data = all(operator_of(use.node) in _MEET for use in node.outputs[0].uses())
        if not meets_data or shifter.zero_point(node) is None:
            return False
        key = ledger.Key(self.name, "unsigned-constants", node.name or "")
        if not ledger.allow(key):
            return False
        array = shifter.view.constant(codes)
        assert array is not None, "just asked"
        shifted = (array.astype(np.int16) + _SHIFT).astype(np.uint8)
        node.replace_input_with(0, Builder(node, shifter.names).constant(shifted, codes.name or ""))
        shifter.shift_zero_point(node)
        remove_dead([codes])
        ledger.record(ledger.Rewrite(key))
        return True

    def _clip_codes(self, node: ir.Node, shifter: _Shifter) -> bool:
        view = shifter.view
        before, after = view.producer(node.inputs[0], *DEQUANTIZE), view.only_use(node.outputs[0])
        if before is None or after is None or operator_of(after) not in QUANTIZE or view.opset < _CLIPS_INTEGERS:
            return False
        codes, zero_point = before.inputs[0], input_of(before, 2)
        grid = grid_of(before, view)
        same = grid is not None and grid == grid_of(after, view) and view.dtype(codes) == view.dtype(after.outputs[0])
        if codes is None or zero_point is None or not same or view.is_constant(codes):
            return False
        key = ledger.Key(self.name, "relu-on-codes", node.name or "")
        if not ledger.allow(key):
            return False
        builder = Builder(after, shifter.names)
        lowest = view.constant(zero_point)
        assert lowest is not None, "part of the grid"
        least = zero_point if lowest.ndim == 0 else builder.constant(lowest.reshape(()))
        removed = take_place(after, [builder.op("Clip", codes, least)], builder)
        ledger.record(ledger.Rewrite(key, removed, tuple(one.name or "" for one in builder.added)))
        return True


class _Shifter:
    """Gives nodes shifted zero points, shared among nodes that want the same one."""

    def __init__(self, model: ir.Model) -> None:
        self.view, self.names = View(model), Names(model)
        self._graph = model.graph
        self._shared: dict[tuple[int, ...], ir.Value] = {}

    def has_int8_codes(self, node: ir.Node, codes: ir.Value) -> bool:
        """Whether the codes on the integer side of a node are int8."""
        given = input_of(node, 2)
        return (self.view.dtype(codes) if given is None else self.view.dtype(given)) == ir.DataType.INT8

    def zero_point(self, node: ir.Node) -> Array | None:
        """The zero point of a node with one scale; None where it is not one constant."""
        given = input_of(node, 2)
        if given is None:
            return np.array(0, np.int8) if self.view.scalar(node.inputs[1]) is not None else None
        array = self.view.constant(given)
        return array if array is not None and array.size == 1 else None

    def shift_zero_point(self, node: ir.Node) -> None:
        """Moves the zero point of a node up."""
        old, before = input_of(node, 2), self.zero_point(node)
        assert before is not None, "asked before"
        shifted = (before.astype(np.int16) + _SHIFT).astype(np.uint8)
        key = (int(shifted.reshape(())), *shifted.shape)
        if key not in self._shared:
            name = self.names.fresh(f"zero_point_{key[0]}")
            self._shared[key] = ir.val(name, ir.DataType.UINT8, shifted.shape, const_value=ir.tensor(shifted, name=name))
            self._graph.register_initializer(self._shared[key])
        if len(node.inputs) < 3:
            node.resize_inputs(3)
        node.replace_input_with(2, self._shared[key])
        node.attributes.pop("output_dtype", None)
        if old is not None:
            remove_dead([old])

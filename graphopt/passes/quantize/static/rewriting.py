"""Rewriting: quantize and dequantize nodes around the kernels of a plan, weights in codes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.graph.edits import Builder, Names, is_dead, remove_dead, remove_node
from graphopt.graph.layers import Layout, layer_of
from graphopt.graph.view import View, attribute, operator_of
from graphopt.passes.quantize.static.islands import Plan
from graphopt.passes.quantize.static.kernels import Kernel, Kind
from graphopt.passes.quantize.static.scales import Scale
from graphopt.solve.grid import Quantized
from graphopt.targets import Target, emit

Array = np.ndarray[Any, Any]


class Rewriter:
    """Puts a plan into a model.

    Args:
        model: rewritten in place.
        plan: what runs in integers.
        scales: of every value that the plan stores in codes.
        weights: of every layer of the plan, by node.
        target: what is to run it.
    """

    def __init__(
        self, model: ir.Model, plan: Plan, scales: Mapping[ir.Value, Scale], weights: Mapping[ir.Node, Quantized], target: Target
    ) -> None:
        self._graph, self._plan, self._scales, self._weights, self._target = model.graph, plan, scales, weights, target
        self._names, self._view = Names(model), View(model)
        self._made = plan.made
        self._codes: dict[ir.Value, ir.Value] = {}
        self._floats: dict[ir.Value, ir.Value] = {}
        self._constants: dict[tuple[str, Any], ir.Value] = {}

    def run(self) -> dict[ir.Node, list[str]]:
        """Rewrites all kernels and returns the names of the nodes that were made for each."""
        others = {value: self._other_uses(value) for value in self._made}
        first = self._graph[0]
        added: dict[ir.Node, list[str]] = {}
        for node, kernel in self._plan.kernels.items():
            added[node] = []
            for value in kernel.inputs:
                if value not in self._made and value not in self._codes:
                    entrance = Builder(value.producer() or first, self._names)
                    self._codes[value] = self._enter(value, entrance)
                    added[node] += _names_of(entrance)
            op = Builder(node, self._names)
            self._rewrite(kernel, op)
            added[node] += _names_of(op)
        for value, uses in others.items():
            maker = self._made[value].node
            exit_ = Builder(maker, self._names)
            self._leave(value, uses, exit_)
            added[maker] += _names_of(exit_)
        for node in reversed([*self._plan.kernels]):
            if is_dead(node):
                remove_node(node)
        self._graph.sort()
        return added

    def _other_uses(self, value: ir.Value) -> list[tuple[ir.Node, int]]:
        kernels = self._plan.kernels
        return [(use.node, use.idx) for use in value.uses() if not (use.node in kernels and use.idx in kernels[use.node].data)]

    def _rewrite(self, kernel: Kernel, op: Builder) -> None:
        node = kernel.node
        if kernel.kind is Kind.SHIFT:
            self._codes[kernel.outputs[0]] = self._codes[kernel.inputs[0]]
            return
        if kernel.kind is Kind.LAYER:
            self._store(kernel, op)
        is_moved = kernel.kind is Kind.MOVEMENT or node in self._plan.joined
        for index in kernel.data:
            value = node.inputs[index]
            assert value is not None
            node.replace_input_with(index, self._codes[value] if is_moved else self._float(value, op))
        for value in kernel.outputs:
            if operator_of(node) == "HardSigmoid":
                self._codes[value] = self._hard_sigmoid(kernel, op)
            elif is_moved:
                value.type = ir.TensorType(ir.DataType.UINT8)
                self._codes[value] = value
            else:
                self._codes[value] = emit.quantize(op, value, self._code(self._scales[value], op))
        if is_moved and operator_of(node) == "Pad":
            self._pad(kernel, op)

    def _pad(self, kernel: Kernel, op: Builder) -> None:
        """Zeros are zero points."""
        node = kernel.node
        node.resize_inputs(max(3, len(node.inputs)))
        node.replace_input_with(2, self._code(self._scales[kernel.outputs[0]], op).zero_point)

    def _hard_sigmoid(self, kernel: Kernel, op: Builder) -> ir.Value:
        """Codes of ``x + beta / alpha`` on the grid of the output divided by ``alpha``: those of the output, cut off at both ends."""
        node, output = kernel.node, kernel.outputs[0]
        data = node.inputs[0]
        assert data is not None
        alpha, beta = attribute(node, "alpha", 0.2), attribute(node, "beta", 0.5)
        scale = self._scales[output]
        shift = Scale(float(np.float32(beta / alpha / 255)), 0)
        addend = emit.dequantize(op, self._constant("codes", 255, np.array(255, np.uint8), op), self._code(shift, op))
        total = op.op("Add", data, addend)
        total.type, total.shape = output.type, output.shape
        return emit.quantize(op, total, self._code(Scale(float(np.float32(scale.scale / alpha)), 0), op))

    def _store(self, kernel: Kernel, op: Builder) -> None:
        """Gives a layer its weight in codes, and its bias where it has to be; the layer goes by its node's name still."""
        layer = kernel.layer
        assert layer is not None, "a kernel of this kind has a weight"
        weight, old = self._weights[layer.node], layer.value
        step = np.float32(self._scales[kernel.inputs[0]].scale)
        axis = 1 if layer.layout is Layout.IN_OUT else 0
        scale = weight.grid.scale[..., 0].reshape(-1)
        layer.node.replace_input_with(layer.index, emit.quantized_weight(op, layer.restore(weight.codes), scale, axis, old.name or ""))
        remove_dead([old])
        bias = self._view.constant(kernel.bias)
        if kernel.bias is not None and bias is not None and not self._target.fuses_float_biases():
            codes = emit.quantized_bias(op, bias, step * scale, kernel.bias.name or "")
            adder = next(node for node in (kernel.node, *kernel.absorbed) if kernel.bias in node.inputs)
            adder.replace_input_with(adder.inputs.index(kernel.bias), codes)
            remove_dead([kernel.bias])

    def _enter(self, value: ir.Value, op: Builder) -> ir.Value:
        """Codes of a value that is made in float, or constant."""
        codes = self._code(self._scales[value], op)
        constant = self._view.constant(value)
        if constant is None:
            return emit.quantize(op, value, codes)
        scale = self._scales[value]
        steps = np.rint(constant / np.float32(scale.scale)) + scale.zero_point
        return op.constant(np.clip(steps, 0, 255).astype(np.uint8), f"{value.name}/quantized")

    def _float(self, value: ir.Value, op: Builder) -> ir.Value:
        if value not in self._floats:
            self._floats[value] = emit.dequantize(op, self._codes[value], self._code(self._scales[value], op))
            self._floats[value].shape = value.shape
            self._floats[value].type = ir.TensorType(ir.DataType.FLOAT)
        return self._floats[value]

    def _leave(self, value: ir.Value, uses: list[tuple[ir.Node, int]], op: Builder) -> None:
        """Lets everything else use the float value of codes."""
        for user, index in uses:
            kept_float = self._kept_float(user, index)
            if kept_float is not None:
                user.replace_input_with(index, self._by_axis(value, *kept_float, op))
            else:
                user.replace_input_with(index, self._float(value, op))
        if value.is_graph_output():
            self._as_output(value, op)

    def _as_output(self, value: ir.Value, op: Builder) -> None:
        """The output of the graph keeps its name, its type and its place."""
        given = value.name or ""
        new = self._float(value, op)
        for index, output in enumerate(self._graph.outputs):
            if output is value:
                self._graph.outputs[index] = new
        value.name, new.name = self._names.fresh(f"{given}/exact"), given

    def _kept_float(self, user: ir.Node, index: int) -> tuple[int, int] | None:
        """Axis and length for a float layer that the runtime would quantize by itself, coarsely, between dequantize and quantize.

        It does so only where the input has one scale: the same scale once for each channel stops it.
        """
        layer = layer_of(user)
        if layer is None or index != 1 - layer.index or user in self._plan.kernels:
            return None
        value = user.outputs[0]
        while value not in self._scales:
            follower = self._view.only_use(value)
            if follower is None or operator_of(follower) not in ("Relu", "Clip", "Add"):
                return None
            value = follower.outputs[0]
        groups, _, width = layer.shape
        if layer.layout in (Layout.CONV, Layout.CONV_TRANSPOSE):
            return 1, (layer.stored_shape[1] if layer.layout is Layout.CONV else layer.stored_shape[0] // groups) * groups
        rank = self._view.rank(layer.input)
        return None if rank is None or attribute(user, "transA", 0) else (rank - 1, width)

    def _by_axis(self, value: ir.Value, axis: int, length: int, op: Builder) -> ir.Value:
        scale = self._scales[value]
        codes = emit.Codes(
            self._constant("scale", (scale.scale, length), np.full(length, scale.scale, np.float32), op),
            self._constant("zero_point", (scale.zero_point, length), np.full(length, scale.zero_point, np.uint8), op),
        )
        return emit.dequantize(op, self._codes[value], codes, axis)

    def _code(self, scale: Scale, op: Builder) -> emit.Codes:
        return emit.Codes(
            self._constant("scale", scale.scale, np.array(scale.scale, np.float32), op),
            self._constant("zero_point", scale.zero_point, np.array(scale.zero_point, np.uint8), op),
        )

    def _constant(self, kind: str, key: Any, array: Array, op: Builder) -> ir.Value:
        if (kind, key) not in self._constants:
            self._constants[kind, key] = op.constant(array, kind)
        return self._constants[kind, key]


def _names_of(builder: Builder) -> list[str]:
    return [node.name or "" for node in builder.added]

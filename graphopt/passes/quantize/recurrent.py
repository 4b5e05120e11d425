"""Recurrent layers in 8-bit integers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from graphopt import ledger
from graphopt.graph.edits import Builder, Names, all_nodes
from graphopt.graph.view import View, attribute, operator_of
from graphopt.passes.base import Context, GuidedPass, Role
from graphopt.passes.quantize.constants import choose, constants_of
from graphopt.passes.quantize.replacing import take_place
from graphopt.passes.racing import remembered, seconds_of
from graphopt.solve.gptq import gptq
from graphopt.solve.grid import Quantized, Scheme
from graphopt.solve.metric import Metric
from graphopt.targets import TARGETS
from graphopt.targets.emit import DYNAMIC_QUANTIZE_LSTM, dynamic_quantize_lstm

_OPERATORS = ("LSTM", "GRU", "RNN")
_SCHEME = Scheme(8)
_DOMAIN = DYNAMIC_QUANTIZE_LSTM.partition("::")[0]
_SLOWEST = 1.03
"""A layer in integers may take this many times as long as in float: as much as measurements of one machine differ."""
_STEPS = 16
"""Steps that are taken to be made where no sample tells."""


@dataclass(frozen=True, eq=False)
class _Solved:
    """A weight ``[directions, 4 * hidden, in]`` on its grid, and the relative error."""

    weight: Quantized
    error: float


@dataclass(frozen=True)
class Recurrent(GuidedPass):
    """Replaces LSTM with DynamicQuantizeLSTM: integer products of 8-bit weights with data and state quantized at each step.

    Applies to float32 LSTMs whose two weights are constant, in either direction or both, with peepholes, sequence lengths and any
    activations. Weights get one scale per row of a gate, chosen by least squared error. Approximate: data and state of one step share
    a scale each, which costs about 38 dB. Takes a quarter of the bytes; up to three times as fast as float. Small layers are slower:
    each is timed, and stays in float where it does not pay. There are no integer kernels for GRU and RNN: they stay as they are.

    Attributes:
        include: globs on the names of nodes or weights; all LSTMs where empty.
        exclude: globs on those that stay in float.
        min_size: weights from which a layer is worth it.
    """

    name: ClassVar[str] = "recurrent"
    role: ClassVar[Role] = "approximate"

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    min_size: int = 4096

    def run(self, model: ir.Model, context: Context) -> bool:
        """Quantizes all LSTMs, where the target has a kernel for them."""
        target, view, names = TARGETS[context.target], View(model), Names(model)
        nodes = [node for node in all_nodes(model) if operator_of(node) in _OPERATORS]
        if nodes and not target.runs(DYNAMIC_QUANTIZE_LSTM, ir.DataType.FLOAT, view.opset):
            ledger.note(f"{self.name}: the target {target.name} has no kernel for {DYNAMIC_QUANTIZE_LSTM}")
            return False
        large = self._with_chosen_weights(model, nodes)
        changed = False
        for node in nodes:
            key = ledger.Key(self.name, "", node.name or "")
            obstacle = _obstacle(node, view)
            if obstacle:
                ledger.miss(key, obstacle)
            elif node in large and not ledger.denies(key):
                weights = [_solved(value, view, context) for value in node.inputs[1:3]]
                reason = _slowness(node, weights, view, context) if context.measures else ""
                if reason:
                    ledger.decline(key, reason)
                elif ledger.allow(key):
                    _replace(node, weights, names, key)
                    changed = True
        if changed:
            model.graph.opset_imports.setdefault(_DOMAIN, 1)
        return changed

    def _with_chosen_weights(self, model: ir.Model, nodes: list[ir.Node]) -> set[ir.Node]:
        weights = {value for node in nodes for value in node.inputs[1:3]}
        constants = [one for one in constants_of(model, ir.DataType.FLOAT) if one.value in weights]
        chosen = {one.value for one in choose(constants, self.include, self.exclude, self.min_size)}
        return {node for node in nodes if any(value in chosen for value in node.inputs[1:3])}


def _obstacle(node: ir.Node, view: View) -> str:
    """Why a recurrent layer cannot be replaced, or an empty string."""
    if node.op_type != "LSTM":
        return f"the runtime has no integer kernel for {node.op_type}"
    if attribute(node, "layout", 0):
        return "its data has the batch first"
    weights = [view.constant(value) for value in node.inputs[1:3]]
    if any(weight is None for weight in weights):
        return "its weights are not constant"
    if any(weight is not None and (weight.dtype != np.float32 or not np.isfinite(weight).all()) for weight in weights):
        return "its weights are not float32, or hold NaN or infinity"
    return ""


def _slowness(node: ir.Node, weights: Sequence[_Solved], view: View, context: Context) -> str:
    """Why the layer stays in float on this machine, or an empty string."""
    first, second = remembered(context, ("recurrent", node.name), lambda: _race(_excerpt(node, view, context), weights, context))
    return f"{second * 1e3:.3g} ms instead of {first * 1e3:.3g} ms in float" if second > first * _SLOWEST else ""


def _race(before: ir.Model, weights: Sequence[_Solved], context: Context) -> list[float]:
    """The times of an LSTM in float and in integers."""
    after = before.clone()
    node = after.graph[0]
    builder = Builder(node, Names(after))
    take_place(node, _emit(builder, node, weights), builder)
    after.graph.opset_imports[_DOMAIN] = 1
    shape = before.graph.inputs[0].shape
    assert shape is not None, "given to it"
    feed = {"data": np.random.default_rng(0).normal(size=shape.numpy()).astype(np.float32)}
    return seconds_of([before, after], feed, context.options)


def _excerpt(node: ir.Node, view: View, context: Context) -> ir.Model:
    """A model of one LSTM at the sizes that samples have, from a state of zeros."""
    source = node.inputs[0]
    width = view.constant(node.inputs[1])
    assert width is not None, "it would have been an obstacle"
    shape = context.shapes.get((source.name or "") if source is not None else "", (_STEPS, 1, width.shape[-1]))
    data = ir.val("data", ir.DataType.FLOAT, shape)
    weights = [ir.convenience.get_const_tensor(value) for value in node.inputs[1:3] if value is not None]
    constants = [ir.val(f"constant_{number}", const_value=tensor) for number, tensor in enumerate(weights)]
    attributes = {name: one for name, one in node.attributes.items() if name != "layout"}
    new = ir.node(node.op_type, [data, *constants], attributes, num_outputs=len(node.outputs), name="excerpt")
    for number, value in enumerate(new.outputs):
        value.name, value.dtype = f"output_{number}", ir.DataType.FLOAT
    graph = ir.Graph([data], new.outputs[:1], nodes=[new], initializers=constants, opset_imports={"": view.opset}, name="excerpt")
    return ir.Model(graph, ir_version=8)


def _replace(node: ir.Node, weights: Sequence[_Solved], names: Names, key: ledger.Key) -> None:
    builder = Builder(node, names)
    removed = take_place(node, _emit(builder, node, weights), builder)
    added = tuple(one.name or "" for one in builder.added)
    error = max(one.error for one in weights)
    ledger.record(ledger.Rewrite(key, removed, added, kernels=(DYNAMIC_QUANTIZE_LSTM,), predicted_error=error))


def _emit(builder: Builder, node: ir.Node, weights: Sequence[_Solved]) -> Sequence[ir.Value]:
    weight, recurrence = weights
    return dynamic_quantize_lstm(builder, node, weight.weight, recurrence.weight)


def _solved(value: ir.Value | None, view: View, context: Context) -> _Solved:
    """A weight with one scale per row."""
    assert value is not None, "it would have been an obstacle"
    tensor, key = ir.convenience.get_const_tensor(value), ("recurrent", value.name)
    before = context.solved.get(key)  # clones share their tensors
    if before is None or before[0] is not tensor:
        array = view.constant(value)
        assert array is not None, "it would have been an obstacle"
        quantized = gptq(array, Metric(None), _SCHEME)
        size = float(np.square(array).sum())
        error = (float(np.square(quantized.weight - array).sum()) / size) ** 0.5 if size else 0.0
        before = context.solved[key] = (tensor, _Solved(quantized, error))
    solved: _Solved = before[1]
    return solved

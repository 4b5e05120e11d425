"""Models that compute in half precision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx
import onnx_ir as ir

from graphopt import ledger
from graphopt.graph.edits import Builder, Names, remove_dead
from graphopt.graph.view import View, attribute, operator_of
from graphopt.passes.base import Context, GuidedPass, Role
from graphopt.runtime.registry import available_providers
from graphopt.runtime.statistics import Request
from graphopt.targets import TARGETS, Target

_CAST = "::Cast"
_LARGEST = float(np.finfo(np.float16).max)
_HEADROOM = 2.0
"""How much larger than on the samples a value may become."""

_NEVER = frozenset(
    """
    Cast ConstantOfShape CumSum DequantizeLinear If Loop NonMaxSuppression QuantizeLinear RandomNormal RandomNormalLike RandomUniform
    RandomUniformLike Range RoiAlign Scan
    """.split()
)
"""Operators that stay in float32: they count or compare exactly, choose their element types themselves, or hold graphs."""
_INDIFFERENT = frozenset({"Shape", "Size", "IsNaN"})
"""Operators that answer the same for either type."""
_CONTRIBUTED = frozenset(
    f"com.microsoft::{name}"
    for name in """
    BiasGelu FastGelu FusedMatMul Gelu GroupQueryAttention MultiHeadAttention QuickGelu RotaryEmbedding SimplifiedLayerNormalization
    SkipLayerNormalization SkipSimplifiedLayerNormalization
    """.split()
)
"""ONNX Runtime's own operators that take float16 wherever they take float32."""


@dataclass(frozen=True)
class Half(GuidedPass):
    """Replaces float32 with float16 in all operators whose numbers fit, with a Cast where both meet.

    Applies on a GPU, to operators of the main graph that take float16. Inputs and outputs of the model keep their types. An operator
    stays in float32 where one of its values comes closer to float16's range on the samples than a factor of two; without samples
    constants alone are looked at. Approximate: about 60 dB. Halves the bytes in the file and in memory; two to four times as fast on
    a GPU. ONNX Runtime's CPU kernels compute in float32, so that on a CPU ``half-storage`` is what there is to gain.
    """

    name: ClassVar[str] = "half"
    role: ClassVar[Role] = "approximate"

    def run(self, model: ir.Model, context: Context) -> bool:
        """Converts all operators that can be converted."""
        target = TARGETS[context.target]
        if target.provider == "CPUExecutionProvider":
            ledger.note(f"{self.name}: the target {target.name} has no float16 kernels; half-storage halves the file at the same speed")
            return False
        view = View(model)
        ranges = _ranges(model, view, context)
        ports: dict[ir.Node, _Ports] = {}
        for node in model.graph:
            key = ledger.Key(self.name, "", node.name or "")
            found = _ports_of(node, view)
            if not found.inputs or not found.outputs or ledger.denies(key):
                continue
            obstacle = _obstacle(node, found, view, target, ranges)
            if obstacle:
                ledger.miss(key, obstacle)
            elif ledger.allow(key):
                ports[node] = found
        casts = _convert(model, ports, view)
        for node in ports:
            added = tuple(casts.get(node, ()))
            ledger.record(ledger.Rewrite(ledger.Key(self.name, "", node.name or ""), added=added, kernels=(_CAST,) * len(added)))
        return bool(ports)


@dataclass(frozen=True)
class _Ports:
    """The inputs and outputs of a node that become float16 with it."""

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


def _ports_of(node: ir.Node, view: View) -> _Ports:
    """What is float32 at a node and may be float16; no inputs where nothing is."""
    floats = [index for index, value in enumerate(node.inputs) if value is not None and view.dtype(value) == ir.DataType.FLOAT]
    made = [index for index, value in enumerate(node.outputs) if view.dtype(value) == ir.DataType.FLOAT]
    operator = operator_of(node)
    if operator in _CONTRIBUTED:
        return _Ports(tuple(floats), tuple(made))
    if operator in _NEVER or "::" in operator:
        return _Ports((), ())
    try:
        schema = onnx.defs.get_schema(node.op_type, view.opset, "")
    except onnx.defs.SchemaError:
        return _Ports((), ())
    halves = {one.type_param_str for one in schema.type_constraints if "tensor(float16)" in one.allowed_type_strs}
    inputs = [index for index in floats if _formal(schema.inputs, index) in halves]
    moved = {_formal(schema.inputs, index) for index in inputs}
    return _Ports(tuple(inputs), tuple(index for index in made if _formal(schema.outputs, index) in moved))


def _formal(parameters: Sequence[onnx.defs.OpSchema.FormalParameter], index: int) -> str:
    """The type variable of an input or output; the last parameter may stand for many."""
    return parameters[min(index, len(parameters) - 1)].type_str


def _ranges(model: ir.Model, view: View, context: Context) -> Mapping[str, float]:
    """The largest magnitude of each float32 value on the samples; empty where these are made up."""
    if context.samples.is_synthetic:
        return {}
    values = [output for node in model.graph for output in node.outputs] + list(model.graph.inputs)
    names = tuple(
        value.name or "" for value in values if value.name and view.dtype(value) == ir.DataType.FLOAT and not view.is_constant(value)
    )
    found = context.statistics(model, Request(values=names)).values
    return {name: one.magnitude for name, one in found.items()}


def _obstacle(node: ir.Node, ports: _Ports, view: View, target: Target, ranges: Mapping[str, float]) -> str:
    """Why a node stays in float32, or an empty string."""
    operator = operator_of(node)
    if target.provider in available_providers() and not target.runs(operator, ir.DataType.FLOAT16, view.opset):
        return f"the target {target.name} has no float16 kernel for {operator}"
    for value in (*(node.inputs[index] for index in ports.inputs), *(node.outputs[index] for index in ports.outputs)):
        assert value is not None, "it is float32"
        array = view.constant(value)
        if array is None:
            if not _HEADROOM * ranges.get(value.name or "", 0.0) <= _LARGEST:
                return f"{value.name} reaches {ranges[value.name or '']:.3g} on the samples, which is too close to float16's range"
        elif not np.abs(array).max(initial=0.0) <= _LARGEST:
            return f"{value.name} holds numbers that are too large for float16"
        elif array.any() and not array.astype(np.float16).any():  # such as the epsilon of a normalization
            return f"{value.name} vanishes in float16"
    return ""


def _convert(model: ir.Model, ports: Mapping[ir.Node, _Ports], view: View) -> Mapping[ir.Node, list[str]]:
    """Gives nodes float16 inputs and outputs, and puts Casts where they meet float32; returns the names of the Casts, by node."""
    made = {node.outputs[index]: node for node, found in ports.items() for index in found.outputs}
    read: dict[ir.Value, list[tuple[ir.Node, int]]] = {}
    for node, found in ports.items():
        for index in found.inputs:
            value = node.inputs[index]
            assert value is not None, "it is float32"
            read.setdefault(value, []).append((node, index))
    names, casts = Names(model), dict[ir.Node, list[str]]()
    for value, uses in read.items():
        if value not in made:
            half = _half_of(value, model.graph, names, view)
            _note(casts, uses[0][0], half)
            for node, index in uses:
                node.replace_input_with(index, half)
            remove_dead([value])
    for value, node in made.items():
        kept = {(user, index) for user, index in read.get(value, ())}
        uses = [(use.node, use.idx) for use in value.uses() if operator_of(use.node) not in _INDIFFERENT]
        wide = _widen(value, [use for use in uses if use not in kept], names)
        _note(casts, node, wide)
    return casts


def _note(casts: dict[ir.Node, list[str]], node: ir.Node, value: ir.Value | None) -> None:
    """Counts a Cast among those that a node is responsible for."""
    cast = None if value is None else value.producer()
    if cast is not None:
        casts.setdefault(node, []).append(cast.name or "")


def _half_of(value: ir.Value, graph: ir.Graph, names: Names, view: View) -> ir.Value:
    """A float16 form of a float32 value: a constant, or a Cast, which skips another one before it."""
    array, producer = view.constant(value), value.producer()
    if array is not None:
        return Builder(graph[0], names).constant(array.astype(np.float16), f"{value.name}/half")
    source = value
    if producer is not None and operator_of(producer) == "Cast" and attribute(producer, "to", 0) == ir.DataType.FLOAT.value:
        source = producer.inputs[0] or value
    return _cast(source, value, ir.DataType.FLOAT16, names.fresh(f"{value.name}/half"), graph)


def _widen(value: ir.Value, uses: Sequence[tuple[ir.Node, int]], names: Names) -> ir.Value | None:
    """Makes a value float16; returns its float32 form for what wants that, an output of the model included, or None."""
    producer = value.producer()
    assert producer is not None, "a node made it"
    graph = producer.graph
    assert isinstance(graph, ir.Graph), "it stands in a graph"
    is_output, name = value.is_graph_output(), value.name or ""
    wide = _cast(value, value, ir.DataType.FLOAT, names.fresh(f"{name}/float"), graph) if uses or is_output else None
    value.type = ir.TensorType(ir.DataType.FLOAT16)
    if wide is None:
        return None
    for node, index in uses:
        node.replace_input_with(index, wide)
    for number, output in enumerate(graph.outputs):
        if output is value:
            graph.outputs[number] = wide
    if is_output:
        value.name, wide.name = wide.name, name
    return wide


def _cast(source: ir.Value, like: ir.Value, dtype: ir.DataType, name: str, graph: ir.Graph) -> ir.Value:
    """Makes a Cast right after what it reads; the result has the shape of a value."""
    producer = source.producer()
    node = ir.node("Cast", [source], {"to": dtype.value}, name=name)
    if producer is None:
        graph.insert_before(graph[0], node)
    else:
        graph.insert_after(producer, node)
    result = node.outputs[0]
    result.name, result.type, result.shape = name, ir.TensorType(dtype), like.shape
    return result

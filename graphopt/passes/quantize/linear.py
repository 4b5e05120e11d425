"""Linear layers as quantization sees them: one matrix, its bias, and the node at which both end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt import ledger
from graphopt.graph.edits import Builder, Names, can_stand_for, remove_dead, remove_node, replace_value
from graphopt.graph.layers import MATMULS, Layer, layers_of, select
from graphopt.graph.view import View, attribute, operator_of
from graphopt.passes.base import Context
from graphopt.runtime.statistics import Request
from graphopt.solve.gptq import gptq
from graphopt.solve.grid import Quantized, Scheme
from graphopt.solve.metric import Metric
from graphopt.targets import TARGETS

Array = np.ndarray[Any, Any]

_SUPPORTED = ("MatMul", "Gemm")


@dataclass(frozen=True)
class Place:
    """A linear layer that one operator with a quantized weight can replace.

    Attributes:
        layer: the MatMul or Gemm.
        anchor: the node whose output is ``data W^T + bias``: the layer's own, or the Add after it.
        bias: ``[out]``; None where nothing is added.
    """

    layer: Layer
    anchor: ir.Node
    bias: Array | None

    def weight(self) -> Array:
        """Reads ``W [1, out, in]``, the factor of the operator included."""
        weight, scale = self.layer.weight(), self.layer.scale
        return weight if scale == 1.0 else weight * np.float32(scale)


@dataclass(frozen=True)
class Solved:
    """A layer with its weight on a grid.

    Attributes:
        place: the layer.
        weight: what it becomes.
        error: what changes at its output, relative to the output; in the metric of the samples where there are any.
    """

    place: Place
    weight: Quantized
    error: float


Emit = Callable[[Builder, Place, Quantized], ir.Value]


def places_of(
    model: ir.Model, pass_name: str, operator: str, context: Context, include: Sequence[str], exclude: Sequence[str], min_size: int
) -> list[Place]:
    """The linear layers that an operator of the target can replace; the ledger hears why others cannot be.

    Args:
        model: stays as it is.
        pass_name: whose rewrites they will be.
        operator: what is to replace them.
        context: names the target.
        include: globs on the name of the node or of its weight; empty for all layers.
        exclude: globs on those that stay as they are.
        min_size: weights from which a layer is worth it.

    Raises:
        RecipeError: a glob matches no layer.
    """
    target = TARGETS[context.target]
    view = View(model, target)
    if not target.runs(operator, ir.DataType.FLOAT, view.opset):
        ledger.note(f"{pass_name}: the target {target.name} has no kernel for {operator}")
        return []
    layers = [layer for layer in layers_of(model) if operator_of(layer.node) in _SUPPORTED]
    kept = {layer.name for layer in select(layers, names=exclude)} if exclude else set()
    chosen = [layer for layer in select(layers, names=include) if layer.name not in kept and layer.size >= min_size]
    places = []
    for layer in chosen:
        key = ledger.Key(pass_name, "", layer.name)
        obstacle = _obstacle(layer, view)
        if obstacle:
            ledger.miss(key, obstacle)
        elif not ledger.denies(key):
            places.append(_place(layer, view))
    return places


def solve(model: ir.Model, places: Sequence[Place], scheme: Scheme, context: Context) -> list[Solved]:
    """Puts every weight on a grid, in the metric of the samples where there are real ones.

    Args:
        model: holds the layers; stays as it is.
        places: the layers.
        scheme: of the grids.
        context: holds the samples.

    Returns:
        The layers by rising error, so that whoever looks for the one at which too much is lost has the harmless ones before it.
    """
    inside = {node.name for node in model.graph}
    names = tuple(place.layer.name for place in places if place.layer.name in inside)
    known = {} if context.samples.is_synthetic or not names else context.statistics(model, Request(layers=names)).layers
    solved = []
    for place in places:
        found, tensor = known.get(place.layer.name), place.layer.value.const_value
        key = (place.layer.name, place.layer.scale, scheme)
        before = context.solved.get(key)  # clones share their tensors
        if before is None or before[0] is not tensor or before[1] is not found:
            before = context.solved[key] = (tensor, found, *_solved(place.weight(), None if found is None else found.gram, scheme))
        solved.append(Solved(place, before[2], before[3]))
    return sorted(solved, key=lambda one: one.error)


def _solved(weight: Array, gram: Array | None, scheme: Scheme) -> tuple[Quantized, float]:
    metric = Metric(gram)
    quantized = gptq(weight, metric, scheme)
    size = float(metric.error(weight, np.zeros_like(weight)).sum())
    lost = float(metric.error(weight, quantized.weight).sum())
    return quantized, (lost / size) ** 0.5 if size else 0.0


def replace(model: ir.Model, solved: Sequence[Solved], pass_name: str, operator: str, emit: Emit) -> bool:
    """Puts an operator in the place of each layer that the ledger allows, and tells whether there was any.

    Args:
        model: rewritten in place.
        solved: the layers, in the order in which the ledger is asked.
        pass_name: whose rewrites they are.
        operator: planned to run in their place.
        emit: makes it.
    """
    names, changed = Names(model), False
    for one in solved:
        key = ledger.Key(pass_name, "", one.place.layer.name)
        if not ledger.allow(key):
            continue
        builder = Builder(one.place.anchor, names)
        removed = _replace(one.place.anchor, emit(builder, one.place, one.weight), builder)
        added = tuple(node.name or "" for node in builder.added)
        ledger.record(ledger.Rewrite(key, removed, added, kernels=(operator,), predicted_error=one.error))
        changed = True
    if changed:
        model.graph.opset_imports.setdefault(operator.partition("::")[0], 1)
    return changed


def _obstacle(layer: Layer, view: View) -> str:
    """Why a layer cannot be replaced, or an empty string."""
    if layer.index != 1 or len(layer.stored_shape) != 2:
        return "its weight is not one matrix on the right"
    if attribute(layer.node, "transA", 0):
        return "its data is transposed"
    if view.dtype(layer.value) != ir.DataType.FLOAT or view.dtype(layer.input) != ir.DataType.FLOAT:
        return "it is not float32"
    if (view.rank(layer.input) or 0) < 2:
        return "its data has fewer than two axes, or nobody knows how many"
    if not np.isfinite(layer.weight()).all():
        return "its weight holds NaN or infinity"
    bias = layer.node.inputs[2] if len(layer.node.inputs) > 2 else None
    return "its bias is not a constant vector" if bias is not None and _vector(bias, layer.shape[1], view) is None else ""


def _place(layer: Layer, view: View) -> Place:
    out = layer.shape[1]
    own = layer.node.inputs[2] if len(layer.node.inputs) > 2 else None
    if own is not None:
        bias = _vector(own, out, view)
        assert bias is not None, "it would have been an obstacle"
        return Place(layer, layer.node, bias * np.float32(layer.bias_scale))
    user = view.only_use(layer.node.outputs[0]) if operator_of(layer.node) in MATMULS else None
    if user is not None and operator_of(user) == "Add" and user.graph is layer.node.graph:
        other = next((value for value in user.inputs if value is not layer.node.outputs[0]), None)
        bias = _vector(other, out, view)
        if bias is not None:
            return Place(layer, user, bias)
    return Place(layer, layer.node, None)


def _vector(value: ir.Value | None, out: int, view: View) -> Array | None:
    """A constant that adds one number per output channel, and no axis: ``[out]``."""
    array = view.constant(value)
    if array is None or array.dtype != np.float32 or array.ndim > 2 or not (array.size == 1 or array.size == array.shape[-1] == out):
        return None
    return np.broadcast_to(array.reshape(-1), (out,))


def _replace(anchor: ir.Node, new: ir.Value, builder: Builder) -> tuple[str, ...]:
    """Lets a value take the place of an anchor's output; returns the names of the nodes that went."""
    old = anchor.outputs[0]
    if not can_stand_for(old, new):
        new = builder.op("Identity", new)
    name, keeps_name = old.name or "", not old.is_graph_output()
    replace_value(old, new)
    if keeps_name:
        old.name, new.name = f"{name}/replaced", name
    gone = [anchor, *remove_dead(remove_node(anchor)).nodes]
    return tuple(node.name or "" for node in gone)

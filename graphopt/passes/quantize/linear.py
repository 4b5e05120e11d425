"""Linear layers as quantization sees them: one matrix, its bias, and the node at which both end."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt import ledger
from graphopt.graph.edits import Builder, Names
from graphopt.graph.layers import MATMULS, Layer, layers_of, select
from graphopt.graph.view import View, attribute, operator_of
from graphopt.passes.base import Context
from graphopt.passes.quantize.replacing import take_place
from graphopt.runtime.statistics import LayerStatistics, Request, states_of
from graphopt.solve.gptq import COARSEST, gptq
from graphopt.solve.grid import Quantized, Scheme
from graphopt.solve.metric import Metric
from graphopt.solve.polish import polish
from graphopt.targets import TARGETS, Target
from graphopt.targets.emit import MATMUL_NBITS

Array = np.ndarray[Any, Any]

_SUPPORTED = ("MatMul", "Gemm")
_MEMORY = 1 << 30
"""Bytes of Gram matrices that are held at a time."""
_MOST_THREADS = 4
"""So many layers are solved at a time: each takes a few times the memory of its Gram matrix."""


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


Multiply = Callable[[Builder, ir.Value, Quantized, Array | None, str], ir.Value]
"""Makes ``data W^T + bias`` of data, weight, bias, and a wish for names, as functions of :mod:`graphopt.targets.emit` do."""


@dataclass(frozen=True)
class Form:
    """What a layer may become.

    Attributes:
        operator: planned to run, as ``domain::operator``; empty for a float layer, as which the runtime may run it in several ways.
        scheme: of the weight.
        make: makes it.
        rule: whose denial at a layer makes the pass choose another form for it; empty where there is none.
    """

    operator: str
    scheme: Scheme
    make: Multiply
    rule: str = ""

    def runs(self, target: Target, opset: int) -> bool:
        """Whether a target has a kernel for it that takes weights of its width."""
        if self.operator == MATMUL_NBITS and not target.packs(self.scheme.bits):
            return False
        return target.runs(self.operator, ir.DataType.FLOAT, opset)


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
    chosen = [layer for layer in select(layers, names=include) if layer.name not in kept]
    places = []
    for layer in chosen:
        key = ledger.Key(pass_name, "", layer.name)
        obstacle = f"it has fewer than {min_size} weights" if layer.size < min_size else _obstacle(layer, view)
        if obstacle:
            ledger.miss(key, obstacle)
        elif not ledger.denies(key):
            places.append(_place(layer, view))
    return places


def solve(model: ir.Model, places: Sequence[Place], scheme: Scheme, context: Context, narrow: Sequence[str] = ()) -> list[Solved]:
    """Puts every weight on a grid, in the metric of the samples where there are real ones.

    Args:
        model: holds the layers; stays as it is.
        places: the layers.
        scheme: of the grids.
        context: holds the samples.
        narrow: names of layers whose weights get 7 bits: products of pairs of them fit into 16 bits.

    Returns:
        The layers by rising error, so that whoever looks for the one at which too much is lost has the harmless ones before it.
    """
    states = {} if context.samples.is_synthetic else states_of(model)
    names = {place.layer.name for place in places}
    schemes = {name: dataclasses.replace(scheme, bits=7) if name in narrow else scheme for name in names}
    waiting = [place for place in places if _before(place, schemes[place.layer.name], states, context) is None]
    for group in _groups(waiting, context.memory or _MEMORY):
        seen = tuple(place.layer.name for place in group if _state(place, states))
        known = context.statistics(model, Request(layers=seen)).layers if seen else {}
        with ThreadPoolExecutor(min(_MOST_THREADS, os.cpu_count() or 1)) as threads:
            found = threads.map(partial(_solved, known, schemes), group)
            for place, result in zip(group, found, strict=True):
                context.solved[_key(place, schemes[place.layer.name])] = (_tensor(place), _state(place, states), *result)
    solved = []
    for place in places:
        before = _before(place, schemes[place.layer.name], states, context)
        assert before is not None, "all have been solved"
        solved.append(Solved(place, *before))
    return sorted(solved, key=lambda one: one.error)


def _before(place: Place, scheme: Scheme, states: Mapping[str, str], context: Context) -> tuple[Quantized, float] | None:
    """What was worked out already, for an earlier attempt perhaps: it holds for the same weight (clones share it) with the same input."""
    tensor, state, *found = context.solved.get(_key(place, scheme), (None, None, None, None))
    return (found[0], found[1]) if tensor is _tensor(place) and state == _state(place, states) else None


def _key(place: Place, scheme: Scheme) -> tuple[str, float, Scheme]:
    return place.layer.name, place.layer.scale, scheme


def _tensor(place: Place) -> ir.TensorProtocol | None:
    return ir.convenience.get_const_tensor(place.layer.value)


def _state(place: Place, states: Mapping[str, str]) -> str | None:
    """How the layer's input is computed; None where no samples were run or none reach it."""
    return states.get(f"layer:{place.layer.name}")


def _groups(places: Sequence[Place], memory: int) -> Iterator[list[Place]]:
    """Layers whose Gram matrices fit into so many bytes together; one that does not fit is a group of its own."""
    group, left = list[Place](), memory
    for place in places:
        count, _, width = place.layer.shape
        size = count * width * width * np.dtype(np.float32).itemsize
        if group and size > left:
            yield group
            group, left = [], memory
        group.append(place)
        left -= size
    if group:
        yield group


def _solved(known: Mapping[str, LayerStatistics], schemes: Mapping[str, Scheme], place: Place) -> tuple[Quantized, float]:
    name, weight = place.layer.name, place.weight()
    metric = Metric(known[name].gram if name in known else None)
    quantized = gptq(weight, metric, schemes[name])
    if schemes[name].bits <= COARSEST:
        quantized = polish(weight, metric, quantized, rounds=1)
    return quantized, metric.relative(weight, quantized.weight)


def replace(model: ir.Model, solved: Sequence[Solved], pass_name: str, form: Form) -> bool:
    """Puts an operator in the place of each layer that the ledger allows, and tells whether there was any.

    Args:
        model: rewritten in place.
        solved: the layers, in the order in which the ledger is asked.
        pass_name: whose rewrites they are.
        form: what they become.
    """
    names, changed = Names(model), False
    for one in solved:
        key = ledger.Key(pass_name, "", one.place.layer.name)
        if not ledger.allow(key):
            continue
        builder = Builder(one.place.anchor, names)
        layer = one.place.layer
        new = form.make(builder, layer.input, one.weight, one.place.bias, layer.value.name or "")
        removed = take_place(one.place.anchor, [new], builder)
        added = tuple(node.name or "" for node in builder.added)
        kernels = (form.operator,) if form.operator else ()
        ledger.record(ledger.Rewrite(key, removed, added, kernels=kernels, predicted_error=one.error, form=form.rule))
        changed = True
    if changed and form.operator:
        model.graph.opset_imports.setdefault(form.operator.partition("::")[0], 1)
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

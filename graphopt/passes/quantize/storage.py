"""Weights stored in integers and computed with in float."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import ml_dtypes
import numpy as np
import onnx_ir as ir

from graphopt import ledger
from graphopt.graph.edits import Builder, Names
from graphopt.graph.layers import Layer, layer_of
from graphopt.graph.view import View
from graphopt.passes.base import Context, GuidedPass, Role
from graphopt.passes.quantize.constants import Constant, choose, constants_of, folding_limit, narrowed, reads_folded
from graphopt.passes.quantize.replacing import take_place_of_constant
from graphopt.runtime.statistics import Request
from graphopt.solve.gptq import gptq
from graphopt.solve.grid import Scheme
from graphopt.solve.metric import Metric
from graphopt.targets import TARGETS
from graphopt.targets.emit import stored_integers

Array = np.ndarray[Any, Any]

_INT4_OPSET = 21
_NODES_BYTES = 250
"""About what the two nodes and the names of a stored constant take in a file."""


@dataclass(frozen=True, eq=False)
class _Stored:
    """A constant and what it is stored as."""

    constant: Constant
    codes: Array
    scale: Array
    error: float


@dataclass(frozen=True)
class Storage(GuidedPass):
    """Replaces large float constants with integers and their scales, multiplied when the runtime loads the model.

    Applies to float32 weights of layers, of recurrent layers, tables, and constants of elementwise operators, in subgraphs too, where
    the file becomes smaller. Each output channel (or row) gets one scale; with samples a layer's weight is chosen by GPTQ in the metric
    of its inputs, else by least squared error. Approximate: 8 bits cost a layer about 45 dB or less. Takes a quarter of the bytes;
    the runtime folds the product into the float weight at load, so that the same kernels run at the same speed in the same memory.

    Attributes:
        bits: of a stored weight; 4 need opset 21.
        include: globs on the names of constants or of nodes that use them; all where empty.
        exclude: globs on those that stay as they are.
        min_size: elements from which a constant is worth it.
    """

    name: ClassVar[str] = "storage"
    role: ClassVar[Role] = "approximate"

    bits: Literal[4, 8] = 8
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    min_size: int = 512

    def run(self, model: ir.Model, context: Context) -> bool:
        """Stores all constants that become smaller, those with the least error first."""
        view = View(model)
        if self.bits < 8 and view.opset < _INT4_OPSET:
            ledger.note(f"{self.name}: {self.bits} bits need opset {_INT4_OPSET}, the model has {view.opset}")
            return False
        if self.bits < 8 and not TARGETS[context.target].runs("Cast", ir.DataType.INT4, view.opset):
            ledger.note(f"{self.name}: {self.bits} bits need a newer runtime, which casts integers of 4 bits")
            return False
        candidates = self._candidates(model, view, folding_limit(context.options))
        changed, names = False, Names(model)
        for stored in sorted(self._solve(model, candidates, view, context), key=lambda one: max(part.error for part in one)):
            key = _key(self.name, stored[0].constant)
            if ledger.allow(key):
                added = [name for one in stored for name in _replace(one, names)]
                ledger.record(ledger.Rewrite(key, added=tuple(added), predicted_error=max(one.error for one in stored)))
                changed = True
        return changed

    def _candidates(self, model: ir.Model, view: View, limit: float) -> list[Constant]:
        readable = [
            one for one in constants_of(model, ir.DataType.FLOAT) if all(reads_folded(use.node, use.idx) for use in one.value.uses())
        ]
        found = []
        for constant in choose(readable, self.include, self.exclude, self.min_size):
            key = _key(self.name, constant)
            obstacle = _obstacle(constant, view, limit)
            if obstacle:
                ledger.miss(key, obstacle)
            elif not ledger.denies(key):
                found.append(constant)
        return found

    def _solve(self, model: ir.Model, constants: Sequence[Constant], view: View, context: Context) -> list[list[_Stored]]:
        """What constants become, those that one node is the first to use together."""
        scheme, grams = Scheme(self.bits, mirrored=True), _grams(model, constants, context)
        found: dict[ir.Node, list[_Stored]] = {}
        for constant in constants:
            (gram, state), tensor = grams.get(constant.name, (None, "")), ir.convenience.get_const_tensor(constant.value)
            key = (self.name, constant.name, scheme)
            before = context.solved.get(key)  # clones share their tensors
            if before is None or before[0] is not tensor or before[1] != state:
                before = context.solved[key] = (tensor, state, *_solved(constant, view, gram, scheme))
            codes, scale, error = before[2:]
            if constant.size * self.bits / 8 + scale.nbytes + _NODES_BYTES < constant.size * 4:
                found.setdefault(constant.user, []).append(_Stored(constant, codes, scale, error))
            else:
                ledger.miss(_key(self.name, constant), "its scales take more than its integers save")
        return list(found.values())


def _key(pass_name: str, constant: Constant) -> ledger.Key:
    return ledger.Key(pass_name, "", constant.user.name or "")


def _obstacle(constant: Constant, view: View, limit: float) -> str:
    """Why a constant cannot be stored, or an empty string."""
    if constant.size * 4 > limit:
        return "the session's configuration keeps the runtime from folding it"
    if len(constant.shape) < 2:
        return "a vector would get one scale"
    array = view.constant(constant.value)
    return "" if array is not None and np.isfinite(array).all() else "it holds NaN or infinity"


def _grams(model: ir.Model, constants: Sequence[Constant], context: Context) -> dict[str, tuple[Array, str]]:
    """The Gram matrices of layers of the main graph whose weight nothing else uses, and their states, by name of the weight."""
    if context.samples.is_synthetic:
        return {}
    inside = set(model.graph)
    layers = {one.name: layer for one in constants if one.user in inside and (layer := _own_layer(one)) is not None}
    if not layers:
        return {}
    known = context.statistics(model, Request(layers=tuple(layer.name for layer in layers.values())))
    return {
        name: (known.layers[layer.name].gram, known.states[f"layer:{layer.name}"])
        for name, layer in layers.items()
        if layer.name in known.layers
    }


def _own_layer(constant: Constant) -> Layer | None:
    """The layer that alone uses a constant, as its weight."""
    layer = layer_of(constant.user)
    return layer if layer is not None and layer.value is constant.value and len(constant.value.uses()) == 1 else None


def _solved(constant: Constant, view: View, gram: Array | None, scheme: Scheme) -> tuple[Array, Array, float]:
    """Integers and scales in the constant's own layout, and the error relative to what the constant computes."""
    array = view.constant(constant.value)
    assert array is not None, "it would have been an obstacle"
    layer = layer_of(constant.user)
    held = layer is not None and layer.value is constant.value
    weight = layer.weight() if layer is not None and held else array.reshape(1, -1, array.shape[-1])
    metric = Metric(gram)
    quantized = gptq(weight, metric, scheme)
    codes, scale = quantized.codes, np.broadcast_to(quantized.grid.scale, weight.shape)
    if layer is not None and held:
        codes, scale = layer.restore(codes), layer.restore(scale)
    else:
        codes, scale = codes.reshape(array.shape), scale.reshape(array.shape)
    stored = codes if scheme.bits == 8 else codes.astype(ml_dtypes.int4)
    return np.ascontiguousarray(stored), narrowed(scale), metric.relative(weight, quantized.weight)


def _replace(stored: _Stored, names: Names) -> list[str]:
    """Puts the product in the place of a constant; returns the names of the new nodes."""
    builder = Builder(stored.constant.anchor, names)
    take_place_of_constant(stored.constant.value, stored_integers(builder, stored.codes, stored.scale, stored.constant.name))
    return [node.name or "" for node in builder.added]

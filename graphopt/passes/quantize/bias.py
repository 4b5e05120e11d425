"""Sequential bias correction (arXiv:1906.04721, section 4.2): what an approximation adds to the mean output, taken back by the bias."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from graphopt import ledger
from graphopt.graph.edits import Builder, Names, remove_dead
from graphopt.graph.layers import layer_of
from graphopt.graph.view import View, attribute, input_of, operator_of
from graphopt.passes.base import Context, GuidedPass, Role
from graphopt.runtime.fidelity import Fidelity, measure, merge
from graphopt.runtime.relay import LAST, Means, Stop, channel_means, relay
from graphopt.runtime.session import Feed, SessionOptions, open_session
from graphopt.runtime.statistics import states_of
from graphopt.targets import TARGETS, Target, emit

Array = np.ndarray[Any, Any]

_SLOTS = {
    "Conv": 2,
    "ConvTranspose": 2,
    "Gemm": 2,
    "com.microsoft::DynamicQuantizeMatMul": 4,
    "com.microsoft::MatMulNBits": 5,
}
"""Linear operators that take a bias, with the input that it is."""
_IMAGES = ("Conv", "ConvTranspose")
_HELD_OUT = 4
"""Each fourth sample is kept out of the correction, to judge it."""


@dataclass(frozen=True)
class _Place:
    """A layer whose bias can be corrected.

    Attributes:
        name: of the layer's node.
        stop: the value that the bias moves.
        before: the same value in the original.
        node: name of the node that adds the bias.
        slot: which of its inputs that is.
        factor: what the node multiplies the bias with.
    """

    name: str
    stop: Stop
    before: str
    node: str
    slot: int
    factor: float


@dataclass(frozen=True)
class BiasCorrection(GuidedPass):
    """Replaces biases of layers whose weights were approximated with ones that give their outputs the original's means.

    Layer by layer, in the order in which they run, each on what the corrected ones before it put out. A quarter of the samples is kept
    out: where the model's outputs on those do not come closer, nothing is changed. Costs one run of the samples through the original
    and one through the model, and nothing when the result runs.

    Attributes:
        samples: at most so many are used.
    """

    name: ClassVar[str] = "bias"
    role: ClassVar[Role] = "recover"

    samples: int = 64

    def run(self, model: ir.Model, context: Context) -> bool:
        """Corrects the biases of all layers that differ from the original's."""
        original = context.original
        if original is None or context.samples.is_synthetic:
            ledger.note("bias: without samples, or an approximation before it, there is nothing to correct")
            return False
        places = [place for place in _places(model, original) if ledger.allow(ledger.Key(self.name, "", place.name))]
        if not places:
            return False
        shifts, gain = self._solved(model, original, places, context)
        if not gain > 0:
            ledger.note(f"bias: taken back, on samples kept out the outputs changed by {gain:+.2f} dB")
            return False
        for place, added in zip(places, _correct(model, places, shifts, TARGETS[context.target]), strict=True):
            ledger.record(ledger.Rewrite(ledger.Key(self.name, "", place.name), added=added, reason="mean output as before"))
        return True

    def _solved(self, model: ir.Model, original: ir.Model, places: Sequence[_Place], context: Context) -> tuple[Means, float]:
        """What is to be added to each layer's output, and the dB that it gains; once for all attempts that give the same model."""
        key = ("bias", self.samples, _state(model), _state(original), tuple(places))
        if key not in context.solved:
            used, held_out = _split(list(islice(context.samples, self.samples)))
            shifts = _shifts(model, places, self._wanted(original, places, used, context), used, context.options)
            corrected = model.clone()
            _correct(corrected, places, shifts, TARGETS[context.target])
            context.solved[key] = shifts, _gain(original, model, corrected, held_out, context.options)
        shifts, gain = context.solved[key]
        return shifts, gain

    def _wanted(self, original: ir.Model, places: Sequence[_Place], feeds: Sequence[Feed], context: Context) -> Means:
        """The means of the original's values, of which each is taken once for all attempts."""
        states = states_of(original)
        keys = {Stop(p.before, p.stop.axis): ("bias", self.samples, states[f"value:{p.before}"], p.stop.axis) for p in places}
        missing = [stop for stop, key in keys.items() if key not in context.solved]
        found = channel_means(original, missing, feeds, context.options) if missing else {}
        context.solved.update({keys[stop]: found[stop.value] for stop in missing})
        return {stop.value: context.solved[key] for stop, key in keys.items()}


def _state(model: ir.Model) -> tuple[str, ...]:
    """How a model computes its outputs."""
    states = states_of(model)
    return tuple(states[f"value:{value.name}"] for value in model.graph.outputs)


def _split(feeds: list[Feed]) -> tuple[list[Feed], list[Feed]]:
    held_out = feeds[_HELD_OUT - 1 :: _HELD_OUT]
    return [feed for index, feed in enumerate(feeds) if index % _HELD_OUT != _HELD_OUT - 1], held_out or feeds


def _places(model: ir.Model, original: ir.Model) -> list[_Place]:
    """The layers of the main graph, in order, that compute something else than in the original and can be given a bias."""
    view = View(model)
    nodes = {node.name: node for node in original.graph}
    values = {value.name: value for node in original.graph for value in node.outputs}
    places = []
    for node in model.graph:
        place = _place(node, view, nodes, values)
        if place is not None:
            places.append(place)
    return places


def _place(node: ir.Node, view: View, nodes: Mapping[str | None, ir.Node], values: Mapping[str | None, ir.Value]) -> _Place | None:
    operator, name = operator_of(node), node.name or ""
    if operator not in (*_SLOTS, "MatMul"):
        return None
    twin = nodes.get(name)
    twin = twin if twin is not None and operator_of(twin) == operator else None
    if operator in ("Conv", "ConvTranspose", "Gemm", "MatMul") and not _is_changed(node, twin, view):
        return None
    adder, slot = (_added_bias(node, view) or (None, 0)) if operator == "MatMul" else (node, _SLOTS[operator])
    if adder is None or (operator == "Gemm" and not attribute(node, "beta", 1.0)):
        ledger.miss(ledger.Key("bias", "", name), "nothing adds a bias to its output")
        return None
    before = _before(adder, nodes, values)
    if before is None:
        ledger.miss(ledger.Key("bias", "", name), "the original has no such layer")
        return None
    if _bias(input_of(adder, slot), view) is None:
        ledger.miss(ledger.Key("bias", "", name), "its bias is not a constant vector")
        return None
    stop = Stop(adder.outputs[0].name or "", 1 if operator in _IMAGES else LAST)
    factor = attribute(node, "beta", 1.0) if operator == "Gemm" else 1.0
    return _Place(name, stop, before.name or "", adder.name or "", slot, factor)


def _before(adder: ir.Node, nodes: Mapping[str | None, ir.Node], values: Mapping[str | None, ir.Value]) -> ir.Value | None:
    """What the original has for the output of a node: that of its namesake, or the value of the same name where a layer makes it."""
    same = nodes.get(adder.name)
    if same is not None and operator_of(same) == operator_of(adder):
        return same.outputs[0]
    value = values.get(adder.outputs[0].name)
    maker = None if value is None else value.producer()
    operators = ("MatMul", "Gemm", "Add") if adder.domain else (operator_of(adder),)
    return value if maker is not None and operator_of(maker) in operators else None


def _is_changed(node: ir.Node, twin: ir.Node | None, view: View) -> bool:
    """Whether the weight of a node is a constant other than in the original."""
    layer = layer_of(node)
    if layer is None:  # a weight in integers is no constant of the layer, but made of one
        return any(_dequantized(value, view) for value in node.inputs[:2])
    before = None if twin is None else layer_of(twin)
    old, new = (None if one is None else view.constant(one.value) for one in (before, layer))
    return old is not None and new is not None and old is not new and not np.array_equal(old, new)


def _dequantized(value: ir.Value | None, view: View) -> ir.Node | None:
    """The DequantizeLinear of a constant that makes a value."""
    node = view.producer(value, "DequantizeLinear")
    return node if node is not None and view.is_constant(node.inputs[0]) else None


def _added_bias(node: ir.Node, view: View) -> tuple[ir.Node, int] | None:
    """The Add of a constant after a MatMul, as such or quantized in between, and the input that is the constant."""
    value: ir.Value = node.outputs[0]
    user = view.only_use(value)
    while user is not None and operator_of(user) in ("QuantizeLinear", "DequantizeLinear"):
        value = user.outputs[0]
        user = view.only_use(value)
    if user is None or operator_of(user) != "Add":
        return None
    slot = 1 if user.inputs[0] is value else 0
    return user, slot


def _bias(value: ir.Value | None, view: View) -> Array | None:
    """The vector that a bias adds: zeros where there is none; None where it is not a constant or no vector."""
    if value is None:
        return np.zeros(1, np.float32)
    node = _dequantized(value, view)
    array = view.constant(value) if node is None else _content(node, view)
    if array is None or array.dtype.kind != "f" or array.size not in (1, array.shape[-1] if array.ndim else 1):
        return None
    return array.reshape(-1)


def _content(node: ir.Node, view: View) -> Array | None:
    """What a DequantizeLinear makes of 32-bit integers; fewer bits are too coarse for a correction."""
    codes, scale = view.constant(node.inputs[0]), view.constant(node.inputs[1])
    zero_point = view.constant(input_of(node, 2))
    if codes is None or scale is None or codes.dtype != np.int32 or (zero_point is not None and zero_point.any()):
        return None
    return codes * scale


def _shifts(model: ir.Model, places: Sequence[_Place], wanted: Means, feeds: Sequence[Feed], options: SessionOptions) -> Means:
    """What each layer's output needs added: ``[channels]`` by the name of its value."""
    before = {place.stop.value: place.before for place in places}
    shifts: dict[str, Array] = {}

    def shifts_for(means: Means) -> Means:
        now = {name: wanted[before[name]] - mean for name, mean in means.items()}
        shifts.update(now)
        return now

    relay(model, [place.stop for place in places], feeds, shifts_for, options)
    return shifts


def _correct(model: ir.Model, places: Sequence[_Place], shifts: Means, target: Target) -> list[tuple[str, ...]]:
    """Adds the shifts to the biases; returns the names of the nodes that each needed."""
    names, view = Names(model), View(model)
    nodes = {node.name: node for node in model.graph}
    return [_correct_one(nodes[place.node], place, shifts[place.stop.value], names, view, target) for place in places]


def _correct_one(node: ir.Node, place: _Place, shift: Array, names: Names, view: View, target: Target) -> tuple[str, ...]:
    old = input_of(node, place.slot)
    bias = _bias(old, view)
    assert bias is not None, "a place has a bias, or none yet"
    wanted, builder = bias + shift / place.factor, Builder(node, names)
    step, wish = _step(node, old, view, target), "" if old is None else old.name or ""
    if step is None:
        dtype = np.dtype(np.float32) if old is None or old.dtype is None else old.dtype.numpy()
        new = builder.constant(wanted.astype(dtype), wish)
    else:
        new = emit.quantized_bias(builder, wanted, step, wish)
    if place.slot >= len(node.inputs):
        node.resize_inputs(place.slot + 1)
    node.replace_input_with(place.slot, new)
    if old is not None:
        remove_dead([old])
    return tuple(added.name or "" for added in builder.added)


def _step(node: ir.Node, old: ir.Value | None, view: View, target: Target) -> Array | None:
    """The scale of the codes of a bias, ``[out]`` or one for all; None where it is to be float."""
    if old is not None:
        stored = _dequantized(old, view)
        return None if stored is None else view.constant(stored.inputs[1])
    if target.fuses_float_biases():
        return None
    makers = [view.producer(value, "DequantizeLinear") for value in node.inputs[:2]]
    scales = [view.constant(maker.inputs[1]) for maker in makers if maker is not None]
    data, weight = scales if len(scales) == 2 else (None, None)
    return None if data is None or weight is None or data.size > 1 else np.float32(data.reshape(-1)[0]) * weight


def _gain(original: ir.Model, before: ir.Model, after: ir.Model, feeds: Sequence[Feed], options: SessionOptions) -> float:
    """The dB by which a model's outputs came closer to the original's: on average, or at the one furthest from it where that is less."""
    sessions = [open_session(model, "all", options) for model in (original, before, after)]
    pairs: list[tuple[Mapping[str, Fidelity], Mapping[str, Fidelity]]] = []
    for feed in feeds:
        reference, old, new = (session.run(feed) for session in sessions)
        pairs.append((measure(reference, old), measure(reference, new)))
    old_all, new_all = merge(old for old, _ in pairs), merge(new for _, new in pairs)
    outputs = [name for name, found in old_all.items() if not found.exact]
    if not outputs:
        return 0.0
    mean = math.fsum(new_all[name].sqnr_db - old_all[name].sqnr_db for name in outputs) / len(outputs)
    return min(mean, min(new_all[name].sqnr_db for name in outputs) - min(old_all[name].sqnr_db for name in outputs))

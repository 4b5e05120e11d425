"""Candidates for linear layers: quantized forms of a layer are timed against float, as models of nothing but the layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.errors import SessionError
from graphopt.graph.edits import Builder, Names
from graphopt.passes.base import Context
from graphopt.passes.quantize.linear import Form, Place
from graphopt.passes.racing import second_chance
from graphopt.runtime.trace import trace_shapes
from graphopt.solve.grid import fit_extremes, round_to_nearest

Array = np.ndarray[Any, Any]

NOISE = 1.05
"""A form is slower than float where it takes more than this multiple of its time: less is lost in the noise of a busy machine."""

_CLEARLY = 0.9
"""A form must take this share of the time of those before it to be preferred to them."""

_MOST_WEIGHTS = 1 << 22
"""Weights of a layer that are timed: beyond, time grows with the outputs."""
_WORK = 1 << 21
"""Products below which a layer is timed as several like it in one model, so that calling the runtime is not what is measured."""
_MOST_COPIES = 8


@dataclass(frozen=True)
class _Task:
    """Layers that read the same input, as far as their time depends on them: rows of data, inputs, outputs of each layer."""

    rows: int
    width: int
    outs: tuple[int, ...]

    def __str__(self) -> str:
        return f"[{self.rows},{self.width}]x[{self.width},{'+'.join(map(str, self.outs))}]"


@dataclass(frozen=True)
class Verdict:
    """What a race between float and some forms of a layer told.

    Attributes:
        form: the name of the form to take; empty where float is faster than all.
        figures: the times.
    """

    form: str
    figures: str


def race(model: ir.Model, places: Sequence[Place], forms: Mapping[str, Form], context: Context) -> dict[str, Verdict]:
    """Times layers in some forms and in float, once per shape; layers that read the same value are timed together.

    Args:
        model: holds the layers; stays as it is.
        places: the layers.
        forms: what they may become, by name; a later one has to be faster than those before it by a tenth.
        context: tells whether to measure, and holds the samples; times are kept in it.

    Returns:
        By name of the layer; without those of which nobody knows how many rows they are given, and empty where nothing is measured.
    """
    if not context.measures or not places:
        return {}
    rows = _rows(model, places, context)
    together: dict[ir.Value, list[Place]] = {}
    for place in places:
        together.setdefault(place.layer.input, []).append(place)
    found = {}
    for value, group in together.items():
        if value.name in rows:
            task = _Task(rows[value.name], group[0].layer.shape[2], tuple(sorted(place.layer.shape[1] for place in group)))
            verdict = _verdict(task, forms, _times(task, tuple(forms.values()), context))
            found.update({place.layer.name: verdict for place in group})
    return found


def _verdict(task: _Task, forms: Mapping[str, Form], times: Sequence[float]) -> Verdict:
    plain, *others = times
    best, seconds = "", math.inf
    for name, other in zip(forms, others, strict=True):
        if other <= NOISE * plain and other < _CLEARLY * seconds:
            best, seconds = name, other
    kernels = [form.operator.rpartition("::")[2] for form in forms.values()]
    told = [f"{kernel} {other * 1e6:.1f} us" for kernel, other in zip(kernels, others, strict=True)]
    return Verdict(best, f"float {plain * 1e6:.1f} us, {', '.join(told)} for {task}")


def _rows(model: ir.Model, places: Sequence[Place], context: Context) -> dict[str, int]:
    """How many rows each layer's input has on the first sample, by name of the value; those inside subgraphs are not known."""
    names = [place.layer.input.name or "" for place in places]
    known: Mapping[str, tuple[int, ...]] = context.shapes
    if not all(name in known for name in names):
        known = context.solved.get("shapes", {})
    if not all(name in known for name in names):
        feed = next(iter(context.samples), None)
        try:
            known = {} if feed is None else trace_shapes(model, feed, context.options)
        except SessionError:
            known = {}
        context.solved["shapes"] = known
    return {name: math.prod(known[name][:-1]) for name in names if math.prod(known.get(name, (0, 0))[:-1]) > 0}


def _times(task: _Task, forms: tuple[Form, ...], context: Context) -> tuple[float, ...]:
    """Seconds in float and in some forms, for one set of layers; measured once."""
    key = (task, forms)
    if key not in context.solved:
        copies = max(1, min(_MOST_COPIES, _WORK // (task.rows * task.width * sum(task.outs))))
        models = [_model(task, copies, _in_float), *(_model(task, copies, _in(form)) for form in forms)]
        data = np.random.default_rng(0).standard_normal((task.rows, copies * task.width), np.float32)
        found = second_chance(models, {"x": data}, context.options, NOISE)
        context.solved[key] = tuple(seconds / copies for seconds in found)
    times: tuple[float, ...] = context.solved[key]
    return times


def _model(task: _Task, copies: int, make: Callable[[Builder, ir.Value, Array], ir.Value]) -> ir.Model:
    """Several times the layers of a task and nothing else, each time on other data with other weights."""
    width = copies * task.width
    data = f"float[{task.rows},{width}]"
    model = ir.from_onnx_text(f'<ir_version: 8, opset_import: ["": 18]> timed ({data} x) => ({data} y) {{ y = Identity(x) }}')
    model.graph.opset_imports["com.microsoft"] = 1
    anchor, generator = model.graph[0], np.random.default_rng(1)
    op = Builder(anchor, Names(model))
    parts = op.ops("Split", model.graph.inputs[0], outputs=copies, axis=1, num_outputs=copies) if copies > 1 else [model.graph.inputs[0]]
    made = []
    for part in parts:
        for out in task.outs:
            weight = generator.standard_normal((1, min(out, max(1, _MOST_WEIGHTS // task.width)), task.width), np.float32)
            value = make(op, part, weight)
            value.type, value.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape((task.rows, weight.shape[1]))
            made.append(value)
    model.graph.outputs[:] = made
    model.graph.remove(anchor, safe=True)
    return model


def _in_float(op: Builder, data: ir.Value, weight: Array) -> ir.Value:
    return op.op("MatMul", data, op.constant(np.ascontiguousarray(weight[0].T)))


def _in(form: Form) -> Callable[[Builder, ir.Value, Array], ir.Value]:
    def make(op: Builder, data: ir.Value, weight: Array) -> ir.Value:
        return form.make(op, data, round_to_nearest(weight, fit_extremes(weight, form.scheme)), None, "")

    return make

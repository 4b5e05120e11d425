"""Candidates for linear layers: the quantized form of a layer is timed against float, as models of nothing but the layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt import ledger
from graphopt.errors import SessionError
from graphopt.graph.edits import Builder, Names
from graphopt.passes.base import Context
from graphopt.passes.quantize.linear import Form, Place
from graphopt.passes.quantize.racing import seconds_of
from graphopt.runtime.trace import trace_shapes
from graphopt.solve.grid import fit_extremes, round_to_nearest

Array = np.ndarray[Any, Any]

NOISE = 1.05
"""A form is slower than float where it takes more than this multiple of its time: less is lost in the noise of a busy machine."""

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


def that_pay(model: ir.Model, places: Sequence[Place], form: Form, pass_name: str, context: Context) -> list[Place]:
    """The layers that are not slower in a form than in float, measured once per shape; the ledger hears of the others.

    Layers that read the same value are timed together. Where nothing is to be measured, or nobody knows how many rows a layer is
    given, all stay.

    Args:
        model: holds the layers; stays as it is.
        places: the layers.
        form: what they are to become.
        pass_name: whose rewrites they would be.
        context: tells whether to measure, and holds the samples; times are kept in it.
    """
    if not context.measures or not places:
        return list(places)
    rows = _rows(model, places, context)
    together: dict[ir.Value, list[Place]] = {}
    for place in places:
        together.setdefault(place.layer.input, []).append(place)
    slow: set[str] = set()
    for value, group in together.items():
        if value.name not in rows:
            continue
        task = _Task(rows[value.name], group[0].layer.shape[2], tuple(sorted(place.layer.shape[1] for place in group)))
        plain, other = _times(task, form, context)
        if other > NOISE * plain:
            for place in group:
                figures = f"float {plain * 1e6:.1f} us, {form.operator.rpartition('::')[2]} {other * 1e6:.1f} us for {task}"
                ledger.decline(ledger.Key(pass_name, "", place.layer.name), figures)
                slow.add(place.layer.name)
    return [place for place in places if place.layer.name not in slow]


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


def _times(task: _Task, form: Form, context: Context) -> tuple[float, float]:
    """Seconds in float and in a form, for one set of layers; measured once."""
    key = (task, form)
    if key not in context.solved:
        copies = max(1, min(_MOST_COPIES, _WORK // (task.rows * task.width * sum(task.outs))))
        models = [_model(task, copies, _in_float), _model(task, copies, _in(form))]
        data = np.random.default_rng(0).standard_normal((task.rows, copies * task.width), np.float32)
        context.solved[key] = tuple(seconds / copies for seconds in seconds_of(models, {"x": data}, context.options))
    plain, other = context.solved[key]
    return plain, other


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

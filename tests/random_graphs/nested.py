"""Subgraphs that capture outer values: If, Loop, Scan; and functions of the model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import helper

from tests.random_graphs.activations import STEPS_OF_ACTIVATIONS
from tests.random_graphs.algebra import STEPS_OF_ALGEBRA
from tests.random_graphs.grower import DTYPES, Grower
from tests.random_graphs.lengths import STEPS_OF_LENGTHS, length_of
from tests.random_graphs.norms import STEPS_OF_NORMS
from tests.random_graphs.operators import STEPS_OF_ONE, Step
from tests.random_graphs.simple import STEPS_OF_SIMPLE
from tests.random_graphs.values import Shape, Value, is_static
from tests.random_graphs.views import STEPS_OF_VIEWS

_INSIDE: tuple[tuple[Step, ...], ...] = (
    STEPS_OF_SIMPLE, STEPS_OF_VIEWS, STEPS_OF_ONE, STEPS_OF_LENGTHS, STEPS_OF_ACTIVATIONS, STEPS_OF_NORMS, STEPS_OF_ALGEBRA,
)  # fmt: skip


def _grown(g: Grower, value: Value) -> Value:
    """Some steps in a scope, and a value of the shape of another one that depends on them."""
    for _ in range(g.choices.integer(1, 2)):
        g.choices.one_of(g.choices.one_of(_INSIDE))(g)
    found = g.pick(lambda v: v.dtype == value.dtype and v.shape == value.shape) or value
    return g.op("Tanh", [g.op("Add", [found, value], value.shape)], value.shape, bound=1.0)


def _graph(g: Grower, name: str, inputs: Sequence[onnx.ValueInfoProto], outputs: Sequence[Value]) -> onnx.GraphProto:
    results = [helper.make_tensor_value_info(value.name, DTYPES[value.dtype], None) for value in outputs]
    return helper.make_graph(g.nodes, name, list(inputs), results, g.initializers)


def branch(g: Grower) -> None:
    """An If whose condition is constant, follows from a length, or is an input; its branches capture outer values."""
    value = g.float_value(1, 3)
    kind = g.choices.integer(0, 2)
    condition: Value
    if kind == 0:
        condition = g.constant(np.array(g.choices.chance(50)))
    elif kind == 1:
        length = length_of(g, value, 0, scalar=True)
        condition = g.op("Greater", [length, g.integer(g.choices.one_of([3, 100, 0]))], (), "bool", exact=True)
    else:
        condition = g.fresh(0, "bool", ())
    graphs = []
    for name in ("then", "else"):
        inner = g.inner()
        result = inner.constant(np.zeros([s[0] for s in value.shape], value.dtype)) if _may_be_constant(g, value) else _grown(inner, value)
        if g.choices.chance(20):
            result = inner.exactly("Identity", value)  # a branch that gives an outer value
        graphs.append(_graph(inner, name, [], [result]))
    g.op("If", [condition], value.shape, value.dtype, bound=max(1.0, value.bound), then_branch=graphs[0], else_branch=graphs[1])


def _may_be_constant(g: Grower, value: Value) -> bool:
    return all(map(is_static, value.shape)) and g.choices.chance(15)


def loop(g: Grower) -> None:
    """A Loop over a constant number of turns, with a carried value and a collected one."""
    value = g.float_value(1, 3)
    state = g.op("Tanh", [value], value.shape, bound=1.0)
    turns = g.choices.one_of([2, 1, 3])
    inner = g.inner()
    counter, going = inner.result((), "int64", 3, exact=True), inner.result((), "bool", 1, exact=True)
    carried = inner.result(value.shape, value.dtype, 1.0)
    inner.pool.append(carried)
    kept = inner.op("Identity", [going], (), exact=True)
    result = _grown(inner, carried)
    collected = inner.op("Sin", [result], value.shape, bound=1.0)
    inputs = [_info(g, v) for v in (counter, going, carried)]
    body = _graph(inner, "body", inputs, [kept, result, collected])
    results = [g.result(value.shape, value.dtype, 1.0), g.result(((turns, turns), *value.shape), value.dtype, 1.0)]
    condition = g.constant(np.array(True)) if g.choices.chance(60) else None
    g.ops("Loop", [g.integer(turns), condition, state], results, body=body)


def _info(g: Grower, value: Value) -> onnx.ValueInfoProto:
    shape = value.static if value.static is not None and g.choices.chance(50) else None
    return helper.make_tensor_value_info(value.name, DTYPES[value.dtype], () if value.rank == 0 else shape)


def scan(g: Grower) -> None:
    """A Scan over the first axis, with a carried sum."""
    value = g.float_value(2, 3)
    if min(value.shape[0]) < 1:
        return
    row: Shape = value.shape[1:]
    if not all(map(is_static, row)):
        return
    start = g.constant(np.zeros([size[0] for size in row], value.dtype))
    inner = g.inner()
    carried, part = inner.result(row, value.dtype, 1.0), inner.result(row, value.dtype, value.bound)
    inner.pool.extend([carried, part])
    mixed = inner.op("Add", [carried, part], row, bound=value.bound + 1)
    result = _grown(inner, inner.op("Tanh", [mixed], row, bound=1.0))
    inputs = [helper.make_tensor_value_info(v.name, DTYPES[v.dtype], [s[0] for s in row]) for v in (carried, part)]
    body = _graph(inner, "body", inputs, [result, inner.op("Identity", [result], row)])
    results = [g.result(row, value.dtype, 1.0), g.result(value.shape, value.dtype, 1.0)]
    g.ops("Scan", [start, value], results, body=body, num_scan_inputs=1)


def function(g: Grower) -> None:
    """One or two calls of a function of the model, one of whose nodes computes nothing."""
    value = g.float_value(0, 4)
    name = g.model.name("Function")
    nodes = [
        helper.make_node("Tanh", ["a"], ["p"]),
        helper.make_node("Identity", ["p"], ["q"]),
        helper.make_node("Mul", ["q", "a"], ["r"]),
    ]
    imports = [helper.make_opsetid("", g.opset)]
    g.model.functions.append(helper.make_function("local", name, ["a"], ["r"], nodes, imports))
    for _ in range(g.choices.integer(1, 2)):
        result = g.result(value.shape, value.dtype, value.bound)
        g.ops(name, [value], [result], domain="local")
        value = result


STEPS_OF_SUBGRAPHS: tuple[Step, ...] = (branch, loop, scan, function, branch)
"""All of them."""

"""The cheapest way to compute a small integer tensor from the lengths of live values: plans, their cost, their nodes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import sympy

from graphopt.graph.edits import Builder
from graphopt.graph.shapes.dims import Dim
from graphopt.graph.shapes.inference import Content, Shapes
from graphopt.graph.view import View, attribute


@dataclass(frozen=True)
class Numbers:
    """A constant integer vector."""

    elements: tuple[int, ...]


@dataclass(frozen=True)
class Lengths:
    """Some consecutive lengths of a value: Shape with start and end."""

    source: ir.Value
    start: int
    end: int


@dataclass(frozen=True)
class Call:
    """Any other operator."""

    op_type: str
    operands: tuple[Plan, ...]
    to: ir.DataType | None = None


Plan = Numbers | Lengths | Call
Sources = dict[Dim, tuple[ir.Value, int]]
"""Where each length can be read: a value and its axis; the first one found counts, so that equal plans become equal nodes."""


def sources_of(values: Iterable[ir.Value], shapes: Shapes) -> Sources:
    """Where the symbolic lengths of these values can be read."""
    found: Sources = {}
    for value in values:
        for axis, dim in enumerate(shapes.of(value) or ()):
            if not isinstance(dim, int):
                found.setdefault(dim, (value, axis))
    return found


def plan_vector(elements: Sequence[Dim], sources: Sources) -> Plan | None:
    """How to compute a vector, or None where an element is no polynomial in readable lengths."""
    parts: list[Plan] = []
    for element in elements:
        part = Numbers((element,)) if isinstance(element, int) else _plan_element(element, sources)
        if part is None:
            return None
        joined = _joined(parts[-1], part) if parts else None
        if joined is None:
            parts.append(part)
        else:
            parts[-1] = joined
    return parts[0] if len(parts) == 1 else Call("Concat", tuple(parts))


def _joined(last: Plan, part: Plan) -> Plan | None:
    """Two neighbouring parts as one, where they are numbers, or neighbouring axes of one value."""
    if isinstance(last, Numbers) and isinstance(part, Numbers):
        return Numbers(last.elements + part.elements)
    if isinstance(last, Lengths) and isinstance(part, Lengths) and last.source is part.source and last.end == part.start:
        return Lengths(last.source, last.start, part.end)
    return None


def _plan_element(element: sympy.Expr, sources: Sources) -> Plan | None:
    """How to compute one symbolic element as a vector of one."""
    if element in sources:
        value, axis = sources[element]
        return Lengths(value, axis, axis + 1)
    if isinstance(element, sympy.Add):
        return _fold("Add", [_plan_part(part, sources) for part in element.args])
    if isinstance(element, sympy.Mul):
        return _fold("Mul", [_plan_part(part, sources) for part in element.args])
    if isinstance(element, sympy.Pow) and element.exp.is_Integer and element.exp > 1:
        return _fold("Mul", [_plan_part(element.base, sources)] * int(element.exp))
    return None


def _plan_part(part: sympy.Expr, sources: Sources) -> Plan | None:
    return Numbers((int(part),)) if part.is_Integer else _plan_element(part, sources)


def _fold(op_type: str, parts: list[Plan | None]) -> Plan | None:
    result = parts[0]
    for part in parts[1:]:
        result = None if result is None or part is None else Call(op_type, (result, part))
    return result


def cost(plan: Plan) -> int:
    """How many nodes a plan makes, equal ones counted once."""
    return len({part for part in _parts(plan) if not isinstance(part, Numbers)})


def _parts(plan: Plan) -> Iterator[Plan]:
    yield plan
    if isinstance(plan, Call):
        for operand in plan.operands:
            yield from _parts(operand)


def emit(plan: Plan, builder: Builder) -> ir.Value:
    """Makes the nodes of a plan, equal ones once."""
    made: dict[Plan, ir.Value] = {}

    def value_of(part: Plan) -> ir.Value:
        if part not in made:
            made[part] = _emit_one(part, builder, value_of)
        return made[part]

    return value_of(plan)


def _emit_one(plan: Plan, builder: Builder, value_of: Callable[[Plan], ir.Value]) -> ir.Value:
    if isinstance(plan, Numbers):
        return builder.constant(np.array(plan.elements, np.int64))
    if isinstance(plan, Lengths):
        return builder.op("Shape", plan.source, start=plan.start, end=plan.end)
    inputs = [value_of(operand) for operand in plan.operands]
    return builder.op(plan.op_type, *inputs, axis=0 if plan.op_type == "Concat" else None, to=None if plan.to is None else plan.to.value)


def matches(plan: Plan, value: ir.Value, view: View) -> bool:
    """Whether a value is already computed as planned."""
    if isinstance(plan, Numbers):
        array = view.constant(value)
        return array is not None and array.shape == (len(plan.elements),) and tuple(array.tolist()) == plan.elements
    node = view.producer(value)
    if node is None:
        return False
    if isinstance(plan, Lengths):
        rank = view.rank(plan.source)
        is_part = attribute(node, "start", 0) == plan.start and attribute(node, "end", rank) == plan.end
        return node.op_type == "Shape" and node.inputs[0] is plan.source and is_part
    if node.op_type != plan.op_type or len(node.inputs) != len(plan.operands):
        return False
    return all(found is not None and matches(part, found, view) for part, found in zip(plan.operands, node.inputs, strict=True))


def arithmetic_behind(value: ir.Value, shapes: Shapes) -> list[ir.Node]:
    """The nodes that compute a followed content, back to the Shape nodes; each once."""
    found: dict[ir.Node, None] = {}
    pending = [value]
    while pending:
        node = pending.pop().producer()
        if node is None or node in found or node.op_type == "Constant":
            continue
        found[node] = None
        if node.op_type not in ("Shape", "Size"):
            pending.extend(operand for operand in node.inputs if operand is not None and shapes.content(operand) is not None)
    return list(found)


def is_known(content: Content | None) -> bool:
    """Whether every element of a content is a number or an expression."""
    return content is not None and all(element is not None for element in content.flat)


def is_symbolic(element: object) -> bool:
    """Whether an element of a content depends on the model's inputs."""
    return isinstance(element, sympy.Basic)

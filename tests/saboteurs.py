"""Harm to the layered model: rules that are right but at one place, and a weight of zeros."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import onnx_ir as ir

from graphopt.errors import InvalidModelError
from graphopt.graph.view import View
from graphopt.passes.rules import Change
from tests.layered import copied

RuleFunction = Callable[[ir.Node, View], Change | None]
BAD = "mm3"
"""Where the rules below do harm; everywhere else they are right."""


def corrupt_weight(node: ir.Node, view: View) -> Change | None:
    """Replaces a MatMul with a copy, whose weight is wrong at one place."""
    weight = view.constant(node.inputs[1])
    if node.name != BAD or weight is None:
        return copied(node, view)
    wrong = weight + np.eye(8, dtype=np.float32)
    return Change(lambda build: build.op("MatMul", node.inputs[0], build.constant(wrong)))


def give_unknown_attribute(node: ir.Node, view: View) -> Change | None:
    """Replaces a MatMul with a copy, which has an attribute that no MatMul has at one place."""
    return copied(node, view, mystery=1.0) if node.name == BAD else copied(node, view)


def give_wrong_type(node: ir.Node, view: View) -> Change | None:
    """Replaces a MatMul with a copy, which multiplies texts at one place."""
    if node.name != BAD:
        return copied(node, view)
    return Change(lambda build: build.op("MatMul", build.op("Cast", node.inputs[0], to=8), node.inputs[1]))


def give_unwritable_attribute(node: ir.Node, view: View) -> Change | None:
    """Replaces a MatMul with a copy, which has a number that no file can hold at one place."""
    if node.name != BAD:
        return copied(node, view)
    return Change(lambda build: build.op("MatMul", node.inputs[0], node.inputs[1], alpha=ir.AttrInt64("alpha", 2**70)))


def invent_operator(node: ir.Node, view: View) -> Change | None:
    """Replaces a MatMul with a copy, which is of an operator that does not exist at one place."""
    if node.name != BAD:
        return copied(node, view)
    return Change(lambda build: build.op("MatMulPlus", node.inputs[0], node.inputs[1]))


def use_unknown_value(node: ir.Node, view: View) -> Change | None:
    """Replaces a MatMul with a copy, which uses a value that nothing computes at one place."""
    if node.name != BAD:
        return copied(node, view)
    return Change(lambda build: build.op("MatMul", ir.val("nowhere", ir.DataType.FLOAT, [4, 8]), node.inputs[1]))


def fail_at_a_look(node: ir.Node, view: View) -> Change | None:
    """Replaces a MatMul with a copy, and raises when it looks at one place."""
    if node.name == BAD:
        raise KeyError("sabotage")
    return copied(node, view)


def fail_at_a_user_error(node: ir.Node, view: View) -> Change | None:
    """Replaces a MatMul with a copy, and raises one of graphopt's own errors at one place."""
    if node.name == BAD:
        raise InvalidModelError("sabotage")
    return copied(node, view)


def fail_while_building(node: ir.Node, view: View) -> Change | None:
    """Replaces a MatMul with a copy, and raises halfway through at one place."""

    def halfway(build: Any) -> ir.Value:
        build.op("Neg", node.inputs[0])
        return cast("ir.Value", 1 / 0)

    return Change(halfway) if node.name == BAD else copied(node, view)


WRONG: tuple[tuple[RuleFunction, str], ...] = (
    (corrupt_weight, "outputs differ"),
    (give_unknown_attribute, "mystery"),
    (give_wrong_type, "does not load"),
    (give_unwritable_attribute, "cannot be written"),
    (invent_operator, "MatMulPlus"),
    (use_unknown_value, "nowhere"),
    (fail_at_a_look, "KeyError"),
    (fail_at_a_user_error, "sabotage"),
    (fail_while_building, "ZeroDivisionError"),
)


def grow(node: ir.Node, view: View) -> Change | None:
    """Replaces a MatMul with a copy, to which 16 kB of zeros are added at one place."""
    if node.name != BAD:
        return copied(node, view)
    zeros = np.zeros((512, 8), np.float32)

    def built(build: Any) -> ir.Value:
        start, end = build.constant(np.array([0], np.int64)), build.constant(np.array([4], np.int64))
        return cast("ir.Value", build.op("Add", build.op("MatMul", *node.inputs), build.op("Slice", build.constant(zeros), start, end)))

    return Change(built)


def run_more_kernels(node: ir.Node, view: View) -> Change | None:
    """Replaces a MatMul with a copy, followed by fourteen reciprocals at one place."""
    if node.name != BAD:
        return copied(node, view)

    def turned(build: Any) -> ir.Value:
        value: ir.Value = build.op("MatMul", *node.inputs)
        for _ in range(7):
            value = build.op("Reciprocal", build.op("Reciprocal", value))
        return value

    return Change(turned)


COSTLY: tuple[tuple[RuleFunction, str], ...] = ((grow, "bytes instead of"), (run_more_kernels, "kernels run instead of"))


def name_of(function: RuleFunction) -> str:
    """A rule's name as the ledger has it."""
    return function.__name__.replace("_", "-")


def ids(cases: tuple[tuple[RuleFunction, str], ...]) -> list[str]:
    """Names of cases."""
    return [name_of(function) for function, _ in cases]


def zero_a_weight(model: ir.Model) -> None:
    """Puts a weight of zeros in place of one."""
    model.graph.initializers["w2"].const_value = ir.tensor(np.zeros((8, 8), np.float32), name="w2")

"""Fingerprints: numbers that two nodes share where what leads to them, or what follows, is the same."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, Literal

import onnx_ir as ir

from graphopt.graph.difference.flow import Flow
from graphopt.graph.view import operator_of

Detail = Literal["content", "shape", "operator"]
"""What of constants and attributes counts: all, shapes and attributes, or nothing of either."""


class Register:
    """Gives equal things the same number and others different ones; both models are registered in one."""

    def __init__(self) -> None:
        self._numbers: dict[Hashable, int] = {}

    def number(self, thing: Hashable) -> int:
        """The number of a thing."""
        return self._numbers.setdefault(thing, len(self._numbers))


class Fingerprints:
    """The fingerprints of a model's nodes.

    Attributes:
        up: of each node, by all that leads to it.
        down: of each node, by itself and all that follows it.

    Args:
        flow: the model.
        detail: what counts.
        register: shared with the other model.
    """

    def __init__(self, flow: Flow, detail: Detail, register: Register) -> None:
        self._flow, self._detail, self._register = flow, detail, register
        self.up: dict[ir.Node, int] = {}
        self.down: dict[ir.Node, int] = {}
        own = {node: register.number(self._own(node)) for node in flow.nodes}
        for node in flow.nodes:
            self.up[node] = register.number((own[node], tuple(self.of_value(value) for value in flow.inputs[node])))
        for node in reversed(flow.nodes):
            self.down[node] = register.number((own[node], tuple(self._after(value) for value in node.outputs)))

    def of_value(self, value: ir.Value | None) -> int:
        """The fingerprint of a value, by all that leads to it."""
        if value is None:
            return self._register.number("absent")
        producer = value.producer()
        if value in self._flow.sources:
            return self._register.number(self._flow.sources[value])
        if self._flow.constant(value) is not None:
            return self._register.number(self._constant(value))
        return self._register.number(("value", self.up.get(producer) if producer else None, value.index()))

    def _own(self, node: ir.Node) -> tuple[Any, ...]:
        """What a node is by itself: operator, attributes, constants."""
        constants = [
            (position, self._constant(value))
            for position, value in enumerate(self._flow.inputs[node])
            if value is not None and self._flow.constant(value) is not None
        ]
        attributes = () if self._detail == "operator" else tuple(sorted(self._flow.attributes(node).items(), key=lambda item: item[0]))
        return operator_of(node), attributes, tuple(constants)

    def _constant(self, value: ir.Value) -> tuple[Any, ...]:
        tensor = self._flow.constant(value)
        assert tensor is not None
        if self._detail == "content":
            return "constant", self._flow.digest(value)
        return ("constant", tensor.dtype, tuple(tensor.shape.numpy())) if self._detail == "shape" else ("constant",)

    def _after(self, value: ir.Value) -> tuple[Any, ...]:
        users = sorted((self.down[node], position) for node, position in self._flow.users.get(value, ()) if node in self.down)
        return tuple(users), tuple(self._flow.sinks.get(value, ()))

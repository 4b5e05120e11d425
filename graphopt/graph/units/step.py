"""A step of the analysis: one node, the axes of its inputs, and what a rule may ask and tell."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from graphopt.graph.units.ties import Axis, Ties
from graphopt.graph.view import View, attribute, operator_of

Axes = Sequence[Axis]
"""The axes of one value."""


@dataclass(frozen=True)
class Step:
    """One node.

    Attributes:
        node: the operator.
        view: of the model.
        ties: told what goes together.
        inputs: the axes of each input; None for an absent one and for one of unknown rank.
        lengths: the lengths of a value's axes, symbolic ones at made-up sizes; None where the rank is unknown.
    """

    node: ir.Node
    view: View
    ties: Ties
    inputs: Sequence[Axes | None]
    lengths: Callable[[ir.Value | None], tuple[int, ...] | None]

    @property
    def why(self) -> str:
        """The reason for what this node pins."""
        return f"{operator_of(self.node)} {self.node.name}"

    @property
    def out(self) -> tuple[int, ...]:
        """The lengths of the first output; raises where they are unknown."""
        return self.length_of(self.node.outputs[0])

    def axes(self, index: int = 0) -> Axes:
        """The axes of an input.

        Raises:
            UnknownError: it is absent, or nobody knows how many it has.
        """
        found = self.inputs[index] if index < len(self.inputs) else None
        if found is None:
            raise UnknownError
        return found

    def has(self, index: int) -> bool:
        """Whether an optional input is there."""
        return index < len(self.node.inputs) and self.node.inputs[index] is not None

    def length(self, index: int = 0) -> tuple[int, ...]:
        """The lengths of an input.

        Raises:
            UnknownError: nobody knows them.
        """
        return self.length_of(self.node.inputs[index])

    def length_of(self, value: ir.Value | None) -> tuple[int, ...]:
        """The lengths of a value.

        Raises:
            UnknownError: nobody knows them.
        """
        found = self.lengths(value)
        if found is None:
            raise UnknownError
        return found

    def axis(self, name: str = "axis", default: int = 0, index: int = 0) -> int:
        """An attribute that counts an input's axes, from the front."""
        return attribute(self.node, name, default) % max(len(self.axes(index)), 1)

    def tie(self, a: Axis, b: Axis) -> Axis:
        """Two axes go together."""
        return self.ties.tie(a, b, self.why)

    def pin(self, *axes: Axis) -> None:
        """Axes stay as they are."""
        for axis in axes:
            self.ties.pin(axis, self.why)

    def broadcast(self, *operands: tuple[Axes, Sequence[int]], out: Sequence[int]) -> list[Axis]:
        """The axes of what operands (axes and lengths) broadcast to; axes of one length go together."""
        result: list[Axis] = []
        for back in range(len(out), 0, -1):
            wanted = out[-back]
            present = [(axes[-back], lengths[-back]) for axes, lengths in operands if len(lengths) >= back]
            own = [axis for axis, length in present if length == wanted and length != 1]
            odd = [axis for axis, length in present if length not in (1, wanted)]
            self.pin(*odd, *(own if odd else ()))
            merged = own[0] if own and not odd else None
            for other in own[1:]:
                merged = self.tie(merged, other)
            result.append(merged)
        return result


class UnknownError(Exception):
    """What a rule needs to know is not known: the node is opaque."""


Rule = Callable[[Step], Sequence[Axes]]
"""The axes of a node's outputs, from those of its inputs; raises UnknownError where it cannot tell."""

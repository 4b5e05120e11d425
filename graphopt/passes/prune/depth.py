"""Depth: whole residual branches that hardly change the stream they are added to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from graphopt import ledger
from graphopt.errors import LimitError, RecipeError
from graphopt.graph.edits import can_stand_for, remove_dead, replace_value
from graphopt.graph.layers import layer_of
from graphopt.graph.view import operator_of
from graphopt.passes.base import Context, GuidedPass, Role
from graphopt.runtime.session import open_session
from graphopt.runtime.statistics.chain import prepared

Array = np.ndarray[Any, Any]

_SAMPLES = 32
"""So many samples say how much a branch changes its stream."""


@dataclass(frozen=True)
class Depth(GuidedPass):
    """Replaces residual branches with nothing: the stream goes on as it was where a branch changes it least.

    Applies where a sum adds to a value what layers make of that value alone, as attention and feed-forward blocks and the blocks of
    residual networks do. Approximate: the change of each branch is measured on samples as one minus the cosine between the stream before
    and after it. Saves all time and all weights of the branch.

    Attributes:
        branches: how many go.
    """

    name: ClassVar[str] = "depth"
    role: ClassVar[Role] = "approximate"

    branches: int = 1

    def __post_init__(self) -> None:
        """Checks the number."""
        if self.branches < 1:
            raise RecipeError(f"depth: branches is how many go, 1 at least, not {self.branches}")

    def run(self, model: ir.Model, context: Context) -> bool:
        """Removes the branches that change their streams least."""
        every = list(branches_of(model))
        if len(every) < self.branches:
            raise LimitError(f"depth: {self.branches} branches are to go, and the model has {len(every)} that can; ask for so many at most")
        found = [branch for branch in every if not ledger.denies(ledger.Key(self.name, "", branch.end.name or ""))]
        changes, went = _changes(model, found, context), False
        for index in sorted(np.argsort(changes, kind="stable")[: self.branches].tolist()):
            branch, key = found[index], ledger.Key(self.name, "", found[index].end.name or "")
            before, after = branch.stream, branch.end.outputs[0]
            if not can_stand_for(after, before):
                raise LimitError(f"depth: the branch that ends at {branch.end.name} makes an output, which must keep its name")
            if not ledger.allow(key):
                continue
            replace_value(after, before)
            removed = tuple(node.name or "" for node in remove_dead([after]).nodes)
            reason = "the branch hardly changes its stream"
            ledger.record(ledger.Rewrite(key, removed=removed, reason=reason, predicted_error=changes[index]))
            went = True
        return went


@dataclass(frozen=True)
class Branch:
    """What a residual stream passes by.

    Attributes:
        end: the sum.
        slot: which of its inputs is the stream.
    """

    end: ir.Node
    slot: int

    @property
    def stream(self) -> ir.Value:
        """The stream before the sum."""
        value = self.end.inputs[self.slot]
        assert value is not None
        return value


def branches_of(model: ir.Model) -> Iterator[Branch]:
    """Sums of a value and of what layers make of it, whose end is no output of the model."""
    for node in model.graph:
        if operator_of(node) not in ("Add", "Sum") or len(node.inputs) != 2 or node.outputs[0].is_graph_output():
            continue
        for slot in (0, 1):
            stream, other = node.inputs[slot], node.inputs[1 - slot]
            if stream is not None and other is not None and stream.producer() is not None and _comes_from(other, stream):
                yield Branch(node, slot)
                break


def _comes_from(value: ir.Value, stream: ir.Value) -> bool:
    """Whether layers make a value of the stream, and of nothing else that is computed of it or beside it."""
    pending, seen, layers, reached = [value], set[ir.Value](), 0, False
    sources = _ancestors(stream)
    while pending:
        current = pending.pop()
        if current in seen:
            continue
        seen.add(current)
        if current is stream:
            reached = True
            continue
        node = current.producer()
        if node is None or current in sources:
            if node is not None and current in sources and _is_wide(current):
                return False  # it goes around the stream
            continue
        layers += layer_of(node) is not None
        pending.extend(used for used in node.inputs if used is not None)
    return reached and layers > 0


def _is_wide(value: ir.Value) -> bool:
    """Whether it holds activations, and not what positions or masks determine."""
    node = value.producer()
    return node is not None and layer_of(node) is not None


def _ancestors(value: ir.Value) -> set[ir.Value]:
    found, pending = set[ir.Value](), [value]
    while pending:
        node = pending.pop().producer()
        for used in () if node is None else node.inputs:
            if used is not None and used not in found:
                found.add(used)
                pending.append(used)
    return found


def _changes(model: ir.Model, branches: Sequence[Branch], context: Context) -> list[float]:
    """One minus the cosine between each stream before and after a branch, the mean over samples; made-up ones too."""
    copy = prepared(model)
    values = {value.name: value for node in copy.graph for value in node.outputs}
    pairs = [(branch.stream.name or "", branch.end.outputs[0].name or "") for branch in branches]
    copy.graph.outputs[:] = [values[name] for name in dict.fromkeys(name for pair in pairs for name in pair)]
    session = open_session(copy, "all", context.options)
    totals, count = np.zeros(len(pairs)), 0
    for feed in islice(context.samples, _SAMPLES):
        found = session.run(feed)
        totals += [_distance(found[before], found[after]) for before, after in pairs]
        count += 1
    return [float(total) for total in totals / max(count, 1)]


def _distance(before: Array, after: Array) -> float:
    if before.shape != after.shape:  # the branch broadcasts its stream: nothing else has that shape
        return float("inf")
    a, b = before.astype(np.float64).reshape(-1), after.astype(np.float64).reshape(-1)
    scale = float(np.linalg.norm(a) * np.linalg.norm(b))
    return 1.0 - float(a @ b) / scale if scale else 0.0

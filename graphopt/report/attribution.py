"""Attribution: which nodes of a file an executed node stands for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from graphopt.runtime.profile import NodeTime


@dataclass(frozen=True)
class Executed:
    """A node that the runtime executes, and what it stands for.

    Attributes:
        time: its name, kernel and seconds.
        nodes: nodes of the file that it computes; none for what the runtime added, such as conversions of layouts.
        reads: values of the file that go in, constants included.
        writes: values of the file that come out.
    """

    time: NodeTime
    nodes: Sequence[ir.Node]
    reads: Sequence[ir.Value]
    writes: Sequence[ir.Value]


def attribute(model: ir.Model, times: Sequence[NodeTime]) -> list[Executed]:
    """Finds for each executed node what lies between the values that it writes and those that other executed nodes write.

    A fused node keeps the name of the last value; where the runtime renames that too, as for its blocked layouts, its own name begins
    with that of the value or of the node.

    Args:
        model: the file, of which each node has a name.
        times: what the runtime executes.
    """
    values = {value.name: value for node in model.graph for value in node.outputs if value.name}
    nodes = {node.name: node for node in model.graph if node.name}
    ends = [_ends(time, values, nodes) for time in times]
    known = {value for found in ends for value in found}
    free = set(nodes.values())
    found = []
    for time, writes in zip(times, ends, strict=True):
        inside = [node for node in _behind(writes, known) if node in free]
        free.difference_update(inside)
        made = {value for node in inside for value in node.outputs}
        reads = dict.fromkeys(value for node in inside for value in node.inputs if value is not None and value not in made)
        found.append(Executed(time, inside, list(reads), writes))
    return found


def _ends(time: NodeTime, values: dict[str, ir.Value], nodes: dict[str, ir.Node]) -> list[ir.Value]:
    written = [values[name] for name in time.outputs if name in values]
    name = time.name
    while not written and name:
        if name in values:
            written = [values[name]]
        elif name in nodes:
            written = [value for value in nodes[name].outputs if value.name]
        name = name.rpartition("_")[0]
    return written


def _behind(writes: Sequence[ir.Value], known: set[ir.Value]) -> Iterator[ir.Node]:
    """The nodes that make some values, back to values that are known to be made by others."""
    pending, seen = list(writes), set(writes)
    yielded: set[ir.Node] = set()
    while pending:
        node = pending.pop().producer()
        if node is None or node in yielded:
            continue
        yielded.add(node)
        yield node
        for value in node.inputs:
            if value is not None and value not in seen and value not in known:
                seen.add(value)
                pending.append(value)

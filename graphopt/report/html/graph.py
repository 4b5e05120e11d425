"""The drawing of a model's graph: nodes with places and stories, edges, blocks that repeat."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnx_ir as ir

from graphopt.errors import GraphoptError
from graphopt.graph.difference import Flow
from graphopt.graph.view import View, operator_of
from graphopt.report.catalogue import summary_of
from graphopt.report.html.blocks import repeated
from graphopt.report.html.layout import layered
from graphopt.report.lineage import Lineage, titled

_LONGEST = 120


def drawing_of(model: ir.Model, lineage: Lineage, executions: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What the page needs to draw a model, whole and with its repeated blocks folded.

    Args:
        model: of which each node has a name.
        lineage: which passes made what.
        executions: kernel and time by name of a node.
    """
    flow = Flow(model)
    view = View(model)
    names = [node.name or "" for node in flow.nodes]
    known = set(names)
    edges = [
        (maker.name or "", node.name or "")
        for node in flow.nodes
        for value in flow.inputs[node]
        if value is not None and (maker := value.producer()) is not None and maker.name in known
    ]
    edges = list(dict.fromkeys(edges))
    blocks = repeated([_kind(flow, node) for node in flow.nodes])
    title = next(title for title in ("block", "repeated block", "repeated block of the model") if f"{title} 1" not in known)
    block_of = {names[number]: f"{title} {index}" for index, block in enumerate(blocks, 1) for number in block}
    folded = {name: block_of.get(name, name) for name in names}
    outer = list(dict.fromkeys(folded.values()))
    across = list(dict.fromkeys((folded[tail], folded[head]) for tail, head in edges if folded[tail] != folded[head]))
    places, folded_places = layered(names, edges), layered(_sorted(outer, across), across)
    return {
        "nodes": [
            {"id": name, "block": block_of.get(name), "at": places[name]}
            | _story(flow, view, node, lineage)
            | {"execution": executions.get(name)}
            for name, node in zip(names, flow.nodes, strict=True)
        ],
        "edges": edges,
        "folded": {"nodes": [{"id": name, "at": folded_places[name]} for name in outer], "edges": across},
    }


def _kind(flow: Flow, node: ir.Node) -> tuple[Any, ...]:
    constants = (flow.constant(value) for value in node.inputs)
    return operator_of(node), tuple(tuple(tensor.shape.numpy()) for tensor in constants if tensor is not None)


def _sorted(nodes: list[str], edges: list[tuple[str, str]]) -> list[str]:
    """An order in which each node follows those before it; edges that fold into a circle give way."""
    before: dict[str, set[str]] = {node: set() for node in nodes}
    for tail, head in edges:
        before[head].add(tail)
    order: dict[str, None] = {}
    waiting = list(nodes)
    while waiting:
        ready = [node for node in waiting if before[node] <= order.keys()] or waiting[:1]
        order.update(dict.fromkeys(ready))
        waiting = [node for node in waiting if node not in order]
    place = {node: number for number, node in enumerate(order)}
    edges[:] = [(tail, head) for tail, head in edges if place[tail] < place[head]]
    return list(order)


def _story(flow: Flow, view: View, node: ir.Node, lineage: Lineage) -> dict[str, Any]:
    steps, origins = lineage.origins(node.name or "")
    return {
        "operator": operator_of(node),
        "made_by": steps[-1].key.pass_name if steps else "",
        "attributes": {name: _short(found.value) for name, found in node.attributes.items() if found.type != ir.AttributeType.GRAPH},
        "inputs": [_described(flow, view, value) for value in node.inputs if value is not None],
        "outputs": [_described(flow, view, value) for value in node.outputs],
        "origins": origins if steps else [],
        "steps": [{"rewrite": titled(s.key), "about": s.reason or _summary(*s.key[:2])} for s in steps],
    }


def _summary(pass_name: str, rule: str) -> str:
    try:
        return summary_of(pass_name, rule)
    except GraphoptError:  # a pass of somebody else's, that is not installed here
        return ""


def _described(flow: Flow, view: View, value: ir.Value) -> str:
    shape = view.shape(value)
    dtype = view.dtype(value)
    sizes = "" if shape is None else f"[{', '.join(map(str, shape))}]"
    constant = " (constant)" if flow.constant(value) is not None else ""
    return f"{value.name}: {dtype.name.lower() if dtype else '?'}{sizes}{constant}"


def _short(value: object) -> str:
    text = value.decode(errors="replace") if isinstance(value, bytes) else str(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"

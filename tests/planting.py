"""Edits planted into models at random places, under other names and in another order, for what should find them."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import onnx_ir as ir

from graphopt.graph.difference.flow import is_constant_node
from graphopt.graph.edits import all_nodes, nested

ALIKE = [
    ("Relu", "Sigmoid", "Tanh", "Erf", "Sqrt", "Neg"),
    ("Add", "Mul", "Sub", "Div"),
    ("Softmax", "LogSoftmax"),
    ("ReduceMean", "ReduceSum"),
]


class Planted(NamedTuple):
    """What was planted: the kind of change, and the name of the node that it is of."""

    kind: str
    node: str


def is_constant(value: ir.Value | None) -> bool:
    """Whether a value is a constant."""
    return value is not None and not value.is_graph_input() and ir.convenience.get_const_tensor(value) is not None


def dynamic(node: ir.Node) -> list[int]:
    """The numbers of the inputs that are no constants."""
    return [index for index, value in enumerate(node.inputs) if value is not None and not is_constant(value)]


def change_weight(node: ir.Node, rng: random.Random) -> Planted | None:
    """One element of a weight changes."""
    for value in node.inputs:
        if value is not None and value.is_initializer() and len(value.uses()) == 1 and value.dtype == ir.DataType.FLOAT:
            array = ir.convenience.get_const_tensor(value).numpy().copy()  # type: ignore[union-attr]  # it is an initializer
            array.reshape(-1)[rng.randrange(array.size)] += 1.0
            value.const_value = ir.tensor(array, name=value.name)
            return Planted("weight", node.name or "")
    return None


def change_attribute(node: ir.Node, rng: random.Random) -> Planted | None:
    """A number in an attribute changes."""
    numbers = [each for each in node.attributes.values() if each.type in (ir.AttributeType.INT, ir.AttributeType.FLOAT)]
    if not numbers:
        return None
    chosen = rng.choice(numbers)
    whole = chosen.type == ir.AttributeType.INT
    node.attributes[chosen.name] = ir.AttrInt64(chosen.name, chosen.value + 1) if whole else ir.AttrFloat32(chosen.name, chosen.value + 0.5)
    return Planted("attribute", node.name or "")


def insert_node(node: ir.Node, rng: random.Random) -> Planted | None:
    """A node comes between this one and what it reads."""
    if not dynamic(node) or node.graph is None:
        return None
    index = rng.choice(dynamic(node))
    new = ir.node(rng.choice(["Identity", "Neg", "Abs"]), [node.inputs[index]], name="planted")
    new.outputs[0].name = "planted value"
    node.graph.insert_before(node, new)
    node.replace_input_with(index, new.outputs[0])
    return Planted("added", "planted")


def delete_node(node: ir.Node, rng: random.Random) -> Planted | None:
    """The node goes; what read it reads its input."""
    del rng
    inputs = dynamic(node)
    if len(inputs) != 1 or len(node.outputs) != 1 or node.outputs[0].is_graph_output() or node.graph is None:
        return None
    before = node.inputs[inputs[0]]
    assert before is not None
    node.outputs[0].replace_all_uses_with(before)
    node.graph.remove(node, safe=True)
    return Planted("removed", node.name or "")


def change_operator(node: ir.Node, rng: random.Random) -> Planted | None:
    """The node becomes another one of the same form."""
    for operators in ALIKE:
        if node.op_type in operators:
            node.op_type = rng.choice([other for other in operators if other != node.op_type])
            return Planted("replaced", node.name or "")
    return None


def swap_inputs(node: ir.Node, rng: random.Random) -> Planted | None:
    """Two inputs change places."""
    del rng
    inputs = dynamic(node)[:2]
    if len(inputs) < 2 or node.inputs[inputs[0]] is node.inputs[inputs[1]]:
        return None
    first, second = (node.inputs[index] for index in inputs)
    node.replace_input_with(inputs[0], second)
    node.replace_input_with(inputs[1], first)
    return Planted("input", node.name or "")


def move_input(node: ir.Node, rng: random.Random) -> Planted | None:
    """An input comes from another, earlier node."""
    if not dynamic(node) or node.graph is None:
        return None
    index = rng.choice(dynamic(node))
    earlier: list[ir.Value] = []
    for other in node.graph:
        if other is node:
            break
        earlier.extend(value for value in other.outputs if not is_constant_node(other) and value is not node.inputs[index])
    if not earlier:
        return None
    node.replace_input_with(index, rng.choice(earlier))
    return Planted("input", node.name or "")


EDITS: list[Callable[[ir.Node, random.Random], Planted | None]] = [
    change_weight,
    change_attribute,
    insert_node,
    delete_node,
    change_operator,
    swap_inputs,
    move_input,
]


def plant(model: ir.Model, rng: random.Random) -> Planted:
    """Plants one edit of a random kind at a random node of the main graph."""
    nodes = [node for node in model.graph if not is_constant_node(node)]
    while True:
        planted = rng.choice(EDITS)(rng.choice(nodes), rng)
        if planted is not None:
            return planted


def scramble(model: ir.Model, rng: random.Random) -> dict[str, str]:
    """Gives all nodes and inner values other names, and the nodes another order in which each follows what it depends on.

    Returns:
        The former names of nodes by the new ones.
    """
    former = {}
    for number, node in enumerate(all_nodes(model)):
        name = f"n{rng.randrange(10**9)}_{number}"
        former[name] = node.name or ""
        node.name = name
    for graph in model.graphs():
        keep = {*graph.inputs, *graph.outputs}
        values = [*graph.initializers.values(), *(value for node in graph for value in node.outputs if value.name)]
        for number, value in enumerate(value for value in values if value not in keep):
            value.name = f"v{rng.randrange(10**9)}_{number}_{id(graph)}"
    nodes = list(model.graph)
    order = list(_shuffled(nodes, rng))
    for node in nodes:
        model.graph.remove(node)
    model.graph.extend(order)
    return former


def _shuffled(nodes: list[ir.Node], rng: random.Random) -> Iterator[ir.Node]:
    members = set(nodes)
    needs: dict[ir.Node, set[Any]] = {}
    users: dict[ir.Node, list[ir.Node]] = defaultdict(list)
    for node in nodes:
        makers = {value.producer() for user in (node, *nested(node)) for value in user.inputs if value is not None}
        needs[node] = {maker for maker in makers if maker in members and maker is not node}
        for maker in needs[node]:
            users[maker].append(node)
    ready = [node for node in nodes if not needs[node]]
    while ready:
        node = ready.pop(rng.randrange(len(ready)))
        yield node
        for user in users[node]:
            needs[user].discard(node)
            if not needs[user]:
                ready.append(user)

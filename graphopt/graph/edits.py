"""Safe edits: unique names, stable names of what survives, no stale uses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir

from graphopt.graph.scratch import tensor_of


class Names:
    """Hands out names that no value and no node of a model bears yet.

    Args:
        model: the model; subgraphs and functions count too.
    """

    def __init__(self, model: ir.Model) -> None:
        values, nodes = Counter[str](), Counter[str]()
        for graph in model.graphs():
            values.update(value.name or "" for value in {*graph.inputs, *graph.initializers.values()})
            for node in graph:
                nodes[node.name or ""] += 1
                values.update(value.name or "" for value in node.outputs)
        self._taken = values.keys() | nodes.keys()
        self._shared = {name for names in (values, nodes) for name, count in names.items() if count > 1}

    def fresh(self, wish: str) -> str:
        """Returns ``wish``, or ``wish_1``, ``wish_2``, … where it is taken, and takes it."""
        name, count = wish, 0
        while name in self._taken:
            count += 1
            name = f"{wish}_{count}"
        self._taken.add(name)
        return name

    def private(self, name: str) -> str:
        """Returns the name itself where one thing bears it; else, as in the two branches of an If, a fresh one like it."""
        return self.fresh(name) if name in self._shared else name


class Builder:
    """Makes nodes just before an anchor node, and constants, under fresh names derived from the anchor.

    Attributes:
        added: the nodes made so far.
        constants: the initializers made so far.
    """

    def __init__(self, anchor: ir.Node, names: Names) -> None:
        graph = anchor.graph
        if not isinstance(graph, ir.Graph):
            raise TypeError(f"the anchor {anchor.name} stands in no graph")
        self._anchor, self._graph, self._names = anchor, graph, names
        self.added: list[ir.Node] = []
        self.constants: list[ir.Value] = []

    def op(self, op_type: str, *inputs: ir.Value | None, domain: str = "", **attributes: Any) -> ir.Value:
        """Makes a node with one output; attributes that are None are left out."""
        return self.ops(op_type, *inputs, outputs=1, domain=domain, **attributes)[0]

    def ops(self, op_type: str, *inputs: ir.Value | None, outputs: int, domain: str = "", **attributes: Any) -> Sequence[ir.Value]:
        """Makes a node with several outputs."""
        name = self._names.fresh(f"{self._anchor.name}/{op_type}")
        node = ir.node(
            op_type, inputs, {k: v for k, v in attributes.items() if v is not None}, domain=domain, num_outputs=outputs, name=name
        )
        for index, value in enumerate(node.outputs):
            value.name = self._names.fresh(f"{name}:{index}" if index else name)
        self._graph.insert_before(self._anchor, node)
        self.added.append(node)
        return node.outputs

    def copy(self, node: ir.Node, *inputs: ir.Value | None, **changed: Any) -> Sequence[ir.Value]:
        """Makes a node like another one (operator, attributes, number of outputs) with other inputs and some attributes changed."""
        attributes: dict[str, Any] = dict(node.attributes)
        return self.ops(node.op_type, *inputs, outputs=len(node.outputs), domain=node.domain, **(attributes | changed))

    def move(self, graph: ir.Graph) -> None:
        """Moves the nodes and initializers of a subgraph of the anchor to just before it; names that others bear too are changed."""
        for name, value in list(graph.initializers.items()):
            del graph.initializers[name]
            value.name = self._names.private(name)
            self._graph.register_initializer(value)
        for node in list(graph):
            graph.remove(node)
            self._graph.insert_before(self._anchor, node)
            node.name = self._names.private(node.name or f"{self._anchor.name}/{node.op_type}")
            for output in node.outputs:
                output.name = self._names.private(output.name) if output.name else output.name  # an absent output has none
            self.added.append(node)

    def constant(self, array: np.ndarray[Any, Any], wish: str = "") -> ir.Value:
        """Registers an initializer in the graph of the anchor; ``wish`` is the name that it should resemble."""
        name = self._names.fresh(wish or f"{self._anchor.name}/constant")
        value = ir.val(name, const_value=tensor_of(array, name))
        self._graph.register_initializer(value)
        self.constants.append(value)
        return value


def nested(node: ir.Node) -> Iterator[ir.Node]:
    """All nodes inside the subgraphs of a node, at any depth."""
    for attribute in node.attributes.values():
        graphs: Sequence[ir.Graph] = ()
        if isinstance(attribute, ir.Attr) and attribute.type == ir.AttributeType.GRAPH:
            graphs = (attribute.as_graph(),)
        elif isinstance(attribute, ir.Attr) and attribute.type == ir.AttributeType.GRAPHS:
            graphs = attribute.as_graphs()
        for graph in graphs:
            for inner in graph:
                yield inner
                yield from nested(inner)


def all_nodes(model: ir.Model) -> Iterator[ir.Node]:
    """All nodes of the main graph and, after each node, those of its subgraphs; functions are left out."""
    for node in model.graph:
        yield node
        yield from nested(node)


def can_stand_for(old: ir.Value, new: ir.Value) -> bool:
    """Whether ``new`` can take the place of ``old`` without an Identity in between.

    It can unless ``old`` is an output of its graph, whose name must stay, and ``new`` cannot take that name: it is an
    input, an initializer, another output, or belongs to an outer graph.
    """
    if not old.is_graph_output():
        return True
    producer, owner = new.producer(), old.producer()
    return producer is not None and owner is not None and producer.graph is owner.graph and not new.is_graph_output()


def replace_value(old: ir.Value, new: ir.Value) -> None:
    """Lets every use of ``old``, graph outputs included, use ``new`` instead.

    Where ``old`` is a graph output, ``new`` takes its name; :func:`can_stand_for` must hold.
    The type and shape of ``old`` go over where ``new`` has none, and always where ``old`` is a graph output.
    """
    is_output = old.is_graph_output()
    if new.type is None or is_output:
        new.type = old.type
    if new.shape is None or is_output:
        new.shape = old.shape
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    if is_output:
        name = old.name
        old.name = f"{name}/replaced"
        new.name = name


def remove_node(node: ir.Node) -> list[ir.Value]:
    """Removes a node whose outputs nobody uses, subgraphs included.

    Returns:
        The values that the node and its subgraphs used, each once.
    """
    used: dict[ir.Value, None] = {}
    for user in (node, *nested(node)):
        for index, value in enumerate(user.inputs):
            if value is not None:
                used[value] = None
                user.replace_input_with(index, None)
    if node.graph is not None:
        node.graph.remove(node, safe=True)
    return list(used)


class Removed(NamedTuple):
    """What went.

    Attributes:
        nodes: the nodes that were removed, those inside their subgraphs included.
        freed: the values that they used.
    """

    nodes: list[ir.Node]
    freed: list[ir.Value]


def remove_dead(values: Sequence[ir.Value]) -> Removed:
    """Removes the nodes and initializers behind values that nobody uses any more, and what only they used."""
    removed = Removed([], [])
    pending = list(values)
    while pending:
        value = pending.pop()
        node = value.producer()
        if node is None:
            _drop_initializer(value)
        elif node.graph is not None and is_dead(node):
            removed.nodes.extend((node, *nested(node)))
            used = remove_node(node)
            removed.freed.extend(used)
            pending.extend(used)
    return removed


def is_dead(node: ir.Node) -> bool:
    """Whether nobody uses any output of a node."""
    return all(not output.uses() and not output.is_graph_output() for output in node.outputs)


def _drop_initializer(value: ir.Value) -> None:
    graph = value.graph
    if value.is_initializer() and not value.uses() and not value.is_graph_output() and not value.is_graph_input() and graph is not None:
        graph.initializers.pop(value.name or "", None)


def name_nodes(model: ir.Model) -> None:
    """Gives every node a name of its own: unnamed ones ``Operator:first output``, repeated ones a number.

    See :func:`forget_given_names` for the way back.
    """
    names = Names(model)
    seen: set[str] = set()
    for node in all_nodes(model):
        if not node.name:
            node.name = names.fresh(given_name(node))
        elif node.name in seen:
            node.name = names.fresh(node.name)
        seen.add(node.name)


def forget_given_names(model: ir.Model) -> None:
    """Takes away the names that :func:`name_nodes` made up, which would only cost space in a file."""
    for node in all_nodes(model):
        if node.name == given_name(node):
            node.name = None


def given_name(node: ir.Node) -> str:
    """The name that a node without one is given, and that no file spells: operator and first output."""
    first = next((output.name for output in node.outputs if output.name), "")
    return f"{node.op_type}:{first}"

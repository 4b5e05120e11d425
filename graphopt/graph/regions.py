"""Regions: what is left of a model when the nodes that the runtime cannot run are cut out, as one model that it can."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from graphopt.graph.edits import nested, remove_node

Known = Callable[[str, str, int], bool]
"""Whether the runtime has an operator: domain (empty for the standard one), operator type, version of the domain."""


@dataclass(frozen=True)
class Cut:
    """A model without its opaque nodes.

    Attributes:
        model: a copy; names are the original's, weights are shared with it. It has no outputs where nothing can be verified.
        unverifiable: names of nodes that could not stay, besides the opaque ones: they need a value of unknown element type
            or rank that an opaque node makes. Passes must leave them alone, since nothing checks them.
    """

    model: ir.Model
    unverifiable: tuple[str, ...]


def opaque_nodes(model: ir.Model, known: Known) -> tuple[ir.Node, ...]:
    """Finds the nodes of the main graph that the runtime has no operator for, itself or somewhere inside a subgraph or function."""
    bodies: dict[ir.OperatorIdentifier, bool] = {}

    def is_opaque(node: ir.Node, versions: Mapping[str, int]) -> bool:
        return any(is_missing(inner, versions) for inner in (node, *nested(node)))

    def is_missing(node: ir.Node, versions: Mapping[str, int]) -> bool:
        identifier = node.op_identifier()
        function = model.functions.get(identifier)
        if function is None:
            domain = "" if node.domain == "ai.onnx" else node.domain
            return not known(domain, node.op_type, versions.get(domain, 1))
        if identifier not in bodies:
            bodies[identifier] = any(is_opaque(inner, function.opset_imports) for inner in function)
        return bodies[identifier]

    return tuple(node for node in model.graph if is_opaque(node, model.graph.opset_imports))


def neighbourhood(model: ir.Model, nodes: Iterable[ir.Node]) -> tuple[ir.Node, ...]:
    """The nodes of the main graph that feed these nodes or use what they make, in order; these nodes themselves are left out."""
    middle = set(nodes)
    needed = {value for node in middle for value in _read(node)}
    made = {value for node in middle for value in node.outputs}
    return tuple(
        node for node in model.graph if node not in middle and (not needed.isdisjoint(node.outputs) or not made.isdisjoint(_read(node)))
    )


def without(model: ir.Model, nodes: Collection[str], types: Mapping[str, ir.TypeAndShape] | None = None) -> Cut:
    """Cuts nodes out: what they make is fed, and what they are fed becomes an output.

    The original and its rewritten form, cut at the same nodes, take the same inputs and can be compared by the names of
    their outputs, as long as these nodes and their neighbours were left alone.

    Args:
        model: stays as it is.
        nodes: names of nodes of the main graph; names that the graph lacks are passed over.
        types: element type and shape of values that the model itself does not tell.
    """
    copy = model.clone()
    graph = copy.graph
    opaque = [node for node in graph if node.name in nodes]
    if any(not _is_fed(value, types or {}) for node in opaque for value in node.outputs):
        ShapeInferencePass()(copy)
    fed = [value for node in opaque for value in node.outputs if value.name and _is_fed(value, types or {})]
    lost = {value for node in opaque for value in node.outputs} - set(fed)
    gone = set(opaque)
    unverifiable = []
    for node in graph:
        if node not in gone and not lost.isdisjoint(_read(node)):
            gone.add(node)
            lost.update(node.outputs)
            unverifiable.append(node.name or "")
    ends = (*graph.outputs, *(value for node in graph if node in gone for value in _read(node)))
    outputs = list(dict.fromkeys(value for value in ends if _is_computed(value, graph) and value.producer() not in gone))
    graph.outputs[:] = outputs
    for value in fed:
        graph.inputs.append(_as_input(value, types or {}))
    for node in reversed([node for node in graph if node in gone]):
        remove_node(node)
    for name in [name for name, value in graph.initializers.items() if not value.uses() and not value.is_graph_input()]:
        del graph.initializers[name]
    return Cut(copy, tuple(unverifiable))


def _read(node: ir.Node) -> list[ir.Value]:
    """What a node and its subgraphs read; values inside those subgraphs are among it."""
    return [value for user in (node, *nested(node)) for value in user.inputs if value is not None]


def _is_computed(value: ir.Value, graph: ir.Graph) -> bool:
    producer = value.producer()
    return producer is not None and producer.graph is graph


def _is_fed(value: ir.Value, types: Mapping[str, ir.TypeAndShape]) -> bool:
    """Whether enough is known of a value to make one up."""
    kind, shape = _type(value, types)
    return isinstance(kind, ir.TensorType) and shape is not None


def _type(value: ir.Value, types: Mapping[str, ir.TypeAndShape]) -> tuple[ir.TypeProtocol | None, ir.Shape | None]:
    given = types.get(value.name or "")
    return (value.type, value.shape) if given is None else (given.type, given.shape)


def _as_input(value: ir.Value, types: Mapping[str, ir.TypeAndShape]) -> ir.Value:
    """A value without a producer that takes the place of another one, name included."""
    kind, shape = _type(value, types)
    new = ir.Value(name=value.name, type=kind, shape=shape)
    value.replace_all_uses_with(new)
    value.name = f"{value.name}/cut"
    return new

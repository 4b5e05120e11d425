"""The verifier: whether a model's graphs obey ONNX's rules, and whether its signature stayed as it was."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache

import onnx
import onnx_ir as ir

from graphopt.errors import InvalidModelError
from graphopt.graph.signature import Port, Signature

_RUNTIME_OPERATORS = frozenset(
    {
        "Affine",
        "Crop",
        "DisentangledAttention_TRT",
        "DynamicSlice",
        "EfficientNMS_TRT",
        "GivenTensorFill",
        "ImageScaler",
        "LayerNormalization",
        "MultilevelCropAndResize_TRT",
        "ParametricSoftplus",
        "PyramidROIAlign_TRT",
        "Scale",
        "ScaledTanh",
        "SimplifiedLayerNormalization",
    }
)
"""Operators that ONNX Runtime has in the standard domain beside ONNX's own; exported language models use the last one."""

_STANDARD = ("", "ai.onnx")


def verify_structure(model: ir.Model) -> None:
    """Checks the main graph, its subgraphs and the model's functions, in time linear in their size.

    Names are unique where they are visible; every input of a node is defined before it, in its graph or around it; every
    initializer has data; every domain is imported; every operator of the standard domain exists at the imported opset.

    Raises:
        InvalidModelError: one line that names the node and the value.
    """
    functions = set(model.functions)
    _Checker(model.opset_imports, functions).check(model.graph, None, ())
    for function in model.functions.values():
        try:
            _Checker(function.opset_imports, functions).check(function.graph, None, ())
        except InvalidModelError as error:
            raise InvalidModelError(f"function {function.domain}::{function.name}: {error}") from error


def signature_changes(before: Signature, after: Signature) -> str | None:
    """Says how a model's signature changed, or None.

    A dimension or a rank that was unknown may become known on an output; anything else is a change.

    Args:
        before: the original's signature.
        after: the result's.

    Returns:
        One line naming the first input or output that differs, or None where the result fits wherever the original did.
    """
    for kind, old, new in (("input", before.inputs, after.inputs), ("output", before.outputs, after.outputs)):
        old_names, new_names = [port.name for port in old], [port.name for port in new]
        if old_names != new_names:
            return f"the {kind}s were {', '.join(old_names)} and are {', '.join(new_names) or 'none'}"
        for was, now in zip(old, new, strict=True):
            if was != now and not (kind == "output" and _refines(was, now)):
                return f"{kind} {was} became {now}"
    return None


def _refines(was: Port, now: Port) -> bool:
    if was.dtype not in (None, now.dtype):
        return False
    if was.shape is None:
        return True
    if now.shape is None or len(was.shape) != len(now.shape):
        return False
    return all(old is None or old == new for old, new in zip(was.shape, now.shape, strict=True))


@dataclass(frozen=True)
class _Scope:
    """What is visible in a graph by itself.

    Attributes:
        graph: the graph.
        holder: the node whose attribute the graph is; None for a main graph or a function.
        values: its inputs, its initializers and the outputs of the nodes checked so far, by name.
    """

    graph: ir.Graph
    holder: ir.Node | None
    values: dict[str, ir.Value] = field(default_factory=dict)

    def define(self, value: ir.Value, role: str) -> None:
        """Makes a value visible; its name must be new here."""
        if not value.name:
            raise InvalidModelError(f"{role}: a value without a name")
        if value.name in self.values:
            raise InvalidModelError(f"{role} {value.name!r}: the name is given twice in one graph (duplicate name)")
        self.values[value.name] = value


class _Checker:
    """Checks one graph and what is nested in it against its opset imports."""

    def __init__(self, imports: Mapping[str, int], functions: set[ir.OperatorIdentifier]) -> None:
        self._imports = {"" if domain in _STANDARD else domain: version for domain, version in imports.items()}
        self._functions = functions

    def check(self, graph: ir.Graph, holder: ir.Node | None, around: tuple[_Scope, ...]) -> None:
        """Checks a graph.

        Args:
            graph: the graph.
            holder: the node whose subgraph it is, if any.
            around: the scopes of the graphs it stands in, the outermost first.
        """
        scope = _Scope(graph, holder)
        for value in graph.inputs:
            scope.define(value, "graph input")
        _define_initializers(graph, scope)
        visible = (*around, scope)
        for node in graph:
            self._check_operator(node)
            for value in filter(None, node.inputs):
                _resolve(value, visible, node)
            for subgraph in _subgraphs(node):
                self.check(subgraph, node, visible)
            _define_outputs(node, scope, around)
        for value in graph.outputs:
            if scope.values.get(value.name or "") is not value:
                raise InvalidModelError(f"graph output {value.name!r} is computed by no node of its graph {graph.name or ''}".rstrip())

    def _check_operator(self, node: ir.Node) -> None:
        if node.op_identifier() in self._functions:
            return
        version = self._imports.get(node.domain)
        if version is None:
            raise InvalidModelError(
                f"{_label(node)} uses the domain {node.domain or 'ai.onnx'!r}, whose opset the model does not import; export it again"
            )
        if node.domain == "" and node.op_type not in _RUNTIME_OPERATORS:
            fault = _fault(node.op_type, version)
            if fault:
                raise InvalidModelError(f"{_label(node)}: {fault}")


def _define_initializers(graph: ir.Graph, scope: _Scope) -> None:
    for name, value in graph.initializers.items():
        if value.const_value is None:
            raise InvalidModelError(f"initializer {name!r} has no data (a missing initializer); export the model again")
        if value.name != name:
            raise InvalidModelError(f"initializer {value.name!r} is filed under the name {name!r}")
        if scope.values.get(name) is not value:  # an input's default value is an initializer of the same name
            scope.define(value, "initializer")


def _define_outputs(node: ir.Node, scope: _Scope, around: tuple[_Scope, ...]) -> None:
    for value in node.outputs:
        if not value.name and not value.uses():
            continue
        if any(value.name in outer.values for outer in around):
            raise InvalidModelError(
                f"output {value.name!r} of {_label(node)}: the name is already given in the graph around it (duplicate name)"
            )
        scope.define(value, f"output of {_label(node)}")


@cache
def _fault(op_type: str, version: int) -> str:
    """Why an operator of the standard domain cannot be used at an opset; empty where it can."""
    try:
        schema = onnx.defs.get_schema(op_type, version, "")
    except onnx.defs.SchemaError:
        if onnx.defs.has(op_type, ""):
            return f"opset {version} has no operator {op_type}; raise the model's opset"
        return f"ONNX has no operator {op_type}; give a custom operator a domain of its own"
    return f"operator {op_type} was removed by opset {version}; export the model again" if schema.deprecated else ""


def _resolve(value: ir.Value, visible: tuple[_Scope, ...], node: ir.Node) -> None:
    """Checks that a node's input is what its name means at that place."""
    name = value.name or ""
    found = next((scope.values[name] for scope in reversed(visible) if name in scope.values), None)
    if found is value:
        return
    if found is not None:
        raise InvalidModelError(f"input {name!r} of {_label(node)} is another value of the same name (duplicate name)")
    producer = value.producer()
    if producer is None:
        raise InvalidModelError(f"input {name!r} of {_label(node)} is missing: no initializer, no graph input and no node gives it")
    holders = {scope.holder for scope in visible if scope.holder is not None}
    if _needs(producer, {node} | holders):
        raise InvalidModelError(f"input {name!r} of {_label(node)} depends on the node's own output (a cycle)")
    if not any(producer.graph is scope.graph for scope in visible):
        raise InvalidModelError(f"input {name!r} of {_label(node)} comes from {_label(producer)}, which is in no graph around it")
    raise InvalidModelError(f"input {name!r} of {_label(node)} is used before {_label(producer)} computes it; sort the nodes")


def _needs(node: ir.Node, targets: set[ir.Node]) -> bool:
    """Whether a node is one of the targets or needs an output of one."""
    seen: set[ir.Node] = set()
    queue = [node]
    while queue:
        current = queue.pop()
        if current in targets:
            return True
        if current in seen:
            continue
        seen.add(current)
        inner = (nested for subgraph in _subgraphs(current) for nested in subgraph.all_nodes())
        for user in (current, *inner):
            queue.extend(producer for value in filter(None, user.inputs) if (producer := value.producer()) is not None)
    return False


def _subgraphs(node: ir.Node) -> Iterator[ir.Graph]:
    for attribute in node.attributes.values():
        if attribute.is_ref():
            continue
        if attribute.type == ir.AttributeType.GRAPH:
            yield attribute.as_graph()
        elif attribute.type == ir.AttributeType.GRAPHS:
            yield from attribute.as_graphs()


def _label(node: ir.Node) -> str:
    """How a message names a node."""
    return f"{node.op_type} node {node.name or (node.outputs[0].name if node.outputs else '')!r}"

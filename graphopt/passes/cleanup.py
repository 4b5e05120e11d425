"""Whole-model tidying: what is unused, what only an exporter needed, and forms that other passes need not know."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import (
    InlinePass,
    NameFixPass,
    RemoveInitializersFromInputsPass,
    RemoveUnusedFunctionsPass,
    RemoveUnusedNodesPass,
    RemoveUnusedOpsetsPass,
)

from graphopt import ledger
from graphopt.graph.edits import Names, all_nodes, is_dead, remove_dead
from graphopt.ledger import Key
from graphopt.passes.base import Pass
from graphopt.passes.foreign import as_one_rewrite

_FIRST_IR_WITHOUT_INITIALIZER_INPUTS = 4


@dataclass(frozen=True)
class Cleanup(Pass):
    """Replaces a model as its exporter left it with a plain one.

    Functions are inlined, Constant nodes become initializers, initializers are no inputs, each node has a name, nodes stand in
    order, and unused nodes, initializers, functions, opset imports, documentation and per-node metadata are gone. Exact. Linear.
    """

    name: ClassVar[str] = "cleanup"
    steps: ClassVar[dict[str, str]] = {
        "sort-nodes": "Puts each node behind those whose results it uses.",
        "name-nodes": "Names nodes without a name, or with another node's.",
        "inline-functions": "Replaces calls of functions with their bodies.",
        "remove-initializers-from-inputs": "Removes initializers from the inputs, so that they are constants.",
        "lift-constants": "Replaces Constant nodes with initializers.",
        "remove-unused": "Removes unused nodes, initializers, functions and opset imports.",
        "strip-metadata": "Removes documentation and the exporter's notes on nodes and values.",
    }

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Runs the steps, each one rewrite."""
        changed = False
        for rule in self.steps:
            step = _STEPS[rule]
            changed |= as_one_rewrite(Key(self.name, rule), model, lambda m, step=step: ir.passes.PassResult(m, step(m))).modified  # type: ignore[misc]
        return ir.passes.PassResult(model, changed)


def sort_nodes(model: ir.Model) -> bool:
    """Puts each node behind those whose results it uses, where it is not; tells whether any moved."""
    changed = False
    graphs: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
    for graph in graphs:
        before = [*graph.all_nodes()]
        graph.sort()
        changed |= before != [*graph.all_nodes()]
    return changed


def name_nodes(model: ir.Model) -> bool:
    """Names nodes without a name, or with an earlier node's, after their first output; tells whether there were any."""
    names, nodes = Names(model), list(all_nodes(model))
    seen, unnamed = set[str](), []
    for node in nodes:
        if not node.name or node.name in seen:
            unnamed.append(node)
        else:
            seen.add(node.name)
    for node in unnamed:
        first = next((output.name for output in node.outputs if output.name), node.op_type)
        node.name = names.fresh(first) if first in seen else first  # a node and a value may have the same name
        seen.add(node.name)
    return bool(unnamed)


def inline_functions(model: ir.Model) -> bool:
    """Puts the bodies of functions in place of their calls; a function of another opset stays, with a note."""
    if not model.functions:
        return False
    result = InlinePass(criteria=lambda function: _is_inlinable(function, model))(model)
    if result.modified:
        NameFixPass()(model)
    return result.modified


def _is_inlinable(function: ir.Function, model: ir.Model) -> bool:
    mismatch = [d for d, version in function.opset_imports.items() if model.graph.opset_imports.get(d, version) != version]
    if mismatch:
        ledger.note(f"function {function.name} is not inlined: it uses another version of the operator set {mismatch[0] or 'ai.onnx'!r}")
    return not mismatch and not any(attribute.type in _GRAPHS for attribute in function.attributes.values())


_GRAPHS = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)


def remove_initializers_from_inputs(model: ir.Model) -> bool:
    """Takes inputs that have a default value off the inputs, so that they are constants.

    The IR version is raised where it demands that initializers are inputs.
    """
    if not RemoveInitializersFromInputsPass()(model).modified:
        return False
    model.ir_version = max(model.ir_version, _FIRST_IR_WITHOUT_INITIALIZER_INPUTS)
    return True


def lift_constants(model: ir.Model) -> bool:
    """Makes initializers of Constant nodes, under the same names; strings and sparse tensors stay."""
    changed = False
    for node in [node for node in all_nodes(model) if node.op_type == "Constant" and node.domain in ("", "ai.onnx")]:
        old, graph, tensor = node.outputs[0], node.graph, _constant_tensor(node)
        if tensor is None or not isinstance(graph, ir.Graph) or old.is_graph_output():
            continue
        new = ir.Value(name=old.name, shape=ir.Shape(tensor.shape.numpy()), type=ir.TensorType(tensor.dtype), const_value=tensor)
        old.replace_all_uses_with(new)
        graph.remove(node, safe=True)
        graph.register_initializer(new)
        changed = True
    return changed


def _constant_tensor(node: ir.Node) -> ir.TensorProtocol | None:
    """What a Constant node holds, in any of its forms but strings and sparse tensors."""
    types = {"value_int": np.int64, "value_ints": np.int64, "value_float": np.float32, "value_floats": np.float32}
    for name, attribute in node.attributes.items():
        if attribute.is_ref():
            return None
        if name == "value":
            tensor = attribute.as_tensor()
            return None if tensor.dtype == ir.DataType.STRING else tensor
        if name in types:
            return ir.tensor(np.array(attribute.value, dtype=types[name]), name=node.outputs[0].name)
    return None


def remove_unused(model: ir.Model) -> bool:
    """Removes nodes and initializers that nobody uses, in subgraphs too, unused optional outputs, functions and opset imports."""
    changed = False
    for node in reversed(list(all_nodes(model))):
        if node.graph is not None and node.outputs and is_dead(node):
            changed |= bool(remove_dead([node.outputs[0]]).nodes)
    for graph in model.graphs():
        for value in list(graph.initializers.values()):
            size = len(graph.initializers)
            remove_dead([value])
            changed |= len(graph.initializers) < size
    for library in (RemoveUnusedNodesPass, RemoveUnusedFunctionsPass, RemoveUnusedOpsetsPass):
        changed |= library()(model).modified
    return changed


def strip_metadata(model: ir.Model) -> bool:
    """Drops documentation and metadata of nodes, values, tensors and graphs; those of the model stay."""
    changed = False
    for item in _documented(model):
        if item.metadata_props or item.doc_string:
            item.metadata_props.clear()
            item.doc_string = None
            changed = True
    return changed


def _documented(model: ir.Model) -> Iterator[ir.Node | ir.Value | ir.Graph]:
    for graph in model.graphs():
        yield graph
        yield from graph.inputs
        yield from graph.initializers.values()
        for node in graph:
            yield node
            yield from node.outputs


_STEPS: dict[str, Callable[[ir.Model], bool]] = {
    "sort-nodes": sort_nodes,
    "name-nodes": name_nodes,
    "inline-functions": inline_functions,
    "remove-initializers-from-inputs": remove_initializers_from_inputs,
    "lift-constants": lift_constants,
    "remove-unused": remove_unused,
    "strip-metadata": strip_metadata,
}

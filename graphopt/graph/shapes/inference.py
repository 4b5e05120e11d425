"""Symbolic shapes of a model's values, and the contents of the small integer tensors that shapes are computed from.

Only graph inputs and constants are believed; what an exporter wrote onto other values may stem from one traced example.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import onnx_ir as ir
import sympy

from graphopt.graph.shapes import dims, schema
from graphopt.graph.shapes.dims import Dim
from graphopt.graph.shapes.facts import NOTHING, Content, Fact, Operands, Shape, fact_of_tensor
from graphopt.graph.shapes.layers import ALL_RULES, agreement

__all__ = ["Content", "Dim", "Fact", "Shapes", "annotate", "shapes_of"]

logger = logging.getLogger(__name__)

_NAMELESS = frozenset({"?", "*", "-1", "None", "none"})
"""What exporters write where they have no name for a length; two of these need not be equal."""


class Shapes:
    """Answers for any value of a model, values made later included; infers what it is asked for, once.

    Each named dimension of the model's inputs is one symbol, an integer of at least zero; each unnamed one, and each length
    that depends on data, is a symbol of its own. Rewrites that keep what values mean keep the answers true; after any
    other change make a new one.
    """

    def __init__(self, model: ir.Model) -> None:
        self._model = model
        self._facts: dict[ir.Value, Fact] = {}
        self._count = 0
        self._taken = {d.value for value in model.graph.inputs for d in value.shape or () if isinstance(d, ir.SymbolicDim)}
        self._functions = {(domain, name) for domain, name, _ in model.functions}

    @property
    def inputs(self) -> Sequence[ir.Value]:
        """The model's inputs, whose lengths the symbols stand for."""
        return self._model.graph.inputs

    def of(self, value: ir.Value) -> Shape | None:
        """One length per axis: numbers and integer expressions in the symbols; None where the rank is unknown."""
        return self.fact(value).shape

    def content(self, value: ir.Value) -> Content | None:
        """The elements of a small tensor (at most 64) of integers, booleans or floats; an unknown element is None."""
        return self.fact(value).content

    def dtype(self, value: ir.Value) -> ir.DataType | None:
        """The element type."""
        return self.fact(value).dtype

    def fact(self, value: ir.Value) -> Fact:
        """All that is known of a value."""
        pending = [value]
        entered: set[ir.Value] = set()
        while pending:
            current = pending[-1]
            if current in self._facts:
                pending.pop()
                continue
            node = current.producer()
            if node is None:
                self._facts[current] = self._source(current)
                continue
            missing = [needed for needed in _needed(node) if needed not in self._facts]
            if not missing:
                self._infer(node)
            elif entered.isdisjoint(missing):
                entered.add(current)
                pending.extend(missing)
            else:  # a cycle: no valid model has one, but it must not hang
                self._facts[current] = NOTHING
        return self._facts[value]

    def operands(self, node: ir.Node) -> Operands:
        """A node with what is known of its inputs."""
        domain = "" if node.domain == "ai.onnx" else node.domain
        opset = self._model.graph.opset_imports.get(domain, self._model.graph.opset_imports.get("ai.onnx", 1))
        return Operands(node, opset, tuple(None if value is None else self.fact(value) for value in node.inputs), self.fresh)

    def copy(self, old: ir.Value, new: ir.Value) -> None:
        """Tells that ``new`` stands for ``old``: what was known of either holds for it."""
        known = self._facts.get(old)
        if known is not None and self.fact(new).shape is None:
            self._facts[new] = known

    def fresh(self) -> Dim:
        """A length that is known to be nothing else."""
        while True:
            self._count += 1
            name = f"unknown_{self._count}"
            if name not in self._taken:
                return dims.symbol(name)

    def _source(self, value: ir.Value) -> Fact:
        """What is known of an input or a constant."""
        tensor = None if value.is_graph_input() else value.const_value
        if tensor is not None:
            return fact_of_tensor(tensor)
        dtype = value.dtype if isinstance(value.type, ir.TensorType) else None
        if not value.is_graph_input() or value.graph is not self._model.graph or value.shape is None:
            return Fact(dtype)
        return Fact(dtype, tuple(self._declared(d) for d in value.shape))

    def _declared(self, dim: int | ir.SymbolicDim) -> Dim:
        if isinstance(dim, int):
            return dim
        return dims.symbol(dim.value) if dim.value and dim.value not in _NAMELESS else self.fresh()

    def _infer(self, node: ir.Node) -> None:
        """Infers all outputs of a node whose inputs are known."""
        try:
            facts = self._facts_of(node)
        except Exception as error:  # a rule that meets what it does not expect knows nothing
            logger.debug("no shapes for %s (%s): %s", node.name, node.op_type, error)
            facts = ()
        for index, output in enumerate(node.outputs):
            fact = facts[index] if index < len(facts) else NOTHING
            if fact.dtype is None and isinstance(output.type, ir.TensorType):
                fact = Fact(output.dtype, fact.shape, fact.content)
            self._facts[output] = fact

    def _facts_of(self, node: ir.Node) -> Sequence[Fact]:
        if (node.domain, node.op_type) in self._functions:
            return ()
        domain = "" if node.domain == "ai.onnx" else node.domain
        operands = self.operands(node)
        if node.op_type == "If" and not domain:
            branches = [list(node.attributes[name].as_graph().outputs) for name in ("then_branch", "else_branch")]
            return [agreement([self._facts[value] for value in outputs], operands) for outputs in zip(*branches, strict=True)]
        rule = ALL_RULES.get(f"{domain}::{node.op_type}" if domain else node.op_type)
        found = None if rule is None else rule(operands)
        if found is None:
            return schema.infer(operands)
        return (found,) if isinstance(found, Fact) else found


def shapes_of(model: ir.Model) -> Shapes:
    """Symbolic shapes of a model; nothing is inferred before it is asked for."""
    return Shapes(model)


def annotate(model: ir.Model, shapes: Shapes) -> None:
    """Writes inferred types and shapes onto values, subgraphs included; expressions become the names of symbolic dimensions.

    Declared inputs and outputs stay as they are. A length that depends on data is written as unknown.
    """
    for node in model.graph.all_nodes():
        for value in node.outputs:
            _annotate_value(value, shapes)


def _annotate_value(value: ir.Value, shapes: Shapes) -> None:
    fact = shapes.fact(value)
    if value.is_graph_output():
        return
    if fact.dtype is not None and value.type is None:
        value.type = ir.TensorType(fact.dtype)
    if fact.shape is not None:
        value.shape = ir.Shape([d if isinstance(d, int) else ir.SymbolicDim(_name(d)) for d in fact.shape])


def _name(dim: sympy.Expr) -> str | None:
    return None if any(name.startswith("unknown_") for name in dims.symbols_of(dim)) else str(dim)


def _needed(node: ir.Node) -> list[ir.Value]:
    """The values whose facts a node's inference reads."""
    needed = [value for value in node.inputs if value is not None]
    if node.op_type == "If":
        for name in ("then_branch", "else_branch"):
            needed.extend(node.attributes[name].as_graph().outputs)
    return needed

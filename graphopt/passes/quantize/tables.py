"""Tables that rows are gathered from, and the heads that multiply with the same table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphopt.graph.view import View, attribute, input_of, operator_of
from graphopt.passes.quantize.constants import Constant


@dataclass(frozen=True)
class Head:
    """A product with the transposed table, ``data table^T + bias``.

    Attributes:
        node: a MatMul or Gemm.
        bias: a constant vector; None where nothing is added.
        shares: whether it reads the table itself; else a transposed copy.
    """

    node: ir.Node
    bias: ir.Value | None
    shares: bool

    @property
    def data(self) -> ir.Value:
        """What is multiplied."""
        value = self.node.inputs[0]
        assert value is not None
        return value


@dataclass(frozen=True)
class Table:
    """A constant ``[rows, width]`` that rows are gathered from.

    Attributes:
        constant: the table.
        gathers: the nodes that gather rows from it.
        heads: those that multiply with it.
        others: operators that use it in other ways.
    """

    constant: Constant
    gathers: tuple[ir.Node, ...]
    heads: tuple[Head, ...]
    others: tuple[str, ...]


def tables_of(constants: Sequence[Constant], view: View) -> list[Table]:
    """The matrices among some constants that rows are gathered from; reads data only where a matrix may be a transposed copy."""
    found = []
    for constant in constants:
        uses = [(use.node, use.idx) for use in constant.value.uses()]
        gathers = tuple(node for node, index in uses if _gathers(node, index))
        if len(constant.shape) != 2 or not gathers:
            continue
        heads: list[Head] = []
        others: list[str] = []
        for node, index in uses:
            if node in gathers:
                continue
            own = list(_heads(node, index, view))
            heads.extend(own)
            if not own:
                others.append(operator_of(node))
        for copy in constants:
            if copy.shape == constant.shape[::-1] and _is_transposed(constant, copy, view):
                heads.extend(head for use in copy.value.uses() for head in _products(use.node, use.idx, view, turned=True, shares=False))
        found.append(Table(constant, gathers, tuple(heads), tuple(others)))
    return found


def _gathers(node: ir.Node, index: int) -> bool:
    return operator_of(node) == "Gather" and index == 0 and attribute(node, "axis", 0) == 0


def _heads(node: ir.Node, index: int, view: View) -> Iterator[Head]:
    """The heads at a use of the table: a product, or all products of its transpose."""
    if operator_of(node) == "Transpose" and attribute(node, "perm", (1, 0)) == (1, 0) and not node.outputs[0].is_graph_output():
        products = [list(_products(use.node, use.idx, view, turned=True, shares=True)) for use in node.outputs[0].uses()]
        if all(products):
            yield from (head for each in products for head in each)
    else:
        yield from _products(node, index, view, turned=False, shares=True)


def _products(node: ir.Node, index: int, view: View, *, turned: bool, shares: bool) -> Iterator[Head]:
    """The head that a node is, where its weight is the table, or the table ``turned``."""
    operator = operator_of(node)
    if index != 1 or (view.rank(input_of(node, 0)) or 0) < 2:
        return
    if operator == "MatMul" and turned:
        yield Head(node, None, shares)
    elif operator == "Gemm" and attribute(node, "transB", 0) == (not turned) and not attribute(node, "transA", 0):
        bias = input_of(node, 2)
        plain = attribute(node, "alpha", 1.0) == attribute(node, "beta", 1.0) == 1.0
        if plain and (bias is None or (view.is_constant(bias) and view.rank(bias) == 1)):
            yield Head(node, bias, shares)


def _is_transposed(table: Constant, copy: Constant, view: View) -> bool:
    first, second = view.constant(table.value), view.constant(copy.value)
    return first is not None and second is not None and np.array_equal(first[0], second[:, 0]) and np.array_equal(first, second.T)

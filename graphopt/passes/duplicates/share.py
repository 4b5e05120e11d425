"""Sharing: tables that are stored a second time, transposed, for a head that is tied to them, as older exports do."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from graphopt import ledger
from graphopt.files.weights import private_map
from graphopt.graph.edits import Names
from graphopt.graph.view import attribute, operator_of
from graphopt.ledger import Key

_LEAST_BYTES = 4096
"""Below this a node takes about as much of the file as it saves."""
_ROWS = 1024
"""Rows that are compared at a time."""


def share_transposed_tables(model: ir.Model, pass_name: str) -> bool:
    """Replaces an initializer that is a table the other way round with a Transpose of that table; returns whether there was one.

    Only tables that rows are gathered from: a layer's own weight stays a constant, which quantization and pruning look for. The
    runtime transposes once, when it loads the model, and computes as before.
    """
    changed = False
    names = Names(model)
    for table, copy in list(_pairs(model.graph)):
        key = Key(pass_name, "share-transposed-tables", copy.name or "")
        if _is_transposed(table.const_value, copy.const_value) and ledger.allow(key):
            node = _turn(table, copy, model.graph, names)
            ledger.record(ledger.Rewrite(key, added=(node.name or "",), reason=f"{table.name} the other way round"))
            changed = True
    return changed


def _pairs(graph: ir.Graph) -> Iterator[tuple[ir.Value, ir.Value]]:
    """Tables, and initializers of the reversed shape that products read and nothing gathers from."""
    matrices = [value for value in graph.initializers.values() if _is_matrix(value)]
    tables = {_kind(value): value for value in matrices if _is_table(value)}
    for value in matrices:
        dtype, (rows, width) = _kind(value)
        table = tables.get((dtype, (width, rows)))
        if table is not None and table is not value and not _is_table(value) and not value.is_graph_output():
            yield table, value


def _is_matrix(value: ir.Value) -> bool:
    tensor = value.const_value
    if tensor is None or value.is_graph_input() or tensor.dtype == ir.DataType.STRING or tensor.dtype.bitwidth < 8:
        return False
    return len(tensor.shape) == 2 and tensor.nbytes >= _LEAST_BYTES


def _is_table(value: ir.Value) -> bool:
    return any(operator_of(use.node) == "Gather" and use.idx == 0 and attribute(use.node, "axis", 0) == 0 for use in value.uses())


def _kind(value: ir.Value) -> tuple[ir.DataType, tuple[int, ...]]:
    assert value.const_value is not None
    return ir.DataType(value.const_value.dtype), tuple(value.const_value.shape.numpy())


def _is_transposed(table: ir.TensorProtocol | None, copy: ir.TensorProtocol | None) -> bool:
    """Bit by bit, some rows at a time, so that what differs is seldom read beyond the first of them."""
    assert table is not None
    assert copy is not None
    a, b = (_bits(private_map(tensor) if isinstance(tensor, ir.ExternalTensor) else tensor) for tensor in (table, copy))
    return all(np.array_equal(a[start : start + _ROWS], b[:, start : start + _ROWS].T) for start in range(0, len(a), _ROWS))


def _bits(tensor: ir.TensorProtocol) -> np.ndarray:
    array = tensor.numpy()
    return array.view(f"u{array.itemsize}") if array.itemsize in (1, 2, 4, 8) else array


def _turn(table: ir.Value, copy: ir.Value, graph: ir.Graph, names: Names) -> ir.Node:
    """Puts a Transpose in the place of the copy, under its name, before all nodes of the graph."""
    name = copy.name or ""
    node = ir.node("Transpose", [table], {"perm": [1, 0]}, name=names.fresh(f"{name}/Transpose"))
    [turned] = node.outputs
    turned.type, turned.shape = copy.type, copy.shape
    copy.replace_all_uses_with(turned)
    del graph.initializers[name]
    turned.name = name
    graph.insert_before(graph[0], node)
    return node

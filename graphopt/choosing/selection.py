"""Selections: which layers the approximations of a recipe may touch."""

from __future__ import annotations

import fnmatch
from collections.abc import Collection, Sequence

import onnx_ir as ir

from graphopt.errors import RecipeError
from graphopt.graph.edits import all_nodes
from graphopt.graph.view import operator_of
from graphopt.ledger import Key

_FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE})
_SHOWN = 3


def unselected(model: ir.Model, include: Sequence[str], exclude: Sequence[str], passes: Collection[str]) -> frozenset[Key]:
    """The rewrites that a selection forbids: all that some passes would make at nodes that it leaves out.

    A pattern is the type of an operator (``Conv``, ``com.microsoft::FusedConv``), or a glob on the name of a node or of its weight. It
    has to match a node with a weight, of whatever type: which of the passes then takes it is not the pattern's business.

    Args:
        model: before the first approximation.
        include: patterns of what may be touched; empty for all.
        exclude: patterns of what may not, even where it is included.
        passes: names of the passes that approximate.

    Raises:
        RecipeError: a pattern matches nothing.
    """
    if not include and not exclude:
        return frozenset()
    weighted = {node: names for node in all_nodes(model) if (names := _weights(node))}
    matched = {pattern: {node for node, names in weighted.items() if _matches(node, names, pattern)} for pattern in (*include, *exclude)}
    for option, patterns in (("include", include), ("exclude", exclude)):
        for pattern in patterns:
            if not matched[pattern]:
                shown = ", ".join(node.name or "" for node in list(weighted)[:_SHOWN]) or "none"
                kinds = ", ".join(sorted({operator_of(node) for node in weighted})) or "none"
                raise RecipeError(
                    f"{option}: {pattern!r} matches no layer, neither its type ({kinds}) nor the name of its node or weight "
                    f"(first of {len(weighted)}: {shown})"
                )
    chosen = set().union(*(matched[pattern] for pattern in include)) if include else set(weighted)
    left = chosen.difference(*(matched[pattern] for pattern in exclude))
    return frozenset(Key(name, "", node.name or "") for node in weighted if node not in left for name in passes)


def _weights(node: ir.Node) -> list[str]:
    """The names of the constants of floats, with two axes or more, that a node reads."""
    found = []
    for value in node.inputs:
        tensor = None if value is None else ir.convenience.get_const_tensor(value)
        if tensor is not None and value is not None and tensor.dtype in _FLOATS and len(tensor.shape) > 1:
            found.append(value.name or "")
    return found


def _matches(node: ir.Node, weights: Sequence[str], pattern: str) -> bool:
    return operator_of(node) == pattern or any(fnmatch.fnmatchcase(name, pattern) for name in (node.name or "", *weights))

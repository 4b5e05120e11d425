"""Raising and lowering the version of the standard operator set."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

import onnx
import onnx_ir as ir

from graphopt import ledger
from graphopt.errors import UnsupportedModelError
from graphopt.graph.edits import all_nodes

# The IR version that first allowed an opset (https://github.com/onnx/onnx/blob/main/docs/Versioning.md).
_IR_VERSIONS = {8: 3, 9: 4, 10: 5, 11: 6, 12: 7, 15: 8, 18: 8, 19: 9, 20: 9, 21: 10, 22: 10, 23: 11, 24: 12, 25: 13, 26: 13}

_ASIDE = "graphopt.aside"
"""The domain of operators that the converters must not see."""


def opset_of(model: ir.Model) -> int:
    """The version of the standard domain that a model imports; 0 where it imports none."""
    imports = model.graph.opset_imports
    return imports.get("", imports.get("ai.onnx", 0))


def convert_opset(model: ir.Model, version: int) -> None:
    """Converts a model in place to another version of the standard operator set, with onnx's version converters.

    The IR version is raised where the opset asks for it; lowering it is the caller's matter.

    Raises:
        UnsupportedModelError: an operator cannot be expressed at that version.
    """
    from onnxscript.version_converter import ConvertVersionPass  # slow to import, and rarely needed

    before = opset_of(model)
    if before == version:
        return
    key = ledger.Key("opset", "raise-opset" if version > before else "lower-opset", f"{before} to {version}")
    if not ledger.allow(key):
        return
    reason, signature = "", [(value.type, value.shape and value.shape.copy()) for value in _ports(model)]
    # The converters report through the log and leave the model as it was; their noise is not for the user.
    logging.disable(logging.ERROR)
    try:
        with _own_operators_aside(model):
            ConvertVersionPass(version, fallback=True)(model)
    except Exception as error:  # the converters' exceptions share no base class
        reason = f": {' '.join(str(error.__cause__ or error).split())[:200]}"
    finally:
        logging.disable(logging.NOTSET)
    if opset_of(model) != version:
        raise UnsupportedModelError(f"the model cannot be converted from opset {before} to {version}{reason}; export it at opset {version}")
    for value, (given, shape) in zip(_ports(model), signature, strict=True):
        value.type, value.shape = given, shape  # the converters infer more, and a signature is not theirs to change
    model.ir_version = max(model.ir_version, _least_ir_version(version))
    ledger.record(ledger.Rewrite(key))


@contextlib.contextmanager
def _own_operators_aside(model: ir.Model) -> Iterator[None]:
    """Hides from the converters what ONNX Runtime adds to the standard domain, such as SimplifiedLayerNormalization."""
    for node in all_nodes(model):
        if node.domain in ("", "ai.onnx") and not onnx.defs.has(node.op_type):
            node.domain = _ASIDE
            model.graph.opset_imports[_ASIDE] = 1
    try:
        yield
    finally:
        for node in all_nodes(model):
            if node.domain == _ASIDE:
                node.domain = ""
        model.graph.opset_imports.pop(_ASIDE, None)


def _ports(model: ir.Model) -> list[ir.Value]:
    return [*model.graph.inputs, *model.graph.outputs]


def _least_ir_version(opset: int) -> int:
    return max((ir_version for first, ir_version in _IR_VERSIONS.items() if first <= opset), default=3)

"""What tests of passes share: models from text, their operators, and proof that a rewrite keeps the outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from graphopt import ledger
from graphopt.graph.edits import all_nodes
from graphopt.graph.structure import verify_structure
from graphopt.passes.base import Pass
from graphopt.runtime.session import open_session, runtime_limits

Feeds = Mapping[str, np.ndarray[Any, Any]]


def parse(text: str, opset: int = 18) -> ir.Model:
    """A model from ``(inputs) => (outputs) <initializers> { nodes }`` in ONNX's text form."""
    imports = f'<ir_version: 8, opset_import: ["": {opset}, "com.microsoft": 1]>'
    return ir.from_onnx_text(f"{imports} graph {text}")


def rewrite(text: str, *passes: Pass, opset: int = 18) -> ir.Model:
    """The model of a text after some passes, whose result is a sound graph."""
    model = parse(text, opset)
    for step in passes:
        step(model)
    verify_structure(model)
    return model


def operators(model: ir.Model) -> list[str]:
    """The operators of all nodes in order, Constant nodes left out."""
    return [node.op_type for node in all_nodes(model) if node.op_type != "Constant"]


def misses(text: str, *passes: Pass, opset: int = 18) -> dict[str, str]:
    """Why rules nearly fired, by rule."""
    with ledger.recording(ledger.Recorder()) as recorder:
        rewrite(text, *passes, opset=opset)
    return {key.rule: reason for key, reason in recorder.misses.items()}


def needs_opset(version: int) -> pytest.MarkDecorator:
    """A mark for tests that run models of an opset."""
    newest = runtime_limits().opset
    return pytest.mark.skipif(version > newest, reason=f"the installed runtime loads opset {newest} at most")


def random_feeds(model: ir.Model, length: int = 3, seed: int = 0) -> dict[str, np.ndarray[Any, Any]]:
    """Random inputs; symbolic lengths become ``length``."""
    generator = np.random.default_rng(seed)
    feeds = {}
    for value in model.graph.inputs:
        shape = [dim if isinstance(dim, int) else length for dim in value.shape or ()]
        assert value.dtype is not None
        numbers = generator.normal(size=shape) * 3
        dtype = np.dtype(value.dtype.numpy())
        feeds[value.name or ""] = np.asarray(numbers > 0 if dtype == np.bool_ else numbers, dtype=dtype)
    return feeds


def assert_same_outputs(before: ir.Model, after: ir.Model, feeds: Feeds | None = None, tolerance: float = 1e-5) -> None:
    """Runs both models with the runtime's own optimizations on and off, and compares names, shapes, types and numbers."""
    feeds = random_feeds(before) if feeds is None else feeds
    expected = open_session(before, "none").run(feeds)
    for optimizations in ("all", "none"):
        found = open_session(after, optimizations).run(feeds)
        assert list(found) == list(expected)
        for name, reference in expected.items():
            assert found[name].dtype == reference.dtype
            assert found[name].shape == reference.shape
            scale = max(1.0, float(np.max(np.abs(reference.astype(np.float64)), initial=0)))
            np.testing.assert_allclose(found[name].astype(np.float64), reference.astype(np.float64), rtol=0, atol=tolerance * scale)


def assert_rewritten(text: str, passes: Sequence[Pass], expected: str, opset: int = 18, tolerance: float = 1e-5) -> ir.Model:
    """Asserts the operators after some passes (a space between them), that outputs stay, and that a second run changes nothing."""
    after = rewrite(text, *passes, opset=opset)
    assert " ".join(operators(after)) == expected
    assert_same_outputs(parse(text, opset), after, tolerance=tolerance)
    assert not any(step(after).modified for step in passes)
    return after

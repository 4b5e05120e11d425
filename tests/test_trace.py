"""Tests of graphopt.runtime.trace."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from graphopt.errors import SessionError
from graphopt.runtime.trace import ShapeTracer, trace_shapes, trace_values

MODEL = """<ir_version: 8, opset_import: ["" : 17]> g (float[N, 3] x, bool c) => (float[M] y)
<float[3] w = {1, 2, 3}, int64[1] flat = {-1}>
{ a = Mul(x, w) s = SplitToSequence<axis=0>(a) b = ConcatFromSequence<axis=1>(s)
  p = If(c) <then_branch = t () => (float[K] q) { q = Reshape(b, flat) }, else_branch = e () => (float[K] r) { r = Reshape(x, flat) }>
  y = Neg(p) }"""


def test_shapes_are_exact_and_sequences_left_out() -> None:
    """Every tensor of the main graph has its exact shape; the sequence has none; the model stays as it was."""
    model = ir.from_onnx_text(MODEL)
    nodes = len(model.graph)
    shapes = trace_shapes(model, {"x": np.ones((4, 3), np.float32), "c": np.array(True)})
    assert shapes == {"x": (4, 3), "c": (), "w": (3,), "flat": (1,), "a": (4, 3), "b": (1, 12), "p": (12,), "y": (12,)}
    assert len(model.graph) == nodes
    assert len(model.graph.outputs) == 1


def test_tracer_runs_with_many_feeds() -> None:
    """One tracer reports the shapes of feeds of several sizes."""
    tracer = ShapeTracer(ir.from_onnx_text(MODEL))
    found = [tracer.run({"x": np.ones((n, 3), np.float32), "c": np.array(False)})["y"] for n in (1, 5)]
    assert found == [(3,), (15,)]


def test_operator_that_may_return_a_sequence() -> None:
    """Where an If returns a sequence, all other values are traced all the same."""
    model = ir.from_onnx_text(
        """<ir_version: 8, opset_import: ["" : 17]> g (float[N, 3] x, bool c) => (float[M, 3] y)
        { a = Neg(x)
          p = If(c) <then_branch = t () => (seq(float[N, 3]) q) { q = SequenceConstruct(a) },
                     else_branch = e () => (seq(float[N, 3]) r) { r = SequenceConstruct(x, a) }>
          y = ConcatFromSequence<axis=0>(p) }"""
    )
    shapes = trace_shapes(model, {"x": np.ones((2, 3), np.float32), "c": np.array(False)})
    assert shapes == {"x": (2, 3), "c": (), "a": (2, 3), "y": (4, 3)}


def test_values() -> None:
    """Inner values, outputs, inputs and initializers come back by name; an unknown name is an error."""
    feed = {"x": np.ones((1, 3), np.float32), "c": np.array(True)}
    found = trace_values(ir.from_onnx_text(MODEL), feed, ["a", "y", "x", "w", "a"])
    assert {name: value.ravel().tolist() for name, value in found.items()} == {
        "a": [1, 2, 3],
        "y": [-1, -2, -3],
        "x": [1, 1, 1],
        "w": [1, 2, 3],
    }
    with pytest.raises(SessionError, match="no value 'q'"):
        trace_values(ir.from_onnx_text(MODEL), feed, ["q"])

"""``cleanup`` leaves a plain model, and nothing of it that a caller sees changes."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from graphopt import ledger
from graphopt.passes.cleanup import Cleanup
from tests.helpers import assert_same_outputs, operators, parse, rewrite


def test_constants_become_initializers() -> None:
    """Every numeric form of a Constant is lifted under its own name, also in subgraphs; a second run changes nothing."""
    text = """(float[n] x, bool c) => (float[n] y) {
        a = Constant<value = float[1] {2}>() b = Constant<value_float = 3.0>() i = Constant<value_ints = [1]>()
        t = Mul(x, a) u = Mul(t, b) s = Cast<to = 1>(i) v = Mul(u, s)
        y = If(c) <
            then_branch = g () => (float[n] o) { w = Constant<value_floats = [4.0]>() o = Mul(v, w) },
            else_branch = h () => (float[n] p) { z = Constant<value_int = 4>() r = Cast<to = 1>(z) p = Mul(v, r) }
        >
    }"""
    after = rewrite(text, Cleanup())
    assert "Constant" not in [node.op_type for node in after.graph.all_nodes()]
    assert set(after.graph.initializers) == {"a", "b", "i"}
    assert_same_outputs(parse(text), after)
    assert not Cleanup()(after).modified


def test_constants_that_must_stay() -> None:
    """A Constant that is an output, and one that holds strings, stay."""
    text = '(string[n] x) => (bool[n] y, float z) { s = Constant<value_string = "a">() y = Equal(x, s) z = Constant<value_float = 1.0>() }'
    after = rewrite(text, Cleanup(), opset=19)
    assert [node.op_type for node in after.graph].count("Constant") == 2


def test_unused_things_go() -> None:
    """Nodes, initializers, optional outputs and opset imports that nobody uses are removed, in subgraphs too."""
    text = """(float[n,4] x, bool c) => (float[n,4] y) <float[4] s = {1, 2, 3, 4}, float[4] unused = {1, 2, 3, 4}> {
        dead = Relu(x) deader = If(c) <then_branch = g () => (o) { o = Neg(dead) }, else_branch = h () => (p) { p = Abs(dead) }>
        n, mean = LayerNormalization(x, s)
        y = If(c) <then_branch = k () => (float[n,4] q) { w = Neg(n) q = Abs(n) }, else_branch = l () => (float[n,4] r) { r = Neg(n) }>
    }"""
    after = rewrite(text, Cleanup())
    assert operators(after) == ["LayerNormalization", "If", "Abs", "Neg"]
    assert list(after.graph.initializers) == ["s"]
    assert len(after.graph[0].outputs) == 1
    assert set(after.graph.opset_imports) == {""}
    assert_same_outputs(parse(text), after)


def test_initializers_are_no_inputs() -> None:
    """An input with a default value becomes a constant, and the IR version allows it."""
    model = parse("(float[n] x) => (float[n] y) <float w = {2}> { y = Mul(x, w) }")
    model.graph.inputs.append(model.graph.initializers["w"])
    model.ir_version = 3
    Cleanup()(model)
    assert [value.name for value in model.graph.inputs] == ["x"]
    assert model.ir_version >= 4


def test_functions_are_inlined() -> None:
    """A call of a model's function is replaced by the function's nodes."""
    model = ir.from_onnx_text("""<ir_version: 8, opset_import: ["": 18, "own": 1]>
        graph (float[n] x) => (float[n] y, float[n] z) { y = own.twice(x) z = own.twice(y) }
        <domain: "own", opset_import: ["": 18]> twice (a) => (b) { t = Neg(a) b = Sub(a, t) }""")
    before = model.clone()
    Cleanup()(model)
    assert operators(model) == ["Neg", "Sub", "Neg", "Sub"]
    assert not model.functions
    assert [value.name for value in model.graph.outputs] == ["y", "z"]
    assert_same_outputs(before, model)


def test_functions_of_another_opset_stay() -> None:
    """A function that is written for another version of the operator set is left, with a note."""
    model = ir.from_onnx_text("""<ir_version: 8, opset_import: ["": 18, "own": 1]>
        graph (float[n] x) => (float[n] y) { y = own.twice(x) }
        <domain: "own", opset_import: ["": 17]> twice (a) => (b) { t = Neg(a) b = Sub(a, t) }""")
    with ledger.recording(ledger.Recorder()) as recorder:
        Cleanup()(model)
    assert len(model.functions) == 1
    assert "another version" in recorder.notes[0]


def test_metadata_goes() -> None:
    """Per-node and per-value metadata and documentation are dropped; the model's own stay."""
    model = parse("(float[n] x) => (float[n] y) { y = Relu(x) }")
    node = model.graph[0]
    node.metadata_props["pkg.torch.onnx.stack_trace"] = "File ..."
    node.doc_string = node.outputs[0].doc_string = "text"
    model.metadata_props["license"] = "mine"
    Cleanup()(model)
    assert not node.metadata_props
    assert not node.doc_string
    assert not node.outputs[0].doc_string
    assert model.metadata_props == {"license": "mine"}


def test_nodes_are_named_and_sorted() -> None:
    """Nodes without a name, or with another's, get one of their own; names that are there stay; order follows use."""
    model = parse("(float[n] x) => (float[n] y) { a = Relu(x) b = Neg(a) c = Abs(b) y = Exp(c) }")
    nodes = list(model.graph)
    nodes[0].name = nodes[1].name = "same"
    model.graph.remove(nodes[0])
    model.graph.append(nodes[0])
    Cleanup()(model)
    assert operators(model) == ["Relu", "Neg", "Abs", "Exp"]
    names = [node.name for node in model.graph]
    assert len(set(names)) == 4
    assert "same" in names


@pytest.mark.parametrize("rule", ["lift-constants", "remove-unused"])
def test_denied_steps_are_left(rule: str) -> None:
    """A step that the ledger forbids does not happen."""
    model = parse("(float[n] x) => (float[n] y) { c = Constant<value_float = 1.0>() t = Relu(x) y = Add(x, c) }")
    with ledger.recording(ledger.Recorder(denied=frozenset({ledger.Key("cleanup", rule)}))):
        Cleanup()(model)
    expected = {"lift-constants": ["Constant", "Add"], "remove-unused": ["Relu", "Add"]}
    assert [node.op_type for node in model.graph] == expected[rule]


def test_data_is_untouched() -> None:
    """Lifting keeps the numbers."""
    model = rewrite("(float[n] x) => (float[n] y) { c = Constant<value_floats = [1.5, -2.5]>() s = ReduceSum(c) y = Add(x, s) }", Cleanup())
    tensor = model.graph.initializers["c"].const_value
    assert tensor is not None
    np.testing.assert_array_equal(tensor.numpy(), np.array([1.5, -2.5], np.float32))

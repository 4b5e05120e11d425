"""Tests of the verifier and of the comparison of signatures."""

from __future__ import annotations

import dataclasses
import time

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest

from graphopt.errors import GraphoptError, InvalidModelError
from graphopt.files import from_proto
from graphopt.graph.signature import Port, Signature, signature_of
from graphopt.graph.structure import signature_changes, verify_structure

HEADER = '<ir_version: 10, opset_import: ["": 20, "local": 1, "com.microsoft": 1]>'


def parsed(text: str, header: str = HEADER) -> ir.Model:
    """A model from ONNX's text form."""
    return from_proto(onnx.parser.parse_model(header + text))


def fault(text: str, header: str = HEADER) -> str:
    """The one line that loading and verifying a broken model gives."""
    with pytest.raises(GraphoptError) as caught:
        verify_structure(parsed(text, header))
    message = str(caught.value)
    assert "\n" not in message
    return message


BRANCHES = """agraph (float[2] x, bool c) => (float[2] y) {{
    a = Neg(x)
    y = If(c) <then_branch = t () => (float[2] t1) {{ {then} }}, else_branch = e () => (float[2] e1) {{ e1 = Relu(a) }}>
}}"""


def test_valid_models_pass() -> None:
    """A plain graph, branches that capture, a function, an input with a default and a custom operator are accepted."""
    verify_structure(parsed("agraph (float[2] x) => (float[2] y) <float[2] w = {1, 2}> { h = Add(x, w) y = Relu(h) }"))
    verify_structure(parsed("agraph (float[2] x, float[2] w = {1, 2}) => (float[2] y) { y = Add(x, w) }"))
    verify_structure(parsed(BRANCHES.format(then="t0 = Abs(a) t1 = Add(t0, x)")))
    verify_structure(
        parsed(
            "agraph (float[2] x) => (float[2] y) { y = local.twice(x) }"
            '<domain: "local", opset_import: ["": 20]> twice (v) => (w) { w = Add(v, v) }'
        )
    )
    verify_structure(parsed("agraph (float[2] x) => (float[2] y) { y = local.Unknown(x) }"))


def test_operators_that_only_the_runtime_has_pass() -> None:
    """Layer normalizations that ONNX Runtime adds to the standard domain are accepted."""
    verify_structure(parsed("agraph (float[2] x, float[2] s) => (float[2] y) { y = SimplifiedLayerNormalization(x, s) }"))
    header = '<ir_version: 8, opset_import: ["": 13]>'
    verify_structure(parsed("agraph (float[2] x, float[2] s) => (float[2] y) { y = LayerNormalization(x, s) }", header))


def test_missing_import_of_the_runtime_domain_passes() -> None:
    """A model that uses com.microsoft without importing it loads, as it does in ONNX Runtime."""
    header = '<ir_version: 8, opset_import: ["": 17]>'
    model = parsed("agraph (float[2] x) => (float[2] y) { y = com.microsoft.Gelu(x) }", header)
    verify_structure(model)
    assert model.opset_imports["com.microsoft"] == 1


def test_unsorted_nodes_are_sorted() -> None:
    """A graph whose nodes stand in the wrong order is sorted when it is loaded, since ONNX Runtime takes it."""
    model = parsed("agraph (float[2] x) => (float[2] y) { y = Relu(a) a = Neg(x) }")
    verify_structure(model)
    assert [node.op_type for node in model.graph] == ["Neg", "Relu"]
    late = BRANCHES.format(then="t1 = Abs(a)").replace("    a = Neg(x)\n", "").replace("}}>", "}}>").rstrip("}") + " a = Neg(x) }"
    verify_structure(parsed(late))


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("agraph (float[2] x) => (float[2] y) { a = Add(x, b) b = Relu(a) y = Neg(b) }", ["cycle", "'b'"]),
        ("agraph (float[2] x) => (float[2] y) { a = Add(x, a) y = Neg(a) }", ["cycle", "'a'"]),
        ("agraph (float[2] x) => (float[2] y) { y = Add(x, w) }", ["'w'", "missing", "Add"]),
        ("agraph (float[2] x) => (float[2] y) { z = Relu(x) }", ["graph output 'y'"]),
        ("agraph (float[2] x) => (float[2] y) { y = Relu(x) y = Neg(x) }", ["'y'", "duplicate name"]),
        ("agraph (float[2] x) => (float[2] y) { x = Relu(x) y = Neg(x) }", ["'x'", "duplicate name"]),
        ("agraph (float[2] x, float[2] x) => (float[2] y) { y = Neg(x) }", ["'x'", "duplicate name"]),
        ("agraph (float[2] x) => (float[2] y) <float[2] w = {1, 2}, float[2] w = {1, 2}> { y = Add(x, w) }", ["'w'", "duplicate name"]),
        ("agraph (float[2] x) => (float[2] y) <float[2] y = {1, 2}> { y = Neg(x) }", ["'y'", "duplicate name"]),
        ("agraph (float[2] x) => (float[2] y) { y = Frobnicate(x) }", ["Frobnicate", "'y'", "domain of its own"]),
        ("agraph (float[2] x) => (float[2] y) { y = TensorScatter(x, x) }", ["TensorScatter", "opset 20"]),
        ("agraph (float[2] x) => (float[2] y) { y = Upsample(x, x) }", ["Upsample", "removed"]),
        ("agraph (float[2] x) => (float[2] y) { y = elsewhere.Op(x) }", ["'elsewhere'", "import"]),
        (BRANCHES.format(then="a = Abs(x) t1 = Neg(a)"), ["'a'", "duplicate name"]),
        (BRANCHES.format(then="t0 = Abs(x) t0 = Neg(x) t1 = Neg(t0)"), ["'t0'", "duplicate name"]),
        (BRANCHES.format(then="t1 = Neg(nowhere)"), ["'nowhere'", "missing"]),
        (BRANCHES.format(then="t1 = Neg(y)"), ["'y'", "cycle"]),
        (BRANCHES.format(then="t1 = Frobnicate(x)"), ["Frobnicate"]),
        (BRANCHES.format(then="t2 = Neg(x)"), ["graph output 't1'"]),
    ],
)
def test_broken_graphs_are_named(text: str, parts: list[str]) -> None:
    """Each broken graph gives one line that names what is wrong and where."""
    message = fault(text)
    assert all(part in message for part in parts), message


@pytest.mark.parametrize(
    ("body", "parts"),
    [
        ("(v) => (w) { w = Add(v, u) }", ["local::f", "'u'", "missing"]),
        ("(v) => (w) { w = Frobnicate(v) }", ["local::f", "Frobnicate"]),
        ("(v) => (w) { u = Neg(v) }", ["local::f", "'w'"]),
        ("(v) => (w) { w = Neg(v) w = Relu(v) }", ["local::f", "'w'", "duplicate name"]),
        ("(v) => (w) { w = other.Op(v) }", ["local::f", "'other'"]),
    ],
)
def test_broken_functions_are_named(body: str, parts: list[str]) -> None:
    """A fault inside a function names the function."""
    call = 'agraph (float[2] x) => (float[2] y) { y = local.f(x) } <domain: "local", opset_import: ["": 20]> f '
    message = fault(call + body)
    assert all(part in message for part in parts), message


def test_an_initializer_without_data_is_named() -> None:
    """An initializer that a pass left without its tensor is refused."""
    model = parsed("agraph (float[2] x) => (float[2] y) <float[2] w = {1, 2}> { y = Add(x, w) }")
    model.graph.initializers["w"].const_value = None
    with pytest.raises(InvalidModelError, match="'w' has no data"):
        verify_structure(model)


def test_a_value_from_another_model_is_named() -> None:
    """An input whose producer stands in no graph of the model is refused."""
    model, other = (parsed("agraph (float[2] x) => (float[2] y) { a = Relu(x) y = Neg(a) }") for _ in range(2))
    model.graph.node(1).replace_input_with(0, other.graph.node(0).outputs[0])
    with pytest.raises(InvalidModelError, match="another value of the same name"):
        verify_structure(model)
    other.graph.node(0).outputs[0].name = "elsewhere"
    with pytest.raises(InvalidModelError, match="in no graph around it"):
        verify_structure(model)


def test_two_values_of_one_name_made_by_a_pass_are_named() -> None:
    """A pass that gives a name a second time is caught: written to a file, the two values would be one."""
    model = parsed("agraph (float[2] x) => (float[2] y) { a = Relu(x) b = Neg(x) y = Add(a, b) }")
    model.graph.node(1).outputs[0].name = "a"
    with pytest.raises(InvalidModelError, match=r"'a'.*duplicate name"):
        verify_structure(model)


def test_a_captured_value_whose_name_is_taken_inside_is_named() -> None:
    """A branch that captures a value while its own graph gives the same name earlier is caught."""
    model = parsed(BRANCHES.format(then="t0 = Abs(x) t1 = Neg(a)"))
    branch = model.graph.node(1).attributes["then_branch"].as_graph()
    branch.node(0).outputs[0].name = "a"
    with pytest.raises(InvalidModelError, match="duplicate name"):
        verify_structure(model)


def test_use_before_definition_made_by_a_pass_is_named() -> None:
    """Nodes that a pass put in the wrong order are refused, and not called a cycle."""
    model = parsed("agraph (float[2] x) => (float[2] y) { a = Relu(x) y = Neg(a) }")
    first = model.graph.node(0)
    model.graph.remove(first)
    model.graph.append(first)
    with pytest.raises(InvalidModelError, match="before"):
        verify_structure(model)


def test_time_is_linear() -> None:
    """Twenty thousand nodes are verified within seconds."""
    x = ir.val("x", ir.DataType.FLOAT, [2])
    nodes, value = [], x
    for index in range(20_000):
        node = ir.node("Relu", [value])
        value = node.outputs[0]
        value.name = f"v{index}"
        nodes.append(node)
    model = ir.Model(ir.Graph([x], [value], nodes=nodes, opset_imports={"": 20}), ir_version=10)
    start = time.perf_counter()
    verify_structure(model)
    assert time.perf_counter() - start < 5


def test_signature_changes() -> None:
    """Names, types, ranks and dimensions count; an output's unknown dimension may become known."""
    f32 = ir.DataType.FLOAT
    before = Signature((Port("x", f32, ("n", 3)),), (Port("y", f32, ("n", None)), Port("z", None, None)))
    assert signature_changes(before, before) is None
    refined = dataclasses.replace(before, outputs=(Port("y", f32, ("n", 4)), Port("z", f32, (1,))))
    assert signature_changes(before, refined) is None
    for inputs in ((), (Port("x2", f32, ("n", 3)),), (Port("x", f32, (1, 3)),), (Port("x", ir.DataType.INT8, ("n", 3)),)):
        change = signature_changes(before, dataclasses.replace(before, inputs=inputs))
        assert change is not None
        assert "input" in change
    for output in (Port("y", f32, (1, None)), Port("y", f32, ("n",)), Port("y", f32, None), Port("y", None, ("n", None))):
        change = signature_changes(before, dataclasses.replace(before, outputs=(output, before.outputs[1])))
        assert change is not None
        assert "output y" in change


def test_signature_of_an_input_with_a_default() -> None:
    """Turning an optional input into a plain constant changes no signature."""
    model = parsed("agraph (float[2] x, float[2] w = {1, 2}) => (float[2] y) { y = Add(x, w) }")
    before = signature_of(model)
    model.graph.inputs.pop()
    verify_structure(model)
    assert signature_changes(before, signature_of(model)) is None
    assert np.asarray(model.graph.initializers["w"].const_value).tolist() == [1, 2]

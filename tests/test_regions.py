"""Regions: what can be verified of a model that cannot run whole."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from graphopt.graph.regions import Cut, neighbourhood, opaque_nodes, without
from graphopt.runtime.session import open_session

CHAIN = """<ir_version: 10, opset_import: ["" : 20, "acme" : 1]>
g (float[2, 3] x) => (float[2, 4] y) <float[3, 4] w = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}, float[2, 4] mid> {
    [before] h = MatMul(x, w)
    [strange] mid = acme.Swirl(h, w)
    [after] p = Relu(mid)
    [last] y = Add(p, h)
}"""

UNTYPED = CHAIN.replace(", float[2, 4] mid>", ">")

BRANCH = """<ir_version: 10, opset_import: ["" : 20, "acme" : 1]>
g (bool c, float[2] x) => (float[2] y) {
    [before] h = Neg(x)
    [choice] b = If (c) <
        then_branch = t () => (float[2] p) { [inner] p = acme.Swirl(h) },
        else_branch = e () => (float[2] q) { [other] q = Abs(h) }
    >
    [last] y = Exp(b)
}"""

FUNCTION = """<ir_version: 10, opset_import: ["" : 20, "local" : 1, "acme" : 1]>
g (float[2] x) => (float[2] y) <float[2] h, float[2] k> {
    [plain] h = local.Fine(x)
    [hidden] k = local.Outer(h)
    [last] y = Neg(k)
}
<domain: "local", opset_import: ["" : 20]> Fine (a) => (b) { b = Abs(a) }
<domain: "local", opset_import: ["" : 20, "local" : 1]> Outer (a) => (b) { b = local.Inner(a) }
<domain: "local", opset_import: ["acme" : 1]> Inner (a) => (b) { b = acme.Swirl(a) }
"""


def is_standard(domain: str, operator: str, version: int) -> bool:
    """A runtime that knows the standard domain only."""
    assert operator
    assert version == (20 if not domain else 1)
    return domain == ""


def cut_of(text: str, types: dict[str, ir.TypeAndShape] | None = None) -> Cut:
    """Cuts the opaque nodes out of a model."""
    model = ir.from_onnx_text(text)
    return without(model, [node.name or "" for node in opaque_nodes(model, is_standard)], types)


def names_of(values: object) -> list[str]:
    """Names of values or nodes."""
    return [value.name for value in values]  # type: ignore[attr-defined]


def test_cut_runs_and_computes_the_rest() -> None:
    """What an opaque node makes is fed, what it is fed becomes an output, and the rest computes what it did."""
    cut = cut_of(CHAIN)
    assert cut.unverifiable == ()
    assert names_of(cut.model.graph.inputs) == ["x", "mid"]
    x, mid = np.ones((2, 3), np.float32), np.array([[1, -1, 2, -2]] * 2, np.float32)
    found = open_session(cut.model).run({"x": x, "mid": mid})
    np.testing.assert_array_equal(found["h"], [[15, 18, 21, 24]] * 2)
    np.testing.assert_array_equal(found["y"], found["h"] + np.maximum(mid, 0))
    assert list(found) == ["y", "h"]


def test_cut_leaves_the_model_alone() -> None:
    """Cutting changes nothing of the model that is cut."""
    model = ir.from_onnx_text(CHAIN)
    before = ir.to_onnx_text(model)
    without(model, ["strange"])
    assert ir.to_onnx_text(model) == before


def test_unknown_types_make_what_follows_unverifiable() -> None:
    """Without the type of an opaque value all that depends on it is left out, and named."""
    cut = cut_of(UNTYPED)
    assert cut.unverifiable == ("after", "last")
    assert names_of(cut.model.graph) == ["before"]
    found = open_session(cut.model).run({"x": np.ones((2, 3), np.float32)})
    assert list(found) == ["h"]


def test_given_types_count() -> None:
    """A type that the caller knows makes up for one that the model does not tell."""
    types = {"mid": ir.TypeAndShape(ir.TensorType(ir.DataType.FLOAT), ir.Shape([2, 4]))}
    cut = cut_of(UNTYPED, types)
    assert cut.unverifiable == ()
    feed = {"x": np.ones((2, 3), np.float32), "mid": np.zeros((2, 4), np.float32)}
    assert set(open_session(cut.model).run(feed)) == {"y", "h"}


def test_opaque_branch_makes_the_whole_node_opaque() -> None:
    """A node whose subgraph has an unknown operator is cut out; what the subgraph captures becomes an output."""
    model = ir.from_onnx_text(BRANCH)
    (choice,) = opaque_nodes(model, is_standard)
    assert choice.name == "choice"
    choice.outputs[0].type, choice.outputs[0].shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape([2])
    cut = without(model, ["choice"])
    found = open_session(cut.model).run({"c": np.array(True), "x": np.ones(2, np.float32), "b": np.zeros(2, np.float32)})
    np.testing.assert_array_equal(found["h"], [-1, -1])
    np.testing.assert_array_equal(found["y"], [1, 1])


def test_opaque_value_captured_by_a_branch() -> None:
    """A branch that reads what an opaque node makes reads what is fed instead."""
    text = BRANCH.replace("Neg(x)", "acme.Swirl(x)").replace("p = acme.Swirl(h)", "p = Neg(h)")
    cut = cut_of(text, {"h": ir.TypeAndShape(ir.TensorType(ir.DataType.FLOAT), ir.Shape([2]))})
    found = open_session(cut.model).run({"c": np.array(True), "x": np.ones(2, np.float32), "h": np.zeros(2, np.float32)})
    np.testing.assert_array_equal(found["y"], [1, 1])
    assert cut_of(text).unverifiable == ("choice", "last")


def test_functions_are_looked_into() -> None:
    """A call is opaque where an unknown operator is somewhere inside the function."""
    assert names_of(opaque_nodes(ir.from_onnx_text(FUNCTION), is_standard)) == ["hidden"]
    found = open_session(cut_of(FUNCTION).model).run({"x": np.ones(2, np.float32), "k": np.ones(2, np.float32)})
    assert set(found) == {"y", "h"}


def test_opaque_output_of_the_model() -> None:
    """Where an opaque node makes an output of the model, there is nothing to compare of it; a model that is all opaque leaves nothing."""
    text = '<ir_version: 10, opset_import: ["" : 20, "acme" : 1]> g (float[2] x) => (float[2] y) { [strange] y = acme.Swirl(x) }'
    cut = cut_of(text)
    assert names_of(cut.model.graph.inputs) == ["x", "y"]
    assert list(cut.model.graph.outputs) == []


@pytest.mark.parametrize(("text", "expected"), [(CHAIN, ["before", "after"]), (BRANCH, ["before", "last"]), (FUNCTION, ["plain", "last"])])
def test_neighbourhood(text: str, expected: list[str]) -> None:
    """The nodes next to opaque ones are those that feed them, subgraphs included, and those that use what they make."""
    model = ir.from_onnx_text(text)
    assert names_of(neighbourhood(model, opaque_nodes(model, is_standard))) == expected


def test_rewritten_form_compares_by_name() -> None:
    """The original and a rewritten form take the same inputs and give outputs of the same names."""
    original, rewritten = ir.from_onnx_text(CHAIN), ir.from_onnx_text(CHAIN.replace("Add(p, h)", "Sum(h, p)"))
    cuts = [without(model, ["strange"]).model for model in (original, rewritten)]
    assert names_of(cuts[0].graph.inputs) == names_of(cuts[1].graph.inputs)
    assert names_of(cuts[0].graph.outputs) == names_of(cuts[1].graph.outputs)

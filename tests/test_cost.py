"""Costs: parameters, bytes and multiply-accumulates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from graphopt.files import load
from graphopt.graph.cost import Cost, cost_of
from graphopt.runtime.trace import trace_shapes

MICROSOFT = "com.microsoft"


def cost_of_node(
    operator: str, inputs: list[tuple[int, ...] | None], outputs: list[tuple[int, ...]], domain: str = "", **attributes: Any
) -> Cost:
    """The cost of a model of one node whose inputs are fed."""
    values = [None if shape is None else ir.val(f"in{i}", ir.DataType.FLOAT, shape) for i, shape in enumerate(inputs)]
    node = ir.node(operator, values, attributes, domain=domain, num_outputs=len(outputs), name="node")
    for index, shape in enumerate(outputs):
        node.outputs[index].name, node.outputs[index].shape = f"out{index}", ir.Shape(shape)
    opsets = {"": 23, MICROSOFT: 1, "acme": 1}
    return cost_of(ir.Model(ir.Graph([v for v in values if v], node.outputs, nodes=[node], opset_imports=opsets, name="g"), ir_version=10))


CASES: list[tuple[str, str, list[tuple[int, ...] | None], list[tuple[int, ...]], dict[str, Any], int]] = [
    ("Conv", "", [(2, 6, 8, 8), (9, 2, 3, 5)], [(2, 9, 6, 4)], {"group": 3}, 2 * 9 * 6 * 4 * 2 * 3 * 5),
    ("FusedConv", MICROSOFT, [(1, 6, 8), (4, 6, 3)], [(1, 4, 6)], {}, 4 * 6 * 6 * 3),
    ("QLinearConv", "", [(1, 6, 8), (), (), (4, 6, 3), (), (), (), ()], [(1, 4, 6)], {}, 4 * 6 * 6 * 3),
    ("ConvInteger", "", [(1, 6, 8), (4, 6, 3)], [(1, 4, 6)], {}, 4 * 6 * 6 * 3),
    ("ConvTranspose", "", [(2, 6, 5, 5), (6, 2, 3, 3)], [(2, 4, 7, 7)], {"group": 2}, 2 * 6 * 5 * 5 * 2 * 3 * 3),
    ("Gemm", "", [(5, 3), (5, 4)], [(3, 4)], {"transA": 1}, 3 * 4 * 5),
    ("QGemm", MICROSOFT, [(3, 5), (), (), (4, 5), (), ()], [(3, 4)], {"transB": 1}, 3 * 4 * 5),
    ("MatMul", "", [(2, 3, 5), (7, 1, 5, 4)], [(7, 2, 3, 4)], {}, 7 * 2 * 3 * 4 * 5),
    ("MatMul", "", [(5,), (5,)], [()], {}, 5),
    ("FusedMatMul", MICROSOFT, [(2, 5, 3), (5, 4)], [(2, 3, 4)], {"transA": 1}, 2 * 3 * 4 * 5),
    ("FusedMatMul", MICROSOFT, [(5, 2, 3), (2, 5, 4)], [(2, 3, 4)], {"transA": 1, "transBatchA": 1}, 2 * 3 * 4 * 5),
    ("QLinearMatMul", "", [(3, 5), (), (), (5, 4), (), (), (), ()], [(3, 4)], {}, 3 * 4 * 5),
    ("DynamicQuantizeMatMul", MICROSOFT, [(2, 3, 5), (5, 4), (4,)], [(2, 3, 4)], {}, 2 * 3 * 4 * 5),
    ("LSTM", "", [(7, 2, 3), (2, 16, 3), (2, 16, 4)], [(7, 2, 2, 4)], {"hidden_size": 4}, 7 * 2 * (2 * 16 * 3 + 2 * 16 * 4)),
    ("GRU", "", [(7, 2, 3), (1, 12, 3), (1, 12, 4)], [(7, 1, 2, 4)], {"hidden_size": 4}, 7 * 2 * 12 * 7),
    ("Einsum", "", [(2, 3, 5), (5, 4)], [(2, 3, 4)], {"equation": "b i k, k j -> b i j"}, 2 * 3 * 4 * 5),
    ("Einsum", "", [(2, 7, 3, 5), (7, 5, 4)], [(2, 7, 3, 4)], {"equation": "...ik,...kj->...ij"}, 2 * 7 * 3 * 4 * 5),
    ("Einsum", "", [(3, 5), (3, 5)], [(3, 5)], {"equation": "ij,ij->ij"}, 0),
    ("Attention", "", [(2, 4, 3, 8), (2, 2, 5, 8), (2, 2, 5, 6)], [(2, 4, 3, 6)], {}, 2 * 4 * 3 * 5 * 14),
    (
        "Attention",
        "",
        [(2, 3, 32), (2, 5, 16), (2, 5, 16), None, (2, 2, 7, 8), (2, 2, 7, 8)],
        [(2, 3, 32)],
        {"q_num_heads": 4, "kv_num_heads": 2},
        2 * 4 * 3 * 12 * 16,
    ),
    ("Attention", MICROSOFT, [(2, 3, 16), (16, 48), (48,)], [(2, 3, 16)], {"num_heads": 4}, 2 * 3 * (16 * 48 + 3 * 32)),
    ("MultiHeadAttention", MICROSOFT, [(2, 3, 16), (2, 5, 16), (2, 5, 8)], [(2, 3, 8)], {"num_heads": 4}, 2 * 3 * 5 * 24),
    ("MultiHeadAttention", MICROSOFT, [(2, 3, 4, 3, 8)], [(2, 3, 32)], {"num_heads": 4}, 2 * 3 * 3 * 64),
    ("GroupQueryAttention", MICROSOFT, [(2, 3, 32), (2, 3, 16)], [(2, 3, 32), (2, 2, 9, 8)], {"num_heads": 4}, 2 * 3 * 9 * 64),
    ("Relu", "", [(2, 3)], [(2, 3)], {}, 0),
    ("Gelu", MICROSOFT, [(2, 3)], [(2, 3)], {}, 0),
]


@pytest.mark.parametrize(
    ("operator", "domain", "inputs", "outputs", "attributes", "expected"),
    CASES,
    ids=[f"{number}-{case[0]}" for number, case in enumerate(CASES)],
)
def test_macs(
    operator: str,
    domain: str,
    inputs: list[tuple[int, ...] | None],
    outputs: list[tuple[int, ...]],
    attributes: dict[str, Any],
    expected: int,
) -> None:
    """Each operator counts one multiply-accumulate for each product that it sums up."""
    cost = cost_of_node(operator, inputs, outputs, domain, **attributes)
    assert cost.macs == expected
    assert cost.unknown == ()


@pytest.mark.parametrize(("operator", "domain"), [("Swirl", "acme"), ("MoE", MICROSOFT)])
def test_unknown_operators_are_named(operator: str, domain: str) -> None:
    """An operator that nothing is known of is not counted as free."""
    assert cost_of_node(operator, [(2, 3)], [(2, 3)], domain).unknown == ("node",)


SHARED = """<ir_version: 10, opset_import: ["" : 20]>
g (float[n, 2] x) => (float[n, 2] y) <float[2, 2] w = {1, 2, 3, 4}> {
    [one] h = MatMul(x, w)
    [two] y = MatMul(h, w)
}"""


def test_shared_weights_count_once() -> None:
    """A weight that two nodes use appears with both and counts once in the totals."""
    model = ir.from_onnx_text(SHARED)
    cost = cost_of(model, {"x": (3, 2), "h": (3, 2), "y": (3, 2)})
    assert [(node.name, node.parameters, node.bytes, node.macs) for node in cost.nodes] == [("one", 4, 16, 12), ("two", 4, 16, 12)]
    assert (cost.parameters, cost.bytes, cost.macs) == (4, 16, 24)


def test_missing_shapes_are_named() -> None:
    """Nodes whose shapes are open are named, not guessed."""
    cost = cost_of(ir.from_onnx_text(SHARED))
    assert cost.unknown == ("one", "two")
    assert cost.macs == 0


def test_packed_weights_count_as_weights() -> None:
    """Two 4-bit weights in one byte are two parameters and one byte."""
    values = [ir.val("x", ir.DataType.FLOAT, (1, 64))]
    weights = [ir.val("b", const_value=ir.tensor(np.zeros((8, 2, 16), np.uint8), name="b"))]
    weights.append(ir.val("s", const_value=ir.tensor(np.zeros((8, 2), np.float32), name="s")))
    attributes = {"K": 64, "N": 8, "bits": 4, "block_size": 32}
    node = ir.node("MatMulNBits", values + weights, attributes, domain=MICROSOFT, name="node")
    node.outputs[0].name, node.outputs[0].shape = "y", ir.Shape([1, 8])
    graph = ir.Graph(values, node.outputs, nodes=[node], initializers=weights, opset_imports={"": 20, MICROSOFT: 1}, name="g")
    cost = cost_of(ir.Model(graph, ir_version=10))
    assert (cost.parameters, cost.bytes, cost.macs) == (64 * 8 + 16, 8 * 2 * 16 + 64, 64 * 8)
    assert cost.nodes[0].parameters == cost.parameters


CONTROL = """<ir_version: 10, opset_import: ["" : 20]>
g (bool c, bool go, float[2, 2] x) => (float[2, 2] y, float[2, 2] z) <int64 rounds = {5}, float[2, 2] w = {1, 2, 3, 4}> {
    [choice] y = If (c) <
        then_branch = t () => (float[2, 2] p) { [a] p = MatMul(x, w) },
        else_branch = e () => (float[2, 2] q) { [b] h = MatMul(x, w) [c] q = MatMul(h, w) }
    >
    [loop] z = Loop (rounds, go, x) <
        body = l (int64 i, bool before, float[2, 2] s) => (bool after, float[2, 2] r) { after = Identity(before) [d] r = MatMul(s, w) }
    >
}"""


def test_control_flow() -> None:
    """If costs its dearer branch and a loop all its rounds; nodes inside are told but not counted twice."""
    model = ir.from_onnx_text(CONTROL)
    cost = cost_of(model, dict.fromkeys(["x", "p", "q", "h", "s", "r"], (2, 2)))
    macs = {node.name: node.macs for node in cost.nodes}
    assert (macs["choice"], macs["loop"], macs["b"], macs["d"]) == (16, 40, 8, 8)
    assert cost.macs == 56
    assert [node.inside for node in cost.nodes if node.name in {"a", "b", "c", "d"}] == ["choice", "choice", "choice", "loop"]
    assert cost.parameters == 5


def test_digits(digits: Path) -> None:
    """Counts of a real model at the shapes of a trace agree with what its layers hold."""
    model = load(digits / "conv.onnx")
    (name,) = [value.name or "" for value in model.graph.inputs]
    shape = [dim if isinstance(dim, int) else 1 for dim in model.graph.inputs[0].shape or ()]
    cost = cost_of(model, trace_shapes(model, {name: np.zeros(shape, np.float32)}))
    assert cost.unknown == ()
    assert cost.macs > cost.parameters > 0
    assert cost.bytes == sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value)

"""Units: what only goes together is found, and what is removed is what zeroed weights would have ignored."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import strategies as st

from graphopt import files
from graphopt.cli import main
from graphopt.errors import PassError
from graphopt.graph.edits import name_nodes
from graphopt.graph.structure import verify_structure
from graphopt.graph.units import Couplings, couplings_of, remove
from graphopt.presets import preset
from graphopt.runtime.session import open_session
from graphopt.runtime.trial import runnable_samples
from graphopt.stage import Stage
from tests.helpers import parse
from tests.pruned import chosen, furthest, zeroed
from tests.weighted import weighted

Array = np.ndarray[Any, Any]
LIMIT = 1e-5

_LARGE = 4_000_000
_IN_BRANCHES = ("silero_vad_ifless",)
"""All its weights stand in the branches of an If, where nothing is pruned."""


class Net:
    """A random image network, one step after the other."""

    def __init__(self, seed: int) -> None:
        self._random = np.random.default_rng(seed)
        self._nodes: list[ir.Node] = []
        self._weights: list[ir.Value] = []
        self.input = ir.val("x", ir.DataType.FLOAT, [2, 3, 8, 8])

    def constant(self, *shape: int) -> ir.Value:
        """A random weight."""
        return self.keep((self._random.normal(size=shape) / float(max(math.prod(shape[1:]), 1)) ** 0.5).astype(np.float32))

    def keep(self, array: Array) -> ir.Value:
        """A constant."""
        name = f"w{len(self._weights)}"
        self._weights.append(ir.val(name, const_value=ir.tensor(array, name=name)))
        return self._weights[-1]

    def op(self, op_type: str, *inputs: ir.Value, outputs: int = 1, **attributes: Any) -> Sequence[ir.Value]:
        """A node."""
        node = ir.node(op_type, inputs, attributes, num_outputs=outputs, name=f"n{len(self._nodes)}")
        for index, value in enumerate(node.outputs):
            value.name = f"{node.name}:{index}"
        self._nodes.append(node)
        return node.outputs

    def conv(self, x: ir.Value, before: int, after: int, group: int = 1) -> ir.Value:
        """A convolution with a bias, then Relu."""
        weight = self.constant(after, before // group, 3, 3)
        (made,) = self.op("Conv", x, weight, self.constant(after), group=group, pads=[1, 1, 1, 1])
        return self.op("Relu", made)[0]

    def model(self, output: ir.Value) -> ir.Model:
        """The whole network."""
        output.type, output.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape([2, 5])
        graph = ir.Graph([self.input], [output], nodes=self._nodes, initializers=self._weights, opset_imports={"": 18}, name="g")
        return ir.Model(graph, ir_version=8)


def _plain(net: Net, x: ir.Value, width: int) -> tuple[ir.Value, int]:
    return net.conv(x, width, 12), 12


def _residual(net: Net, x: ir.Value, width: int) -> tuple[ir.Value, int]:
    inner = net.conv(net.conv(x, width, 10), 10, width)
    return net.op("Add", x, inner)[0], width


def _depthwise(net: Net, x: ir.Value, width: int) -> tuple[ir.Value, int]:
    return net.conv(net.conv(x, width, 2 * width, group=width), 2 * width, 8), 8


def _grouped(net: Net, x: ir.Value, width: int) -> tuple[ir.Value, int]:
    return net.conv(net.conv(x, width, 8), 8, 16, group=4), 16


def _concat(net: Net, x: ir.Value, width: int) -> tuple[ir.Value, int]:
    return net.op("Concat", net.conv(x, width, 6), x, axis=1)[0], width + 6


def _gated(net: Net, x: ir.Value, width: int) -> tuple[ir.Value, int]:
    left, right = net.op("Split", net.conv(x, width, 16), net.keep(np.array([8, 8], np.int64)), outputs=2, axis=1)
    return net.op("Mul", left, net.op("Sigmoid", right)[0])[0], 8


def _squeeze(net: Net, x: ir.Value, width: int) -> tuple[ir.Value, int]:
    (pooled,) = net.op("GlobalAveragePool", x)
    gate = net.op("Sigmoid", net.op("Conv", pooled, net.constant(width, width, 1, 1))[0])[0]
    return net.op("Mul", x, gate)[0], width


def _normalized(net: Net, x: ir.Value, width: int) -> tuple[ir.Value, int]:
    parts = [net.keep(np.abs(net.constant(width).const_value.numpy()) + 1) for _ in range(4)]  # type: ignore[union-attr]  # constants
    return net.op("BatchNormalization", x, *parts)[0], width


def _attention(net: Net, x: ir.Value, width: int) -> tuple[ir.Value, int]:
    """Three heads of four over the 64 places of the picture."""
    tokens = net.op("Transpose", net.op("Reshape", x, net.keep(np.array([2, width, 64], np.int64)))[0], perm=[0, 2, 1])[0]
    heads = []
    for turned in ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3]):
        made = net.op("MatMul", tokens, net.constant(width, 12))[0]
        split = net.op("Reshape", made, net.keep(np.array([0, 0, 3, 4], np.int64)))[0]
        heads.append(net.op("Transpose", split, perm=turned)[0])
    weights = net.op("Softmax", net.op("MatMul", heads[0], heads[1])[0], axis=-1)[0]
    mixed = net.op("Transpose", net.op("MatMul", weights, heads[2])[0], perm=[0, 2, 1, 3])[0]
    merged = net.op("Reshape", mixed, net.keep(np.array([2, 64, 12], np.int64)))[0]
    out = net.op("Transpose", net.op("MatMul", merged, net.constant(12, 9))[0], perm=[0, 2, 1])[0]
    return net.op("Reshape", out, net.keep(np.array([2, 9, 8, 8], np.int64)))[0], 9


STEPS: dict[str, Callable[[Net, ir.Value, int], tuple[ir.Value, int]]] = {
    "plain": _plain,
    "residual": _residual,
    "depthwise": _depthwise,
    "grouped": _grouped,
    "concat": _concat,
    "gated": _gated,
    "squeeze": _squeeze,
    "normalized": _normalized,
    "attention": _attention,
}


def network(steps: Sequence[str], flattens: bool, seed: int = 0) -> ir.Model:
    """A network of some steps; a classifier over the flattened picture, or over its means."""
    net = Net(seed)
    x, width = net.conv(net.input, 3, 8), 8
    for step in steps:
        x, width = STEPS[step](net, x, width)
    if not flattens:
        (x,) = net.op("GlobalAveragePool", x)
    features = width * (64 if flattens else 1)
    (x,) = net.op("Flatten", x, axis=1)
    (x,) = net.op("Gemm", x, net.constant(5, features), net.constant(5), transB=1)
    return net.model(x)


def check_identity(model: ir.Model, feeds: Sequence[dict[str, Array]], seed: int = 0, limit: float = LIMIT) -> Couplings:
    """Removes a quarter of each block, and compares with the original in which the consumers' weights for it are zero."""
    couplings = couplings_of(model)
    gone = chosen(couplings, np.random.default_rng(seed))
    assert gone
    reference = open_session(zeroed(model, couplings, gone))
    expected = [reference.run(feed) for feed in feeds]
    remove(model, couplings, gone)
    verify_structure(model)
    for optimizations in ("all", "none"):
        pruned = open_session(model, optimizations)
        assert max(furthest(wanted, pruned.run(feed)) for wanted, feed in zip(expected, feeds, strict=True)) < limit
    return couplings


@hypothesis.settings(max_examples=25, deadline=None)
@hypothesis.given(st.lists(st.sampled_from(sorted(STEPS)), min_size=1, max_size=5), st.booleans(), st.integers(0, 99))
def test_pruned_is_zeroed(steps: list[str], flattens: bool, seed: int) -> None:
    """Whatever the steps of a network are, in whatever order."""
    x = np.random.default_rng(seed).normal(size=(2, 3, 8, 8)).astype(np.float32)
    check_identity(network(steps, flattens, seed), [{"x": x}], seed)


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        (["plain"], ["channels of n0: 8 channels", "channels of n2: 12 channels"]),
        (["residual"], ["stage 0 residual: 8 channels", "channels of n2: 10 channels"]),
        (["gated"], ["channels of n0: 8 channels", "channels of n2: 8 channels"]),
        (["attention"], ["channels of n0: 8 channels", "layer 0 attention: 3 heads of 4", "layer 0 feed-forward: 9 channels"]),
    ],
)
def test_blocks_are_named_as_a_person_would(steps: list[str], expected: list[str]) -> None:
    """Streams, heads, gates and plain channels."""
    assert [str(block) for block in couplings_of(network(steps, flattens=False)).blocks] == expected


def test_what_stays_and_why() -> None:
    """Inputs, outputs, what a normalization sees, and what an operator without a rule touches."""
    net = Net(0)
    (pooled,) = net.op("GlobalAveragePool", net.input)
    (x,) = net.op("Flatten", pooled)
    first = net.op("MatMul", x, net.constant(3, 8))[0]
    normal = net.op("LayerNormalization", first, net.constant(8))[0]
    second = net.op("MatMul", normal, net.constant(8, 8))[0]
    odd = net.op("Foo", second)[0]
    odd.shape, odd.type = ir.Shape([2, 8]), ir.TensorType(ir.DataType.FLOAT)
    third = net.op("MatMul", odd, net.constant(8, 5))[0]
    pins = {(pin.layer, pin.role): pin.reason for pin in couplings_of(net.model(third)).pins}
    assert pins["n2", "uses"] == "MatMul n2"
    assert pins["n2", "makes"] == pins["n4", "uses"] == "LayerNormalization n3"
    assert pins["n4", "makes"] == "Foo n5"


def test_outputs_stay() -> None:
    """A model's outputs keep their lengths."""
    assert couplings_of(network(["plain"], flattens=False)).pins[-1].reason.startswith("output ")


def test_captured_values_stay() -> None:
    """What a subgraph reads keeps its channels."""
    model = parse(
        "(float[2, 4] x, bool c) => (float[2, 2] y) <float[4, 2] a = {1, 2, 3, 4, 5, 6, 7, 8}> {"
        "h = MatMul(x, a) y = If(c) <then_branch = t () => (float[2, 2] u) { u = Relu(h) },"
        " else_branch = e () => (float[2, 2] v) { v = Neg(h) }> }"
    )
    name_nodes(model)
    couplings = couplings_of(model)
    assert not couplings.blocks
    assert any("subgraph" in pin.reason for pin in couplings.pins)


def test_what_a_recurrence_begins_with_becomes_as_narrow_as_its_state() -> None:
    """Zeros of a computed shape hold back no channel: their length is written anew."""
    model = weighted(
        "(float[B,6] x) => (float[B,3] y) <int64[1] zero = {0}, int64[1] one = {1}, int64[1] width = {8}> {"
        "s = Shape(x) b = Slice(s, zero, one) n = Concat<axis = 0>(b, width) h = ConstantOfShape(n)"
        "u = MatMul(x, first) v = Add(u, h) w = Relu(v) y = MatMul(w, second) }",
        {"first": (6, 8), "second": (8, 3)},
    )
    couplings = couplings_of(model)
    (block,) = couplings.blocks
    gone = {block.name: np.array([1, 5, 6])}
    expected = zeroed(model, couplings, gone)
    remove(model, couplings, gone)
    feed = {"x": np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)}
    assert furthest(open_session(expected).run(feed), open_session(model).run(feed)) < LIMIT
    assert [value.shape for value in model.graph.initializers.values() if (value.name or "").startswith("first")] == [(6, 5)]


def test_graph_of_blocks() -> None:
    """Blocks and nodes, joined where a node stores the channels of a block."""
    graph = couplings_of(network(["residual"], flattens=False)).graph()
    assert graph.nodes["stage 0 residual"]["count"] == 8
    assert graph.edges["stage 0 residual", "n0"]["role"] in ("makes", "follows")


def test_nothing_left_is_refused() -> None:
    """One channel must stay."""
    model = network(["plain"], flattens=False)
    couplings = couplings_of(model)
    with pytest.raises(PassError, match="keep one at least"):
        remove(model, couplings, {couplings.blocks[0].name: range(8)})


def _real(variable: str) -> list[Path]:
    folder = os.environ.get(variable)
    found = sorted(Path(folder).glob("*/model*.onnx")) if folder else []
    return [path for path in found if path.parent.name not in _IN_BRANCHES]


def _name(path: Path) -> str:
    return f"{path.parent.name}-{path.stem}"


def _slow_if_large(path: Path) -> Sequence[pytest.MarkDecorator]:
    return [pytest.mark.slow] if path.stat().st_size > _LARGE else []


def _check_real(path: Path) -> None:
    stage = Stage(tuple(preset("exact").build()))
    model = files.load(path)
    name_nodes(model)
    model = stage.attempt(model, frozenset()).model
    feeds = [dict(feed) for feed in runnable_samples(model, count=1)]
    noisy = {"ocr_det": 1.0}  # a sigmoid far in its tail: nothing can be said on made-up samples
    couplings = check_identity(model, feeds, limit=noisy.get(path.parent.name, LIMIT))
    assert len(couplings.blocks) > 2


@pytest.mark.parametrize("path", [pytest.param(path, marks=_slow_if_large(path)) for path in _real("GRAPHOPT_ZOO")], ids=_name)
def test_zoo(path: Path) -> None:
    """The identity on trained models."""
    _check_real(path)


@pytest.mark.slow
@pytest.mark.parametrize("path", _real("GRAPHOPT_ARCH"), ids=_name)
def test_architectures(path: Path) -> None:
    """The identity on graphs of both exporters."""
    _check_real(path)


def test_inspect_shows_blocks(capsys: pytest.CaptureFixture[str]) -> None:
    """On the command line, as a table and as JSON."""
    example = str(Path(__file__).parent.parent / "examples/digits/attention.onnx")
    assert main(["inspect", example, "--couplings"]) == 0
    assert "layer 0 attention" in capsys.readouterr().out
    assert main(["inspect", example, "--couplings", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["prunable"] / found["weights"] > 0.5
    assert found["blocks"][0]["sites"]

"""Profiles: what runs is mapped back to the file's own nodes, and weighed against what the machine reaches."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from graphopt.cli import main
from graphopt.graph.edits import name_nodes
from graphopt.report.attribution import attribute
from graphopt.report.profile import NodeProfile, kernels_of, profile_of
from graphopt.runtime.profile import NodeTime, profile
from graphopt.runtime.roofline import Roofline, measure_roofline
from tests.helpers import parse

CONVOLUTION = """(float[1, 4, 6, 6] x) => (float[1, 8, 6, 6] y)
<float[8, 4, 3, 3] w = {}, float[8, 8, 3, 3] u = {}> {{
    [c] a = Conv<pads = [1, 1, 1, 1]>(x, w)
    [r] b = Relu(a)
    [d] y = Conv<pads = [1, 1, 1, 1]>(b, u)
}}"""


def test_every_node_runs_once(digits: Path) -> None:
    """No node of the file is attributed twice, and all that is not folded or fused away by name is attributed to some kernel."""
    for file in ("conv.onnx", "conv_torchscript.onnx", "attention.onnx"):
        found = profile_of(digits / file, digits / "calib.npz")
        counted = Counter(name for node in found.nodes for name in node.nodes)
        assert set(counted.values()) == {1}
        layers = [node for node in found.nodes if node.macs]
        assert layers
        assert all(node.intensity and node.reached(found.roofline) for node in layers)
        assert sum(seconds for _, seconds in kernels_of(found.nodes).values()) == pytest.approx(found.seconds)


def test_work_is_counted_where_it_runs() -> None:
    """Blocked convolutions take over the activation; their work is that of the file's layers."""
    model = parse(CONVOLUTION.format("{" + ",".join(["0.1"] * 288) + "}", "{" + ",".join(["0.1"] * 576) + "}"))
    name_nodes(model)
    times = profile(model, [{"x": np.ones((1, 4, 6, 6), np.float32)}], seconds=0.05)
    found = attribute(model, times)
    assert [node.name for each in found for node in each.nodes].count("c") == 1
    by_kernel = {tuple(sorted(node.name or "" for node in each.nodes)) for each in found if each.nodes}
    assert {name for names in by_kernel for name in names} == {"c", "r", "d"}


def test_fused_node_stands_for_what_it_took() -> None:
    """From the values that it writes back to those that others write; what the runtime added stands for nothing."""
    model = parse("(float[n] x) => (float[n] y) { [a] p = Relu(x) [b] q = Exp(p) [c] r = Neg(q) [d] y = Abs(r) }")
    times = [
        NodeTime("Fused", "com.microsoft::Fused", 1.0, ("x",), ("q",)),
        NodeTime("Reorder", "Reorder", 1.0, ("q",), ("q_blocked",)),
        NodeTime("y_nchwc", "Abs", 1.0, ("q_blocked",), ("y_blocked",)),
    ]
    found = attribute(model, times)
    assert [[node.name for node in each.nodes] for each in found] == [["b", "a"], [], ["d", "c"]]
    assert [value.name for value in found[0].reads] == ["x"]


def test_roofline() -> None:
    """Little intensity is bound by memory, much by arithmetic; this machine does more than nothing."""
    roof = Roofline(flops=100e9, bandwidth=10e9)
    assert roof.attainable(1) == 10e9
    assert roof.attainable(100) == 100e9
    node = NodeProfile("n", "MatMul", 1e-3, ("n",), macs=10_000_000, bytes=1_000_000)
    assert node.intensity == 20.0
    assert node.reached(roof) == pytest.approx(0.2)
    measured = measure_roofline()
    assert measured.flops > 1e8
    assert measured.bandwidth > 1e7


def test_command(digits: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The table and its JSON."""
    assert main(["profile", str(digits / "conv.onnx"), "--data", str(digits / "calib.npz"), "--threads", "1"]) == 0
    printed = capsys.readouterr().out
    assert "of roofline" in printed
    assert main(["profile", str(digits / "conv.onnx"), "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["version"] == 1
    assert content["samples"]["synthetic"] is True
    assert main(["profile", str(digits / "none.onnx")]) == 1

"""Tests of finding the layers that take longer than before."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir
import pytest

from graphopt import ledger
from graphopt.choosing.pace import slow_layers
from graphopt.ledger import Key
from graphopt.runtime.profile import NodeTime, profile
from graphopt.runtime.session import SessionOptions
from tests.noisy import LAYERS, ROOM, chain, data


def test_profile() -> None:
    """Every executed node with its time; feeds take turns."""
    found = profile(chain(), data(), SessionOptions(threads=1), seconds=0.01)
    assert [node.operator for node in found] == ["MatMul"] * LAYERS
    assert all(node.seconds >= 0 for node in found)
    assert found[0].inputs == ("v0", f"w0{ROOM}")


def test_slow_layers_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers that take longer with the conversions next to them are named with both times; the others are not."""

    def timed(model: ir.Model, feeds: object, options: object) -> Iterator[NodeTime]:
        is_result = any(node.op_type == "Identity" for node in model.graph)
        for node in model.graph:
            slow = is_result and node.name == "mm2"
            outputs = tuple(value.name or "" for value in node.outputs)
            yield NodeTime(f"{outputs[0]}_nchwc", "MatMul", 3e-3 if slow else 1e-3, tuple(v.name or "" for v in node.inputs if v), outputs)

    monkeypatch.setattr("graphopt.choosing.pace.profile", lambda *arguments: list(timed(*arguments)))
    before, after = chain(), chain()
    extra = ir.node("Identity", [after.graph.inputs[0]], name="extra")
    extra.outputs[0].name = "extra"
    after.graph.append(extra)
    rewrites = [ledger.Rewrite(Key("p", "", f"mm{i}")) for i in range(LAYERS)]
    [drop] = slow_layers(rewrites, before, after, data(), SessionOptions())
    assert drop.key.anchor == "mm2"
    assert drop.reason == "3 ms instead of 1 ms in float"

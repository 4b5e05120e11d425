"""A model of layers, sound rules for it, passes made of rules, and what a run on it leaves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from graphopt.graph.view import View
from graphopt.ledger import Key
from graphopt.passes import find
from graphopt.passes.rules import Change, Rule, RulePass, rule
from graphopt.recipe import Recipe
from graphopt.result import Result
from graphopt.runtime.session import open_session
from graphopt.runtime.timing import Interval, Load, Speed
from tests.helpers import random_feeds

LAYERS = 6
Register = Callable[..., Recipe]


def layered() -> ir.Model:
    """``MatMul, Neg, Neg, Relu``, six times, on 8 values; long names leave room for what rules add."""
    generator = np.random.default_rng(0)
    weights = [", ".join(f"{number:.3f}" for number in generator.normal(size=64)) for _ in range(LAYERS)]
    initializers = ", ".join(f"float[8,8] w{index} = {{{numbers}}}" for index, numbers in enumerate(weights))
    room = "_" * 400
    lines = "\n".join(
        f"[mm{i}] m{i} = MatMul(v{i}, w{i})  [a{i}{room}] n{i} = Neg(m{i})  [b{i}] p{i} = Neg(n{i})  [r{i}] v{i + 1} = Relu(p{i})"
        for i in range(LAYERS)
    )
    text = f"g (float[4,8] v0) => (float[4,8] v{LAYERS}) <{initializers}> {{ {lines} }}"
    return ir.from_onnx_text(f'<ir_version: 8, opset_import: ["": 18]> {text}')


def layered_file(tmp_path: Path) -> Path:
    """The layered model as a file."""
    path = tmp_path / "model.onnx"
    ir.save(layered(), path)
    return path


def cancel_negations(node: ir.Node, view: View) -> Change | None:
    """Replaces the negation of a negation with what was negated."""
    inner = view.producer(node.inputs[0], "Neg")
    source = inner.inputs[0] if inner else None
    return Change(lambda build: source) if source is not None else None


GOOD = rule(cancel_negations, "Neg")


def is_place(node: ir.Node) -> bool:
    """Whether a node is one of the original's; those that rules make have a slash in their names."""
    return "/" not in (node.name or "")


def copied(node: ir.Node, view: View, **attributes: Any) -> Change | None:
    """A right rewrite: the same MatMul with a copy of its weight."""
    weight = view.constant(node.inputs[1])
    if not is_place(node) or weight is None:
        return None
    return Change(lambda build: build.op("MatMul", node.inputs[0], build.constant(weight.copy(), f"{node.name}c"), **attributes))


def table(name: str, *rules: Rule) -> type[RulePass]:
    """A pass of some rules."""
    return dataclass(frozen=True)(type(name, (RulePass,), {"name": name, "rules": rules}))


def registering(monkeypatch: pytest.MonkeyPatch) -> Register:
    """A function that makes a recipe of pass classes, and has recipes find them by name."""
    known: dict[str, type[Any]] = {}
    monkeypatch.setattr("graphopt.spec.find", lambda name: known.get(name) or find(name))

    def registered(*kinds: type[Any], verify: str = "outputs", **fields: Any) -> Recipe:
        known.update({kind.name: kind for kind in kinds})
        return Recipe.of(*(kind.name for kind in kinds)).changed(verify=verify, **fields)

    return registered


def dropped(result: Result) -> list[Key]:
    """What was dropped."""
    return [drop.key for drop in result.ledger.drops]


def assert_outputs_kept(path: Path, result: Result) -> None:
    """The result's outputs are the original's, with the runtime's optimizations on and off."""
    assert result.path is not None
    feed = random_feeds(layered())
    expected = open_session(path, "none").run(feed)[f"v{LAYERS}"]
    for level in ("all", "none"):
        np.testing.assert_allclose(open_session(result.path, level).run(feed)[f"v{LAYERS}"], expected, rtol=1e-4, atol=1e-4)


def timed(speedup: float) -> Speed:
    """What a measurement says, without measuring."""
    load = Load(0.1, None)
    return Speed(Interval(speedup, speedup, speedup), Interval(1.0, 1.0, 1.0), 1, 0.001, 0.001 / speedup, load, load)

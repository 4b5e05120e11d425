"""A chain of layers, a pass that disturbs each as much as a table says, and samples."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir
import pytest

from graphopt import ledger
from graphopt.graph.edits import remove_dead
from graphopt.graph.layers import layers_of
from graphopt.ledger import Key
from graphopt.passes import PASSES
from graphopt.passes.base import Context, GuidedPass, Role
from graphopt.recipe import Recipe
from graphopt.result import Result
from tests.helpers import parse

LAYERS = 6
ROOM = "_" * 200
"""At the end of the names of weights, so that what passes add does not make the model larger."""
NOISE = {"mm0": 1e-4, "mm1": 3e-2, "mm2": 1e-4, "mm3": 1e-2, "mm4": 1e-3, "mm5": 1e-4}
"""How much each layer's weight is disturbed below, relative to itself."""


def chain() -> ir.Model:
    """Six orthogonal layers in a row, ``MatMul`` with a weight of 16 by 16, the third twice as wide and back."""
    generator = np.random.default_rng(0)
    lines = " ".join(f"[mm{i}] v{i + 1} = MatMul(v{i}, w{i}{ROOM})" for i in range(LAYERS))
    model = parse(f"(float[n, 16] v0) => (float[n, 16] v{LAYERS}) {{ {lines} }}")
    for node in model.graph:
        value = node.inputs[1]
        assert value is not None
        value.const_value = ir.tensor(np.linalg.qr(generator.normal(size=(16, 16)))[0].astype(np.float32), name=value.name)
        model.graph.register_initializer(value)
    return model


@dataclass(frozen=True)
class Disturb(GuidedPass):
    """Adds noise to weights, as much as the table says."""

    name: ClassVar[str] = "disturb"
    role: ClassVar[Role] = "approximate"

    def run(self, model: ir.Model, context: Context) -> bool:
        """Asks the ledger for each layer."""
        changed = False
        for layer in layers_of(model):
            key = Key(self.name, "", layer.name)
            if not ledger.allow(key):
                continue
            weight = layer.weight()
            noise = np.random.default_rng(int(layer.name[-1])).normal(size=weight.shape)
            disturbed = weight + noise * (NOISE[layer.name] * np.linalg.norm(weight) / np.linalg.norm(noise))
            old, name = layer.value, f"d{layer.name[-1]}"
            value = ir.val(name, const_value=ir.tensor(np.ascontiguousarray(layer.restore(disturbed.astype(np.float32))), name=name))
            model.graph.register_initializer(value)
            layer.node.replace_input_with(layer.index, value)
            remove_dead([old])
            ledger.record(ledger.Rewrite(key, predicted_error=NOISE[layer.name]))
            changed = True
        return changed


@dataclass(frozen=True)
class Nudge(GuidedPass):
    """Renames nothing and keeps the function: stands for a preparation."""

    name: ClassVar[str] = "nudge"
    role: ClassVar[Role] = "prepare"

    factor: float = 1.0

    def run(self, model: ir.Model, context: Context) -> bool:
        """Multiplies the input of the first layer by one, or by what it is told."""
        key = Key(self.name, "", "mm0")
        if not ledger.allow(key):
            return False
        node = next(node for node in model.graph if node.name == "mm0")
        one = ir.val("one", const_value=ir.tensor(np.float32(self.factor), name="one"))
        model.graph.register_initializer(one)
        scaled = ir.node("Mul", [node.inputs[0], one], name="nudged")
        scaled.outputs[0].name = "nudged"
        node.replace_input_with(0, scaled.outputs[0])
        model.graph.insert_before(node, scaled)
        ledger.record(ledger.Rewrite(key, added=("nudged",)))
        return True


def chain_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The chain as a file; the passes above are registered."""
    path = tmp_path / "model.onnx"
    ir.save(chain(), path)
    for kind in (Disturb, Nudge):
        monkeypatch.setitem(PASSES, kind.name, f"{__name__}:{kind.__name__}")
    return path


def data() -> list[dict[str, Any]]:
    """Samples of the chain."""
    generator = np.random.default_rng(1)
    return [{"v0": generator.normal(size=(5, 16)).astype(np.float32)} for _ in range(3)]


def recipe(*passes: str, **fields: Any) -> Recipe:
    """Passes that are held to some limits; outputs are verified, nothing is timed."""
    return Recipe.of(*(passes or ("disturb",))).changed(verify="outputs", **fields)


def kept(result: Result) -> list[str]:
    """The layers that were disturbed."""
    return [rewrite.key.anchor for rewrite in result.ledger.rewrites if rewrite.key[0] == "disturb"]

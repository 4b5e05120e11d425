"""Coverage: how much of a model's work with weights runs in integers, and why the rest does not."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from graphopt.graph.cost import NodeCost, cost_of
from graphopt.graph.macs import Shape
from graphopt.ledger import Drop, Ledger, Miss, Rewrite
from graphopt.passes.quantize.dynamic import Dynamic
from graphopt.passes.quantize.recurrent import Recurrent
from graphopt.passes.quantize.static import Static
from graphopt.passes.quantize.weights import Weights
from graphopt.targets.emit import (
    DYNAMIC_QUANTIZE_LSTM,
    DYNAMIC_QUANTIZE_MATMUL,
    MATMUL_NBITS,
    NHWC_QLINEAR_CONV,
    QGEMM,
    QLINEAR_CONV,
    QLINEAR_MATMUL,
)

_INTEGER_KERNELS = frozenset(
    {DYNAMIC_QUANTIZE_LSTM, DYNAMIC_QUANTIZE_MATMUL, MATMUL_NBITS, NHWC_QLINEAR_CONV, QGEMM, QLINEAR_CONV, QLINEAR_MATMUL}
)
"""Kernels that multiply integers."""
_PASSES = frozenset({Dynamic.name, Recurrent.name, Static.name, Weights.name})
"""The passes that bring them."""
_BODIES = frozenset({"If", "Loop", "Scan"})
"""Operators whose work is that of nodes that are counted by themselves."""
_SHOWN = 3


@dataclass(frozen=True)
class LeftInFloat:
    """A layer that no integer kernel runs.

    Attributes:
        name: of its node.
        operator: its type.
        share: of the multiply-accumulates of all layers.
        reason: what was measured or found that speaks against it.
    """

    name: str
    operator: str
    share: float
    reason: str


@dataclass(frozen=True)
class Coverage:
    """How much of the multiply-accumulates of layers with weights are done in integers.

    Attributes:
        macs: of all layers that hold constants, on one sample.
        integer_macs: of those that integer kernels run.
        layers: how many there are.
        left: those in float, the largest first.
    """

    macs: int
    integer_macs: int
    layers: int
    left: tuple[LeftInFloat, ...]

    @property
    def share(self) -> float:
        """Of the multiply-accumulates, what is done in integers."""
        return self.integer_macs / self.macs

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        left = [vars(layer) | {"share": round(layer.share, 6)} for layer in self.left]
        return {"macs": self.macs, "integer_macs": self.integer_macs, "layers": self.layers, "left_in_float": left}

    def __str__(self) -> str:
        done = f"integer kernels do {self.share:.1%} of the multiply-accumulates of {self.layers} layers"
        if not self.left:
            return done
        shown = ", ".join(f"{layer.name} ({layer.share:.1%}: {layer.reason})" for layer in self.left[:_SHOWN])
        rest = f" and {len(self.left) - _SHOWN} more, which the ledger names" if len(self.left) > _SHOWN else ""
        return f"{done}; in float are {shown}{rest}"


def coverage_of(model: ir.Model, shapes: Mapping[str, Shape], ledger: Ledger, passes: Collection[str], otherwise: str) -> Coverage | None:
    """What the rewrites of a run cover of the model that they approximate; None where it has no layers, or nothing brings integers.

    Args:
        model: as the first approximation was given it.
        shapes: of its values on a sample.
        ledger: of the whole run.
        passes: names of those that approximate.
        otherwise: the reason for layers that none of them spoke of.
    """
    layers = [node for node in cost_of(model, shapes).nodes if node.macs and node.parameters and node.operator not in _BODIES]
    macs = sum(node.macs or 0 for node in layers)
    if not macs or _PASSES.isdisjoint(passes):
        return None
    covered = _in_integers(ledger.rewrites)
    reasons = _reasons(ledger, passes)
    left = [node for node in layers if node.name not in covered]
    whole = reasons.get("", otherwise)
    found = tuple(LeftInFloat(node.name, node.operator, (node.macs or 0) / macs, reasons.get(node.name, whole)) for node in _by_work(left))
    return Coverage(macs, macs - sum(node.macs or 0 for node in left), len(layers), found)


def _in_integers(rewrites: Iterable[Rewrite]) -> set[str]:
    """Names of the nodes for which integer kernels stand."""
    made = [rewrite for rewrite in rewrites if _INTEGER_KERNELS.intersection(rewrite.kernels)]
    return {name for rewrite in made for name in (rewrite.key.anchor, *rewrite.removed)}


def _reasons(ledger: Ledger, passes: Collection[str]) -> dict[str, str]:
    """Why not, by name of a node; what was measured says more than what was found. Of whole passes by the empty name."""
    told: Sequence[Miss | Drop] = [*ledger.misses, *ledger.drops, *ledger.declined]
    return {entry.key.anchor: f"{entry.key.pass_name}: {entry.reason}" for entry in told if entry.key.pass_name in passes}


def _by_work(nodes: Iterable[NodeCost]) -> list[NodeCost]:
    return sorted(nodes, key=lambda node: -(node.macs or 0))

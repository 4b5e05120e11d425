"""Ratios: how many bits a weight may take for a packed model of a given size, and whether scales are worth theirs."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx_ir as ir

from graphopt import ledger
from graphopt.container import pack
from graphopt.errors import LimitError
from graphopt.files import save, total_bytes
from graphopt.passes.base import Context, GuidedPass
from graphopt.passes.walk.damage import differences
from graphopt.runtime.session import open_session

Per = Literal["tensor", "channel"]
Make = Callable[[float, Per], GuidedPass]
"""The pass that gives weights some bits on the average."""

_SAMPLES = 16
"""So many samples say which way costs the outputs less."""
_FLOAT_BITS = 32
_FEWEST, _MOST = 0.2, 8.0
"""Bits a weight."""
_MOST_TRIES = 5
_AIM, _NEAR = 0.97, 0.02
"""Of the size that is asked for, and how near is near enough: the ledger in the file takes a little too."""


@dataclass(frozen=True)
class Trial:
    """A clustered model.

    Attributes:
        cluster: the pass that made it.
        bits: a weight has, about.
        per: what has scales.
        damage: at the outputs.
        packed_bytes: of the packed model.
        solved: what the pass worked out, for when it runs again.
    """

    cluster: GuidedPass
    bits: float
    per: Per
    damage: float
    packed_bytes: int
    solved: dict[Any, Any]

    def price(self, target: float, weights: float) -> float:
        """The damage at a size that was asked for: a bit a weight more or less makes the noise four times as weak or strong."""
        return self.damage * math.exp2(2.0 * (self.packed_bytes - target) * 8 / weights)


def within(ratio: float, pers: Sequence[Per], make: Make, model: ir.Model, context: Context) -> Trial:
    """The clustering that packs into a given part of the model's bytes, with scales or without, whichever the outputs miss less.

    Args:
        ratio: how many times smaller the packed model is to be.
        pers: the kinds of scales to choose from.
        make: makes the pass.
        model: stays as it is.
        context: holds the samples.

    Raises:
        LimitError: no number of bits leaves so little; names about the nearest.
    """
    with tempfile.TemporaryDirectory(prefix="graphopt-") as folder:
        bench = _Bench(model, context, make, Path(folder))
        target = bench.original_bytes / ratio
        first = min(max(_FLOAT_BITS / ratio, _FEWEST), _MOST)
        best = min((bench.trial(first, per) for per in pers), key=lambda trial: trial.price(target, bench.weights))
        for _ in range(_MOST_TRIES):
            if (_AIM - _NEAR) * target <= best.packed_bytes <= (_AIM + _NEAR) * target:
                return best
            bits = best.bits + (_AIM * target - best.packed_bytes) * 8 / bench.weights
            if not _FEWEST <= bits <= _MOST:
                break
            best = bench.trial(bits, best.per)
    if best.packed_bytes <= target:
        return best
    nearest = bench.original_bytes / best.packed_bytes
    raise LimitError(f"cluster: a packed model {ratio:g} times smaller cannot be had: about {nearest:.1f} is the nearest; ask for less")


class _Bench:
    """Makes trials of a model."""

    def __init__(self, model: ir.Model, context: Context, make: Make, folder: Path) -> None:
        self._model, self._context, self._make, self._folder = model, context, make, folder
        self._feeds = list(islice(context.samples, _SAMPLES))
        session = open_session(model, "all", context.options)
        self._expected = [session.run(feed) for feed in self._feeds]
        save(model, folder / "model.onnx")
        self.original_bytes = total_bytes(folder / "model.onnx")
        self.weights = self.original_bytes / (_FLOAT_BITS // 8)

    def trial(self, bits: float, per: Per) -> Trial:
        """Clusters a clone, and packs it."""
        clone, solved, cluster = self._model.clone(), dict[Any, Any](), self._make(bits, per)
        with ledger.recording(ledger.Recorder()):
            cluster.run(clone, replace(self._context, solved=solved))
        session = open_session(clone, "all", self._context.options)
        pairs = zip(self._feeds, self._expected, strict=True)
        damage = float(np.mean([differences(self._model, expected, session.run(feed)) for feed, expected in pairs]))
        save(clone, self._folder / "trial.onnx")
        packed = pack(self._folder / "trial.onnx", self._folder / "trial.gopt").packed_bytes
        return Trial(cluster, bits, per, damage, packed, solved)

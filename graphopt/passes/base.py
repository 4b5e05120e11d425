"""What a pass is: exact passes, which need the model alone, and guided passes, which also need samples."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import onnx_ir as ir

from graphopt.runtime.session import SessionOptions
from graphopt.samples import Samples

if TYPE_CHECKING:
    from graphopt.runtime.statistics import Collector


Role = Literal["prepare", "approximate", "recover"]


@dataclass(frozen=True)
class Pass(ir.passes.InPlacePass):
    """An exact pass: model to model, the same function up to float rounding.

    Subclasses are frozen dataclasses; their fields are their options in Python, in a recipe and on the command line.
    The docstring begins ``Replaces A with B.`` and says when it applies, its numerics and its cost.

    Attributes:
        name: what recipes and the ledger call the pass.
    """

    name: ClassVar[str]

    @abc.abstractmethod
    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrites the model in place and tells whether anything changed."""


@dataclass(frozen=True)
class Context:
    """What a guided pass is given besides the model.

    Attributes:
        samples: calibration inputs.
        target: name of the target.
        shapes: exact shapes of the main graph's values on one sample, by name; empty where no trace could be made.
        options: how models are run.
        measures: candidates may be timed; not in a replay, whose recipe holds what was chosen, nor where structure alone is verified.
        original: the model before the first approximation since the last preparation: what is approximated. Layers that are still
            there have their names there too. None before any approximation.
        passes: those of the stage, in order: a preparation serves what follows it.
        memory: bytes for what is gathered about layers at a time, and for activations on their way; None for the default.
        solved: what a pass worked out for a layer, for its next attempt on a clone of the same model; it checks that this still holds.
    """

    samples: Samples
    target: str
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    options: SessionOptions = field(default_factory=SessionOptions)
    measures: bool = True
    original: ir.Model | None = None
    passes: tuple[GuidedPass, ...] = ()
    memory: int | None = None
    solved: dict[Any, Any] = field(default_factory=dict)
    _collectors: list[Collector] = field(default_factory=list)

    @property
    def statistics(self) -> Collector:
        """``statistics(model, request)`` runs the samples through a model as it is now, where it has changed since the last call."""
        from graphopt.runtime.statistics import Collector

        if not self._collectors:  # one for all contexts of a run, so that nothing is collected twice
            self._collectors.append(Collector(self.samples, self.options, self.memory))
        return self._collectors[0]


@dataclass(frozen=True)
class GuidedPass(abc.ABC):
    """A pass that is led by samples: approximation, its preparation, or recovery.

    Attributes:
        name: what recipes and the ledger call the pass.
        role: an approximation changes the function, within the recipe's ``min_sqnr``; a preparation is exact and pays only together
            with the approximation after it; a recovery takes back some of the error of the approximation before it.
    """

    name: ClassVar[str]
    role: ClassVar[Role] = "approximate"

    @abc.abstractmethod
    def run(self, model: ir.Model, context: Context) -> bool:
        """Rewrites the model in place and tells whether anything changed."""


AnyPass = Pass | GuidedPass


def options_of(kind: type[AnyPass]) -> dict[str, dataclasses.Field[Any]]:
    """The options of a pass by name: the fields of its dataclass."""
    return {option.name: option for option in dataclasses.fields(kind)}

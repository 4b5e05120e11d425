"""What a pass is: exact passes, which need the model alone, and guided passes, which also need samples."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import onnx_ir as ir

from graphopt.samples import Samples


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
    """

    samples: Samples
    target: str
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class GuidedPass(abc.ABC):
    """A pass that is led by samples: approximation, its preparation, or recovery.

    Attributes:
        name: what recipes and the ledger call the pass.
    """

    name: ClassVar[str]

    @abc.abstractmethod
    def run(self, model: ir.Model, context: Context) -> bool:
        """Rewrites the model in place and tells whether anything changed."""


AnyPass = Pass | GuidedPass


def options_of(kind: type[AnyPass]) -> dict[str, dataclasses.Field[Any]]:
    """The options of a pass by name: the fields of its dataclass."""
    return {option.name: option for option in dataclasses.fields(kind)}

"""The targets, and what the installed runtime has for them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from graphopt.runtime.registry import available_providers, registered_kernels
from graphopt.runtime.session import runtime_limits
from graphopt.targets import TARGETS


@dataclass(frozen=True)
class TargetReport:
    """What the installed runtime has for one target.

    Attributes:
        name, summary: of the target.
        provider: the execution provider that it needs; None where any runtime will do.
        executes: whether that provider is in the installed runtime; what is planned for it is else not executed here.
        operators: how many operators the provider has kernels for in the installed runtime.
        opset, ir_version: the newest that the installed runtime loads.
    """

    name: str
    summary: str
    provider: str | None
    executes: bool
    operators: int
    opset: int
    ir_version: int

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

    def __str__(self) -> str:
        runs = f"{self.operators} operators have kernels" if self.provider else "its results also run here"
        state = runs if self.executes else f"not executed: the installed runtime has no {self.provider}"
        return f"{self.name}: {self.summary}; {state}; newest opset {self.opset}, IR version {self.ir_version}"


def target_reports() -> list[TargetReport]:
    """Describes all targets.

    Raises:
        RuntimeUnavailableError: ONNX Runtime is not installed.
    """
    limits = runtime_limits()
    kernels = registered_kernels()
    return [
        TargetReport(
            target.name,
            target.summary,
            target.provider,
            target.provider is None or target.provider in available_providers(),
            sum(1 for provider, _, _ in kernels if provider == target.provider),
            limits.opset,
            limits.ir_version,
        )
        for target in TARGETS.values()
    ]

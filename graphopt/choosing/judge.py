"""Judges: may a candidate be kept, and how far is it from the original?"""

from __future__ import annotations

from dataclasses import dataclass, replace

import onnx_ir as ir

from graphopt.choosing.metric import Metric
from graphopt.verification import Noise, Verdict, Verifier


@dataclass(frozen=True)
class Judge:
    """What a candidate is held to after a stage.

    Attributes:
        verifier: of outputs; None where structure alone is verified, or nothing can be run.
        min_sqnr: dB that every output must keep; None for a candidate that must be exact.
        metric: the user's own, where one limits what approximations may cost; None for a candidate that must be exact.
    """

    verifier: Verifier | None
    min_sqnr: float | None = None
    metric: Metric | None = None

    def __call__(self, candidate: ir.Model) -> Verdict:
        """Runs a candidate; the metric only where nothing else speaks against it."""
        if self.verifier is None:
            return Verdict()
        verdict = self.verifier.check(candidate, self.min_sqnr)
        if not verdict.ok or self.metric is None:
            return verdict
        reason = self.metric.loss(candidate)
        return replace(verdict, reason=reason, lossy=bool(reason))

    def noise(self, candidate: ir.Model) -> Noise | None:
        """How far a candidate is from the original, by feed and output; None where that cannot be said."""
        return self.verifier.noise(candidate) if self.verifier else None

    @property
    def allowed(self) -> float:
        """The power of the noise that every output may have, relative to its own."""
        return 1.0 if self.min_sqnr is None else 10 ** (-self.min_sqnr / 10)

    @property
    def limit(self) -> str:
        """What is asked for, in words."""
        drop = [f"a drop of {self.metric.name} by {self.metric.max_drop:g} at most"] if self.metric else []
        counts = self.min_sqnr is not None and (self.min_sqnr > 0 or not drop)
        return " and ".join([*([f"{self.min_sqnr:g} dB of signal to noise"] if counts else []), *drop])

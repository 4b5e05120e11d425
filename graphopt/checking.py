"""Checking one file: structure, loading, running, and outputs against an original."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graphopt import files
from graphopt.errors import SessionError, VerificationError
from graphopt.graph.signature import signature_of
from graphopt.graph.structure import signature_changes, verify_structure
from graphopt.runtime.session import SessionOptions
from graphopt.subject import choose_subject
from graphopt.verification import Reference, verifier_of


@dataclass(frozen=True)
class CheckReport:
    """What was checked and found right.

    Attributes:
        model: the file.
        against: the original, or None where the runtime's optimizations on were compared with off.
        relative_error: the largest difference, relative to the largest magnitude of its output.
        feeds: how many samples were run.
        synthetic: they were made up.
        notes: what the user should know.
    """

    model: Path
    against: Path | None
    relative_error: float
    feeds: int
    synthetic: bool
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain data; ``version`` counts changes of this form."""
        return {"version": 1} | {name: str(value) if isinstance(value, Path) else value for name, value in vars(self).items()}

    def __str__(self) -> str:
        what = f"its outputs are those of {self.against}" if self.against else "its outputs do not depend on the runtime's optimizations"
        samples = f"{self.feeds} {'synthetic ' if self.synthetic else ''}samples"
        return f"{self.model}: structure is right, it loads and runs, and {what} (relative error {self.relative_error:.1e} on {samples})"


def check_model(
    path: Path, against: Path | None, data: str | None, shapes: Mapping[str, int], options: SessionOptions, tolerance: float
) -> CheckReport:
    """Checks a model.

    Args:
        path: the file, or a folder that holds one.
        against: the original, or None.
        data: samples; None for synthetic ones.
        shapes: sizes of symbolic dimensions for synthetic samples.
        options: how sessions are made.
        tolerance: relative to the largest magnitude of each output.

    Raises:
        ModelFileError: a file cannot be read.
        InvalidModelError: the structure is wrong.
        SessionError: the model does not load or run.
        VerificationError: the outputs or the signatures differ.
    """
    found = files.model_file(path)
    model = files.load(found)
    verify_structure(model)
    source = files.model_file(against) if against else found
    original = files.load(source) if against else model
    if changes := signature_changes(signature_of(original), signature_of(model)):
        raise VerificationError(f"{found} is not fed and read like {source}: {changes}")
    subject = choose_subject(original, source, data, shapes, options)
    if subject.refusal:
        raise SessionError(f"{source}: {subject.refusal}")
    verifier = verifier_of(subject.original, subject.feeds, options, tolerance, subject.cut)
    # Without an original, each level is held against the other: the references change places.
    if against is None:
        verifier.references = [_swapped(reference) for reference in verifier.references]
    verdict = verifier.check(model if subject.protected else found)
    if not verdict.ok:
        raise VerificationError(f"{found}: {verdict.reason}")
    return CheckReport(found, against, verdict.relative, len(verifier.references), subject.synthetic, tuple(subject.notes))


def _swapped(reference: Reference) -> Reference:
    if "none" not in reference.outputs:
        return reference
    return Reference(reference.feed, {"all": reference.outputs["none"], "none": reference.outputs["all"]}, {})

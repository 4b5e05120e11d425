"""Finds made-up samples on which a model runs, by trying plausible sizes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx_ir as ir

from graphopt.errors import SamplesError, SessionError
from graphopt.graph.signature import signature_of
from graphopt.runtime.session import Session, SessionOptions, open_session
from graphopt.samples import Samples, plausible_shapes
from graphopt.samples.sizes import complete

_SIZES_WANTED = 2


def runnable_samples(
    model: ir.Model,
    shapes: Mapping[str, int] | None = None,
    options: SessionOptions | None = None,
    *,
    count: int = 4,
    seed: int = 0,
    path: Path | None = None,
) -> Samples:
    """Synthetic samples that `model` accepts; two sizes take turns where two are found.

    Args:
        model: the model to run.
        shapes: lengths of symbolic dimensions that are known; only the others are varied.
        options: how to run.
        count: how many samples.
        seed: of the random generator.
        path: the file that holds the model, where there is one, which loads faster.

    Raises:
        SamplesError: `shapes` names no dimension of the model, or no size works; the runtime's reason for the first is given.
        SessionError: the model does not load.
    """
    session = open_session(path or model, "none", options)
    given = dict(shapes or {})
    complete(signature_of(model), given, model)
    found: list[dict[str, int]] = []
    reasons: list[str] = []
    candidates = [candidate | given for candidate in plausible_shapes(model)]
    for candidate in [one for index, one in enumerate(candidates) if one not in candidates[:index]]:
        reason = _refusal(session, model, candidate, seed)
        if reason is None:
            found.append(candidate)
        else:
            reasons.append(reason)
        if len(found) == _SIZES_WANTED:
            break
    if not found:
        symbols = ", ".join(candidates[0]) or "none, so pass samples"
        raise SamplesError(f"no made-up sample runs ({reasons[0]}); pass samples, or lengths of the open dimensions: {symbols}")
    return Samples.synthetic(model, found, count, seed)


def _refusal(session: Session, model: ir.Model, shapes: Mapping[str, int], seed: int) -> str | None:
    """Why the model does not run at these sizes, or None."""
    try:
        for feed in Samples.synthetic(model, shapes, count=2, seed=seed):
            session.run(feed)
    except SessionError as error:
        return str(error)
    return None

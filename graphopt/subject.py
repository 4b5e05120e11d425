"""What verification runs: which feeds, and which part of a model that cannot run whole."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.errors import GraphoptError, RuntimeUnavailableError, SamplesError
from graphopt.graph import regions
from graphopt.graph.signature import signature_of
from graphopt.runtime.registry import registered_operators
from graphopt.runtime.session import SessionOptions
from graphopt.runtime.trial import runnable_samples
from graphopt.samples import Samples
from graphopt.samples.sizes import complete

Feed = Mapping[str, "np.ndarray[Any, Any]"]

_CANDIDATES = 5
_FROM_DATA = 3
_LOOKED_AT = 64


@dataclass(frozen=True)
class Subject:
    """What verification runs.

    Attributes:
        original: what the references come from.
        feeds: a few samples, of different shapes where there are any; verification keeps the best three.
        cut: takes out of a candidate what cannot run.
        protected: names of nodes that are left alone, since what stands next to them cannot be run.
        notes: what the user should know.
        synthetic: the feeds are made up.
        refusal: why no change can be verified; empty where changes can be.
    """

    original: ir.Model | Path = Path()
    feeds: Sequence[Feed] = ()
    cut: Callable[[ir.Model], ir.Model] = field(default=lambda model: model)
    protected: frozenset[str] = frozenset()
    notes: Sequence[str] = ()
    synthetic: bool = False
    refusal: str = ""


def choose_subject(
    model: ir.Model,
    path: Path,
    data: Samples | str | Path | Iterable[Mapping[str, Any]] | None,
    shapes: Mapping[str, int],
    options: SessionOptions,
) -> Subject:
    """Finds feeds on which the original runs, and what has to be cut out of it so that it does.

    Args:
        model: the original in flight.
        path: the original as a file that the runtime should load.
        data: samples; None for synthetic ones.
        shapes: sizes of symbolic dimensions for synthetic samples.
        options: how sessions are made.

    Raises:
        SamplesError: the samples do not fit the model.
        SessionError: the runtime does not load the model although it knows all its operators, or does not run it on the data.
    """
    # Libraries that the user names bring operators that no registry lists before they are loaded.
    opaque = [] if options.custom_ops else regions.opaque_nodes(model, _is_known)
    if opaque:
        return _regional(model, opaque, options)
    if data is not None:
        samples = data if isinstance(data, Samples) else Samples.open(data, signature_of(model))
        return Subject(path, _varied(samples), synthetic=samples.is_synthetic)
    try:
        made = runnable_samples(model, shapes, options, count=_CANDIDATES, path=path)
    except SamplesError as error:
        complete(signature_of(model), shapes, model)  # a wrong --shape is the user's to mend
        refusal = f"nothing can be verified on synthetic samples: {error}; give --data or --shape, or accept --verify=structure"
        return Subject(path, notes=(f"warning: {refusal}",), refusal=refusal)
    return Subject(path, list(made), notes=("verified on synthetic samples; --data verifies on yours",), synthetic=True)


def _varied(samples: Samples) -> list[Feed]:
    """The first samples, those of shapes not seen yet before the others."""
    looked = list(islice(samples, _LOOKED_AT))
    by_shape: dict[tuple[Any, ...], Feed] = {}
    for feed in looked:
        by_shape.setdefault(tuple((name, array.shape) for name, array in sorted(feed.items())), feed)
    chosen = list(by_shape.values())[:_FROM_DATA]
    taken = {id(feed) for feed in chosen}
    return (chosen + [feed for feed in looked if id(feed) not in taken])[:_FROM_DATA]


def _regional(model: ir.Model, opaque: Sequence[ir.Node], options: SessionOptions) -> Subject:
    """Cuts out the nodes that the runtime does not know; the rest is run on random values in their place."""
    names = frozenset(node.name or "" for node in opaque)
    kinds = sorted({f"{node.domain}::{node.op_type}" for node in opaque})
    protected = names | {node.name or "" for node in regions.neighbourhood(model, opaque)}
    note = (
        f"{len(names)} nodes of unknown operators ({', '.join(kinds)}) and their neighbours are left alone; the rest is verified by regions"
    )

    def cut(candidate: ir.Model) -> ir.Model:
        return regions.without(candidate, names).model

    try:
        outside = regions.without(model, names)
        original = outside.model
        if not original.graph.outputs:
            raise SamplesError("what they return is of unknown type, and all else needs it")
        feeds = list(runnable_samples(original, {}, options, count=_CANDIDATES))
    except RuntimeUnavailableError:
        raise
    except GraphoptError as error:
        refusal = (
            f"the regions around unknown operators do not run ({error}); accept --verify=structure, or name their library with --custom-ops"
        )
        return Subject(notes=(note, f"warning: {refusal}"), refusal=refusal)
    protected |= frozenset(outside.unverifiable)
    return Subject(original, feeds, cut, protected, (note, "verified on synthetic samples"), synthetic=True)


def _is_known(domain: str, op_type: str, version: int) -> bool:
    return (domain, op_type) in registered_operators()

"""What is looked into: a model of which every node has a name, and samples that it runs on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import onnx_ir as ir

from graphopt import files
from graphopt.graph.edits import name_nodes
from graphopt.graph.signature import signature_of
from graphopt.runtime.session import SessionOptions
from graphopt.runtime.trial import runnable_samples
from graphopt.samples import Samples

Data = Samples | str | Path | Iterable[Mapping[str, Any]] | None
"""Samples, or where they are; None for synthetic ones."""


def open_model(file: Path) -> ir.Model:
    """Loads a model and names its nodes.

    Raises:
        ModelFileError: the file cannot be read.
    """
    model = files.load(file)
    name_nodes(model)
    return model


def open_samples(
    file: Path,
    model: ir.Model,
    data: Data,
    options: SessionOptions | None = None,
    *,
    count: int = 1,
    shapes: Mapping[str, int] | None = None,
) -> Samples:
    """Opens samples for a model, or makes some up.

    Args:
        file: that holds the model.
        model: see above.
        data: what the caller gave.
        options: how to run.
        count: how many are made up.
        shapes: lengths of open dimensions for those that are made up.

    Raises:
        SamplesError: the samples do not fit, or none can be made up.
        SessionError: the model does not load.
    """
    if data is None:
        return runnable_samples(model, shapes, options, count=count, path=file)
    return data if isinstance(data, Samples) else Samples.open(data, signature_of(model))

"""Histograms of what a layer holds and of what it is given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.files.weights import private_map
from graphopt.graph.layers import layers_of
from graphopt.runtime.session import Feed, SessionOptions
from graphopt.runtime.trace import trace_values

_BINS = 41
_MOST = 400


def histograms_of(model: ir.Model, feed: Feed, names: Sequence[str], options: SessionOptions | None) -> dict[str, Any]:
    """The distribution of the weight and of the input of layers, on one sample, by name; of the first 400 layers.

    Raises:
        SessionError: the model does not run with ``feed``.
    """
    wanted = set(names[:_MOST])
    layers = [layer for layer in layers_of(model) if layer.name in wanted and layer.graph is model.graph]
    inputs = list(dict.fromkeys(layer.input.name or "" for layer in layers))
    values = trace_values(model, feed, inputs, options) if inputs else {}
    found = {}
    for layer in layers:
        held = ir.convenience.get_const_tensor(layer.value)
        assert held is not None
        weight = private_map(held) if isinstance(held, ir.ExternalTensor) else held
        found[layer.name] = {"weight": _histogram(weight.numpy()), "input": _histogram(values[layer.input.name or ""])}
    return found


def _histogram(array: np.ndarray[Any, Any]) -> dict[str, Any] | None:
    flat = array.reshape(-1).astype(np.float64)
    flat = flat[np.isfinite(flat)]
    if not flat.size:
        return None
    counts, edges = np.histogram(flat, _BINS)
    return {"low": float(edges[0]), "high": float(edges[-1]), "counts": counts.tolist()}

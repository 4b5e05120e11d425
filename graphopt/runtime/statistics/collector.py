"""A collector: statistics on demand, taken anew only where the model has changed upstream."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from graphopt.errors import SamplesError
from graphopt.runtime.session import SessionOptions
from graphopt.runtime.statistics.collection import collect
from graphopt.runtime.statistics.layers import LayerStatistics
from graphopt.runtime.statistics.model import Statistics, states_of
from graphopt.runtime.statistics.request import Request
from graphopt.runtime.statistics.values import ValueStatistics
from graphopt.samples import Samples


class Collector:
    """Collects from one set of samples, and keeps what it collected for as long as the model computes it as it did.

    Args:
        samples: what to run; made-up ones are refused when something is asked for.
        options: how to run.
        memory: bytes; see :func:`collect`.
    """

    def __init__(self, samples: Samples, options: SessionOptions | None = None, memory: int | None = None) -> None:
        self._samples, self._options, self._memory = samples, options, memory
        self._known = Statistics(len(samples))

    def __call__(self, model: ir.Model, request: Request, original: ir.Model | None = None) -> Statistics:
        """The statistics that a request names, of a model as it is now.

        Args:
            model: stays as it is.
            request: what is wanted.
            original: a model that runs beside it; see :func:`collect`.

        Raises:
            SamplesError: the samples are made up.
            StatisticsError: a name is not in the main graph.
            SessionError: the model does not load or does not run.
        """
        if self._samples.is_synthetic:
            raise SamplesError("made-up samples tell nothing about real inputs: give --data")
        current = states_of(model, original)
        known = {key for key, state in self._known.states.items() if current.get(key) == state}
        missing = _missing(request, self._known, known)
        found = collect(model, self._samples, missing, self._options, self._memory, original)
        values = {name: value for name, value in self._known.values.items() if f"value:{name}" in known} | found.values
        # Gram matrices are large: those that were not asked for this time go.
        layers = {name: self._known.layers[name] for name in request.layers if f"layer:{name}" in known} | found.layers
        self._known = _statistics(len(self._samples), values, layers, current, found.skipped)
        wanted = {name: values[name] for name in request.all_values if name in values}
        return _statistics(len(self._samples), wanted, layers, current, found.skipped)


def _missing(request: Request, statistics: Statistics, known: set[str]) -> Request:
    """What is not known yet; a value of which anything is missing is taken again as a whole."""
    again = {name for name in request.all_values if f"value:{name}" not in known or not _suffices(statistics.values[name], name, request)}
    return Request(
        tuple(name for name in request.values if name in again),
        tuple(name for name in request.histograms if name in again),
        {name: axis for name, axis in request.channels.items() if name in again},
        tuple(name for name in request.layers if f"layer:{name}" not in known),
    )


def _suffices(value: ValueStatistics, name: str, request: Request) -> bool:
    if name in request.histograms and value.histogram is None:
        return False
    return name not in request.channels or (value.channels is not None and value.channels.axis == request.channels[name])


def _statistics(
    samples: int,
    values: dict[str, ValueStatistics],
    layers: dict[str, LayerStatistics],
    current: Mapping[str, str],
    skipped: dict[str, str],
) -> Statistics:
    keys = (*(f"value:{name}" for name in values), *(f"layer:{name}" for name in layers))
    return Statistics(samples, values, layers, {key: current[key] for key in keys}, skipped)

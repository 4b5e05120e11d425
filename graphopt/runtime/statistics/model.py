"""The statistics of a model: what samples told about its values and layers, and the state that it was in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import onnx_ir as ir

from graphopt.errors import StatisticsError
from graphopt.graph.layers import layers_of
from graphopt.runtime.statistics import store
from graphopt.runtime.statistics.layers import LayerStatistics
from graphopt.runtime.statistics.state import States
from graphopt.runtime.statistics.values import ValueStatistics


@dataclass
class Statistics:
    """What samples told about a model.

    Attributes:
        samples: how many there were.
        values: by name of the value.
        layers: by name of the node; layers that read the same input in the same way share one object.
        states: digests of how each value (``value:NAME``) and layer (``layer:NAME``) was computed; see :class:`States`.
        skipped: what was asked for and not taken, with the reason.
    """

    samples: int
    values: dict[str, ValueStatistics] = field(default_factory=dict)
    layers: dict[str, LayerStatistics] = field(default_factory=dict)
    states: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)

    def merge(self, other: Statistics) -> Statistics:
        """The statistics of the samples of both: counts, extremes and histograms exactly, sums to float64 rounding.

        Raises:
            StatisticsError: they are of other values, or of other states of the model.
        """
        if self.states != other.states:
            differing = sorted(key for key in self.states.keys() | other.states.keys() if self.states.get(key) != other.states.get(key))
            raise StatisticsError(f"statistics do not merge: {differing[0]} is of another state of the model, or in one of them only")
        shared: dict[int, LayerStatistics] = {}
        for name, layer in self.layers.items():
            if id(layer) not in shared:
                shared[id(layer)] = layer.merge(other.layers[name])
        return Statistics(
            self.samples + other.samples,
            {name: value.merge(other.values[name]) for name, value in self.values.items()},
            {name: shared[id(layer)] for name, layer in self.layers.items()},
            dict(self.states),
            self.skipped | other.skipped,
        )

    def stale(self, model: ir.Model, original: ir.Model | None = None) -> list[str]:
        """The keys of :attr:`states` that a model computes otherwise, or not at all."""
        current = states_of(model, original)
        return [key for key, state in self.states.items() if current.get(key) != state]

    def fresh(self, model: ir.Model, original: ir.Model | None = None) -> Statistics:
        """What still holds for a model."""
        stale = set(self.stale(model, original))
        return Statistics(
            self.samples,
            {name: value for name, value in self.values.items() if f"value:{name}" not in stale},
            {name: layer for name, layer in self.layers.items() if f"layer:{name}" not in stale},
            {key: state for key, state in self.states.items() if key not in stale},
            dict(self.skipped),
        )

    def save(self, path: str | Path) -> None:
        """Writes an npz file, whole or not at all.

        Raises:
            StatisticsError: the file cannot be written.
        """
        store.write(Path(path), self.samples, self.values, self.layers, {"states": self.states, "skipped": self.skipped})

    @classmethod
    def load(cls, path: str | Path) -> Statistics:
        """Reads what :meth:`save` wrote.

        Raises:
            StatisticsError: the file cannot be read, or is of another version.
        """
        samples, values, layers, notes = store.read(Path(path))
        return cls(samples, values, layers, notes["states"], notes["skipped"])


def states_of(model: ir.Model, original: ir.Model | None = None) -> Mapping[str, str]:
    """The state of every value (``value:NAME``) and every layer (``layer:NAME``) of the main graph.

    Args:
        model: its present state.
        original: what runs beside it, so that a layer's state is that of both.
    """
    states = States(model)
    before = {} if original is None else _layer_states(original)
    return {f"value:{name}": state for name, state in states.items()} | {
        key: f"{state}+{before[key]}" if key in before else state for key, state in _layer_states(model, states).items()
    }


def _layer_states(model: ir.Model, states: States | None = None) -> dict[str, str]:
    states = states or States(model)
    return {f"layer:{layer.name}": states.of_layer(layer) for layer in layers_of(model) if layer.graph is model.graph}

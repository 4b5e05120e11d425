"""Consumers: the layers that sum over a block's channels, as the surgeon sees them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from graphopt.graph.layers import Layer, layer_of
from graphopt.graph.units import Block, Site
from graphopt.solve.metric import Metric
from graphopt.solve.surgeon import Consumer
from graphopt.solve.thin import ThinMetric

Array = np.ndarray[Any, Any]

Importance = Literal["surgeon", "activation", "magnitude"]
"""By what components are chosen: the error of removing them with the others refitted, by their weights times their inputs, by their
weights alone."""

METRICS: Mapping[Importance, Callable[[Array], Array | None]] = {
    "surgeon": lambda gram: gram,
    "activation": lambda gram: gram * np.eye(gram.shape[-1], dtype=gram.dtype),
    "magnitude": lambda gram: None,
}
"""What of the Gram matrix ``[1, K, K]`` of its inputs a consumer is measured in: with the last two no channel makes up for another."""


@dataclass(frozen=True, eq=False)
class Use:
    """A layer that uses a block.

    Attributes:
        layer: the layer.
        columns: ``[components, width]``, the columns of ``W [groups, out, in]`` that each component takes; the same in each group.
    """

    layer: Layer
    columns: Array

    def consumers(self, known: Mapping[str, Array | ThinMetric], importance: Importance) -> Iterator[Consumer]:
        """One consumer a group, in the metric of the samples where it is known: as a Gram matrix, or ready for the only group."""
        weight, found = self.layer.weight(), known.get(self.layer.name)
        if isinstance(found, ThinMetric):
            yield Consumer(weight[0], found, self.columns)
            return
        for group in range(len(weight)):
            gram = None if found is None else METRICS[importance](found[group : group + 1])
            yield Consumer(weight[group], Metric(gram), self.columns)


def uses_of(block: Block) -> list[Use]:
    """The layers that sum over the channels of a block."""
    pairs = zip(block.sites, block.places, strict=True)
    found = ((layer_of(site.node), site, places) for site, places in pairs if site.role == "uses")
    return [Use(layer, _columns(layer, site, places)) for layer, site, places in found if layer is not None]


def _columns(layer: Layer, site: Site, places: Array) -> Array:
    """Where indices of an axis of the stored weight stand among the columns of the matrix."""
    shape = layer.stored_shape
    along = np.arange(shape[site.axis]).reshape([-1 if axis == site.axis else 1 for axis in range(len(shape))])
    index = layer.as_matrix(np.broadcast_to(along, shape))[0, 0]
    owners = np.full(shape[site.axis], len(places))
    owners[places] = np.arange(len(places))[:, None]
    found = owners[index]
    return np.argsort(found, kind="stable")[: np.count_nonzero(found < len(places))].reshape(len(places), -1)


def consumers_of(uses: Sequence[Use], known: Mapping[str, Array | ThinMetric], importance: Importance) -> list[Consumer]:
    """All groups of all layers that use a block."""
    return [consumer for use in uses for consumer in use.consumers(known, importance)]


def put_back(uses: Sequence[Use], weights: Sequence[Array]) -> list[tuple[Layer, Array]]:
    """The weights of consumers, group by group, as the layers' ``W [groups, out, in]``."""
    rest = iter(weights)
    return [(use.layer, np.stack([next(rest) for _ in range(use.layer.groups)])) for use in uses]

"""Workload: what the layers of a model cost once blocks are narrower."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from graphopt.graph.layers import layers_of
from graphopt.graph.macs import macs_of
from graphopt.graph.units import Block


@dataclass(frozen=True)
class Share:
    """One layer's cost, and what of it goes with each component of a block.

    Attributes:
        macs: multiply-accumulates of one inference.
        parameters: weights.
        axes: for each axis of the weight that blocks stand on: block and share of the axis that one of its components takes.
    """

    macs: int
    parameters: int
    axes: tuple[tuple[tuple[int, float], ...], ...]

    def kept(self, gone: Sequence[int]) -> float:
        """What is left once so many components of each block have gone."""
        left = 1.0
        for axis in self.axes:
            left *= 1.0 - sum(gone[block] * share for block, share in axis)
        return left


class Workload:
    """All layers of a model.

    Args:
        model: with the blocks.
        blocks: that may become narrower.
        shapes: of values, by name, on one sample.
    """

    def __init__(self, model: ir.Model, blocks: Sequence[Block], shapes: Mapping[str, tuple[int, ...]]) -> None:
        self._counts = [block.count for block in blocks]
        on: dict[tuple[ir.Node, int], dict[int, list[tuple[int, float]]]] = defaultdict(lambda: defaultdict(list))
        for number, block in enumerate(blocks):
            for site, places in zip(block.sites, block.places, strict=True):
                value = site.node.inputs[site.index]
                length = value.shape[site.axis] if value is not None and value.shape is not None else 0
                if isinstance(length, int) and length:
                    on[site.node, site.index][site.axis].append((number, places.shape[1] / length))
        self._shares = []
        for layer in layers_of(model):
            found = on.get((layer.node, layer.index), {})
            macs = macs_of(layer.node, lambda value: shapes.get(value.name or "")) or 0
            self._shares.append(Share(macs, layer.size, tuple(tuple(axis) for axis in found.values())))

    def macs(self, widths: Sequence[int]) -> float:
        """Multiply-accumulates of all layers, at these numbers of components."""
        gone = [count - width for count, width in zip(self._counts, widths, strict=True)]
        return sum(share.macs * share.kept(gone) for share in self._shares)

    def parameters(self, widths: Sequence[int]) -> float:
        """Weights of all layers."""
        gone = [count - width for count, width in zip(self._counts, widths, strict=True)]
        return sum(share.parameters * share.kept(gone) for share in self._shares)

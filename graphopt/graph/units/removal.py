"""Removal: components taken out of every constant that stores them, and every length that follows written anew."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import onnx_ir as ir

from graphopt.graph.units.blocks import Block, Couplings
from graphopt.graph.units.cut import Cut
from graphopt.graph.units.followers import FOLLOWERS
from graphopt.graph.units.ties import Array
from graphopt.graph.view import operator_of

Parts = Mapping[tuple[str, int], tuple[Array | None, ...]]
"""What stays of constants, by node and index of the input: the indices along each axis, None for all."""


def remove(model: ir.Model, couplings: Couplings, gone: Mapping[str, Iterable[int]]) -> Parts:
    """Removes components of blocks from the model that the couplings were found on.

    Constants that others share are copied for the nodes that need fewer of them. Shapes of values that get shorter are forgotten.

    Args:
        model: rewritten in place.
        couplings: of this model as it is; stale afterwards.
        gone: for each block by name, the components (numbers below ``block.count``) that go.

    Returns:
        What stays of the constants that lost something.

    Raises:
        PassError: a constant would be left without any channel; the model is then half cut.
    """
    blocks = {block.name: block for block in couplings.blocks}
    labels = [_labels(couplings, blocks[name], np.array(sorted(which), np.int64)) for name, which in gone.items()]
    cut = Cut(model, couplings, np.concatenate([*labels, np.zeros(0, np.int64)]))
    for node in list(model.graph):
        follow = FOLLOWERS.get(operator_of(node))
        if follow is not None:
            follow(cut, node)
        for index in range(len(node.inputs)):
            cut.shorten(node, index)
    cut.finish()
    return cut.parts


def _labels(couplings: Couplings, block: Block, which: Array) -> Array:
    site = block.sites[0]
    units = couplings.analysis.uses[site.node, site.index][site.axis]
    assert units is not None, "a block's sites have units"
    found: Array = couplings.components.labels[units[block.places[0][which, 0]]]
    return found

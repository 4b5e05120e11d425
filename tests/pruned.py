"""The identity that holds for every removal: the pruned model is the original with the consumers' weights for it set to zero."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.graph.edits import Names
from graphopt.graph.units import Couplings

Array = np.ndarray[Any, Any]
Gone = Mapping[str, Array]


def chosen(couplings: Couplings, generator: np.random.Generator, share: float = 0.25) -> dict[str, Array]:
    """Some components of every block that has more than one."""
    counts = {block.name: block.count for block in couplings.blocks if block.count > 1}
    return {name: generator.choice(count, max(1, int(count * share)), replace=False) for name, count in counts.items()}


def zeroed(model: ir.Model, couplings: Couplings, gone: Gone) -> ir.Model:
    """A clone of the model in which the weights that use the components are zero."""
    clone = model.clone()
    nodes = {node.name: node for node in clone.graph}
    names = Names(clone)
    for block in couplings.blocks:
        for site, places in zip(block.sites, block.places, strict=True):
            if site.role == "uses" and block.name in gone:
                node = nodes[site.node.name]
                value = node.inputs[site.index]
                tensor = None if value is None else ir.convenience.get_const_tensor(value)
                assert tensor is not None
                array = np.array(tensor.numpy())
                np.moveaxis(array, site.axis, 0)[places[gone[block.name]].reshape(-1)] = 0
                name = names.fresh("zeroed")
                new = ir.val(name, const_value=ir.tensor(array, name=name))
                clone.graph.register_initializer(new)
                node.replace_input_with(site.index, new)
    return clone


def furthest(expected: Mapping[str, Array], found: Mapping[str, Array]) -> float:
    """The largest difference of any output, relative to its largest magnitude."""
    worst = 0.0
    for name, reference in expected.items():
        scale = max(float(np.abs(reference.astype(np.float64)).max(initial=0.0)), 1e-9)
        change = np.abs(reference.astype(np.float64) - found[name].astype(np.float64)).max(initial=0.0)
        worst = max(worst, float(change) / scale)
    return worst

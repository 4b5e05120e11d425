"""What could be pruned from a model: blocks of coupled channels, and what must stay and why."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Group
from rich.table import Table
from rich.text import Text

from graphopt import files
from graphopt.graph.layers import Layer, layers_of
from graphopt.graph.units import Block, Couplings, couplings_of
from graphopt.presets import preset
from graphopt.report.opening import open_model
from graphopt.stage import Stage

_MOST_REASONS = 12


@dataclass(frozen=True)
class CouplingReport:
    """The blocks of a model after the exact passes.

    Attributes:
        name: the file's name.
        blocks: in order of execution.
        staying: channels of layers that must stay, by reason, most first.
        weights: parameters of all layers.
        prunable: how many of them lie in a row or column of some block.
    """

    name: str
    blocks: tuple[Block, ...]
    staying: dict[str, int]
    weights: int
    prunable: int

    def to_json(self) -> dict[str, Any]:
        """Plain data; ``version`` counts changes of this form."""
        return {
            "version": 1,
            "name": self.name,
            "weights": self.weights,
            "prunable": self.prunable,
            "blocks": [_plain(block) for block in self.blocks],
            "staying": self.staying,
        }

    def __rich__(self) -> Group:
        table = Table("block", "made by", "used by", box=None, header_style="bold", pad_edge=False)
        for block in self.blocks:
            table.add_row(Text(str(block)), *(Text(_names(block, role)) for role in ("makes", "uses")))
        share = f"{self.prunable / self.weights:.1%}" if self.weights else "none"
        total = Text(f"{share} of {self.weights:,} weights of layers lie in prunable blocks (after the exact passes)")
        shown = list(self.staying.items())[:_MOST_REASONS]
        rest = [Text(f"{len(self.staying) - len(shown)} more reasons: see --json")] if len(self.staying) > len(shown) else []
        stays = [Text(f"{count:,} channels stay because of {reason}", style="dim") for reason, count in shown]
        return Group(table, total, *stays, *rest)


def coupling_report(model: Path) -> CouplingReport:
    """Finds what could be pruned.

    Args:
        model: a file, or a folder that holds one.

    Raises:
        ModelFileError: the model cannot be read.
    """
    path = files.model_file(model)
    simplified = Stage(tuple(preset("exact").build())).attempt(open_model(path), frozenset()).model
    couplings = couplings_of(simplified)
    layers = [(layer, _free(layer, couplings)) for layer in layers_of(simplified)]
    staying = Counter[str]()
    for pin in couplings.pins:
        staying[pin.reason] += pin.count
    weights, prunable = sum(layer.size for layer, _ in layers), sum(free for _, free in layers)
    return CouplingReport(path.name, couplings.blocks, dict(staying.most_common()), weights, prunable)


def _free(layer: Layer, couplings: Couplings) -> int:
    """The weights of a layer in a row or column that may go."""
    axes = couplings.analysis.uses.get((layer.node, layer.index))
    if axes is None:
        return 0
    components = couplings.components
    staying = [1.0 if units is None else float(np.mean(components.stays[components.labels[units]])) for units in axes]
    return round(layer.size * (1 - np.prod(staying)))


def _names(block: Block, role: str) -> str:
    return ", ".join(dict.fromkeys(site.node.name or "" for site in block.sites if site.role == role))


def _plain(block: Block) -> dict[str, Any]:
    sites = [{"node": site.node.name, "input": site.index, "axis": site.axis, "role": site.role} for site in block.sites]
    return {"name": block.name, "kind": block.kind, "count": block.count, "width": block.width, "sites": sites}

"""The table of what approximating each layer costs."""

from __future__ import annotations

from rich.console import Group
from rich.table import Table
from rich.text import Text

from graphopt.choosing.causes import dominant
from graphopt.choosing.diagnosis import Diagnosis

_LOUD = 3
"""So many layers, those that cost the most by themselves, are set off."""


def table_of(diagnosis: Diagnosis) -> Group:
    """Layers in the order in which they run, with what each costs alone and with all before it, and what stands out, as rich draws it."""
    table = Table("layer", "type", "pass", "alone", "accumulated", "what stands out", box=None, header_style="bold", pad_edge=False)
    for column in table.columns[3:5]:
        column.justify = "right"
    loud = set(sorted(layer.alone_db for layer in diagnosis.layers)[:_LOUD])
    for layer in diagnosis.layers:
        alone = f"{'~' if layer.source != 'alone' else ''}{layer.alone_db:.1f} dB"
        style = "yellow" if layer.alone_db in loud else ""
        cells = (layer.name, layer.operator, layer.pass_name, alone, f"{layer.accumulated_db:.1f} dB", dominant(layer.causes))
        table.add_row(*(Text(cell, style=style) for cell in cells))
    note = Text(f"signal to noise of the worst output on {'made-up samples' if diagnosis.synthetic else diagnosis.samples}", style="dim")
    return Group(table, note)

"""What became of a model's bytes in a container, as a table."""

from __future__ import annotations

from rich.console import Group
from rich.table import Table
from rich.text import Text

from graphopt.container import Packed, Tally

_TELLING = 4096
"""Bytes below which a few of a table's own say nothing about the coder."""


def table_of(packed: Packed) -> Group:
    """Sizes by the type of tensors' elements, beside the entropy of their symbols, and the whole."""
    table = Table("bytes of", "before", "after", "ratio", "ideal", "above ideal", box=None, header_style="bold", pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    rows = dict(packed.kinds)
    if len(rows) > 1:
        rows["all tensors"] = packed.tensors
    for name, tally in rows.items():
        table.add_row(
            name,
            *_sizes(tally.original, tally.packed),
            f"{tally.ideal:,.0f}",
            f"{tally.above_ideal:+.1%}" if tally.ideal >= _TELLING else "",
        )
    rest = Tally(packed.rest.original, packed.packed_bytes - packed.tensors.packed)
    table.add_row("everything else", *_sizes(rest.original, rest.packed), "", "")
    table.add_row("files", *_sizes(packed.original_bytes, packed.packed_bytes), "", "")
    note = "ideal: the order-0 entropy of the tensors' symbols; below it where symbols depend on one another"
    return Group(table, Text(note, style="dim"), Text(f"wrote {packed.path}"))


def _sizes(before: int, after: int) -> tuple[str, str, str]:
    return f"{before:,}", f"{after:,}", f"{before / after:.2f}" if after else ""

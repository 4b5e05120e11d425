"""The table that ends a run."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group
from rich.table import Table
from rich.text import Text

from graphopt.ledger import Drop
from graphopt.result import Figures, Result

_MOST_RULES = 12
_MOST_DROPS = 12


def table_of(result: Result) -> Group:
    """What changed, what it took, what was dropped and why, as rich draws it."""
    notes = [Text(f"note: {note}", style="dim") for note in result.ledger.notes]
    drops = _drops("dropped", result.ledger.drops) + _drops("declined", result.ledger.declined)
    written = [Text(f"wrote {result.path}")] if result.path else []
    return Group(_figures(result.figures), *([_rules(result)] if result.changed else []), *drops, *notes, _effort(result.figures), *written)


def _figures(figures: Figures) -> Table:
    table = Table("", "before", "after", "", box=None, header_style="bold", pad_edge=False)
    for column in table.columns[1:3]:
        column.justify = "right"
    table.add_row("bytes", f"{figures.bytes_before:,}", f"{figures.bytes_after:,}", _change(figures.bytes_before, figures.bytes_after))
    table.add_row("nodes", str(figures.nodes_before), str(figures.nodes_after), _change(figures.nodes_before, figures.nodes_after))
    if figures.kernels_before is not None and figures.kernels_after is not None:
        change = _change(figures.kernels_before, figures.kernels_after)
        table.add_row("kernels executed", str(figures.kernels_before), str(figures.kernels_after), change)
    if figures.speed is not None:
        speed, made_up = figures.speed, ", synthetic inputs" if figures.synthetic else ""
        before, after = (f"{seconds * 1e3:.3g}" for seconds in (speed.original_seconds, speed.result_seconds))
        table.add_row("milliseconds", before, after, f"{speed.speedup} times as fast (A/A {speed.same}{made_up})")
    if figures.relative_error is not None:
        table.add_row("relative error", "", f"{figures.relative_error:.1e}", "synthetic inputs" if figures.synthetic else "")
    if figures.sqnr_db is not None:
        table.add_row("signal to noise", "", f"{figures.sqnr_db:.1f} dB", "synthetic inputs" if figures.synthetic else "")
    if figures.metric is not None:
        name, original, found = figures.metric
        table.add_row(name, f"{original:.6g}", f"{found:.6g}", f"{found - original:+.3g}")
    return table


def _rules(result: Result) -> Text:
    counts = result.ledger.counts()
    shown = [f"{name} x{count}" if count > 1 else name for name, count in list(counts.items())[:_MOST_RULES]]
    rest = [f"{len(counts) - _MOST_RULES} more"] if len(counts) > _MOST_RULES else []
    return Text(f"{len(result.ledger.rewrites)} rewrites: {', '.join(shown + rest)}")


def _effort(figures: Figures) -> Text:
    spent = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in figures.seconds.items() if seconds >= 0.05)
    checks = f"; verification took {figures.sessions} session loads and {figures.inferences} inferences" if figures.sessions else ""
    return Text(f"time: {spent or 'under 0.1 s'}{checks}", style="dim")


def _drops(what: str, drops: Sequence[Drop]) -> list[Text]:
    shown = [Text(f"{what} {drop.key}: {drop.reason}", style="yellow") for drop in drops[:_MOST_DROPS]]
    rest = [Text(f"{what} {len(drops) - _MOST_DROPS} more; the ledger has them", style="yellow")] if len(drops) > _MOST_DROPS else []
    return shown + rest


def _change(before: int, after: int) -> str:
    return f"{after / before - 1:+.1%}" if before and after != before else ""

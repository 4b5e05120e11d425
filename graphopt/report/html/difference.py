"""The content of a page that shows two models side by side, as plain data."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from graphopt import __version__
from graphopt.graph.difference import Change
from graphopt.report.diff import Difference, Parting

_OF_NODES = frozenset({"removed", "added", "replaced"})


def difference_content(difference: Difference) -> dict[str, Any]:
    """What the page shows: a row for each pair of nodes, and for what came, went or was replaced, along the first model's data flow."""
    values = difference.values or ()
    made: dict[tuple[str, str], list[Parting]] = defaultdict(list)
    for value in values:
        made[value.maker].append(value)
    rows = _rows(difference)
    for row in rows:
        row["value"] = _worst(value for maker in row["a"] for value in made.get(tuple(maker), ()))
    return {
        "version": 1,
        "made_by": f"graphopt {__version__}",
        "a": {"name": difference.a.name, "nodes": difference.nodes[0]},
        "b": {"name": difference.b.name, "nodes": difference.nodes[1]},
        "aligned": difference.aligned,
        "counts": Counter(change.kind for change in difference.changes),
        "signature": [_told(change) for change in difference.changes if change.kind == "signature"],
        "compared": None if difference.values is None else len(values),
        "parting": sum(value.parts for value in values),
        "first": next((number for number, row in enumerate(rows) if row["value"] and row["value"]["parts"]), None),
        "rows": rows,
    }


def _rows(difference: Difference) -> list[dict[str, Any]]:
    of_pairs: dict[float, list[Change]] = defaultdict(list)
    rows: list[tuple[float, dict[str, Any]]] = []
    for change in difference.changes:
        if change.kind in _OF_NODES:
            sides = (list(zip(*side, strict=True)) for side in zip(change.operators, (change.a, change.b), strict=True))
            rows.append((change.place, dict(zip("ab", sides, strict=True)) | {"kind": change.kind, "changes": [_told(change)]}))
        else:
            of_pairs[change.place].append(change)
    for place, pair in difference.pairs.items():
        changes = of_pairs.get(float(place), [])
        rows.append((place, {"a": [pair.a], "b": [pair.b], "kind": "changed" if changes else "same", "changes": [*map(_told, changes)]}))
    return [row for _, row in sorted(rows, key=lambda item: item[0])]


def _told(change: Change) -> dict[str, Any]:
    return {"kind": change.kind, "what": change.what, "detail": change.detail, "relative": change.relative}


def _worst(values: Iterable[Parting]) -> Mapping[str, Any] | None:
    """The value that is furthest from its counterpart, in figures; None where there is none."""
    chosen = max(values, key=lambda value: (value.parts, -value.decibels), default=None)
    if chosen is None:
        return None
    decibels = chosen.decibels if math.isfinite(chosen.decibels) else None
    scales = {"factor": chosen.factor if chosen.is_scaled else None, "by_channel": chosen.channels_db is not None}
    return {"a": chosen.a, "b": chosen.b, "parts": chosen.parts, "decibels": decibels, "problem": chosen.fidelity.problem} | scales

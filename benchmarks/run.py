"""Optimizes real models and prints what came of each: nodes, kernels, bytes, speed, error.

The example models are always measured, and so are all ``model*.onnx`` below the folders that the variables
``GRAPHOPT_ZOO`` and ``GRAPHOPT_ARCH`` name. Results are written into a temporary folder and thrown away.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.table import Column, Table

import graphopt
from graphopt.result import Figures

ROOT = Path(__file__).resolve().parent.parent
WIDTH = 180
"""Columns that the whole table needs: in a pipe, rich would cut it to 80."""
COLUMNS = ("model", "nodes", "kernels", "MB", "speed", "noise", "error", "dropped", "seconds")


def models() -> Iterator[Path]:
    """The models that this machine has."""
    folders = (str(ROOT / "examples"), os.environ.get("GRAPHOPT_ZOO"), os.environ.get("GRAPHOPT_ARCH"))
    for folder in filter(None, folders):
        yield from sorted(Path(folder).glob("*/*.onnx"))


def measure(path: Path, recipe: str) -> dict[str, object]:
    """Optimizes one model; an error is a result too."""
    start = time.perf_counter()
    row: dict[str, object] = {"model": f"{path.parent.name}/{path.stem}"}
    with tempfile.TemporaryDirectory() as folder:
        try:
            result = graphopt.optimize(path, Path(folder) / "out.onnx", recipe=recipe)
        except graphopt.GraphoptError as error:
            return row | {"error": str(error)}
    return row | _shown(result.figures) | {"dropped": len(result.ledger.drops), "seconds": f"{time.perf_counter() - start:.0f}"}


def _shown(figures: Figures) -> dict[str, object]:
    row: dict[str, object] = {
        "nodes": f"{figures.nodes_before} → {figures.nodes_after}",
        "kernels": f"{figures.kernels_before} → {figures.kernels_after}",
        "MB": f"{figures.bytes_before / 1e6:.2f} → {figures.bytes_after / 1e6:.2f}",
        "error": "" if figures.relative_error is None else f"{figures.relative_error:.1e}",
    }
    if figures.speed is not None:
        row["speed"] = str(figures.speed.speedup)
        row["noise"] = str(figures.speed.same)
    return row


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", type=Path, help="models to measure (default: all that this machine has)")
    parser.add_argument("--recipe", default="exact", help="name of a preset (default: exact)")
    parser.add_argument("--json", type=Path, help="file to write the rows to")
    arguments = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    table = Table(*(Column(name, no_wrap=True) for name in COLUMNS))
    rows: list[dict[str, object]] = []
    for path in arguments.models or models():
        with console.status(str(path)):
            rows.append(measure(path, arguments.recipe))
        table.add_row(*(str(rows[-1].get(column, "")) for column in COLUMNS))
    console.print(table)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

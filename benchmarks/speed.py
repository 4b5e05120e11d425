"""The whole proof on every model: kernels, speed with its interval beside an A/A pair, bytes. No model may be slower or larger."""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import results
from models import Model, all_models
from processes import GRAPHOPT, run
from rich.console import Console

_TIME_LIMIT_S = 8
_NOT_SLOWER = 0.97


def measure(model: Model) -> dict[str, Any]:
    """Optimizes one model with all checks; the figures are those that the command itself reports."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "result.onnx"
        done = run([*GRAPHOPT, model.path, "-o", target, "--json", f"--time-limit={_TIME_LIMIT_S}"])
    row: dict[str, Any] = {"model": model.name, "seconds": round(done.seconds, 1), "peak_mb": round(done.peak_mb)}
    if done.status:
        return row | {"failure": done.reason.replace(str(model.path), model.name)}
    report = json.loads(done.output)
    return row | {key: report[key] for key in ("figures", "dropped", "notes")}


def is_slower(row: dict[str, Any]) -> bool:
    """Whether even the upper bound says that the result takes longer."""
    speed = row.get("figures", {}).get("speed")
    return speed is not None and speed["speedup"]["high"] < _NOT_SLOWER


def is_undecided(row: dict[str, Any]) -> bool:
    """Whether the interval is too wide to say that the result is not slower."""
    speed = row.get("figures", {}).get("speed")
    return speed is not None and speed["speedup"]["low"] < _NOT_SLOWER <= speed["speedup"]["high"]


def is_larger(row: dict[str, Any]) -> bool:
    """Whether the result takes more bytes."""
    return "figures" in row and row["figures"]["bytes_after"] > row["figures"]["bytes_before"]


def page(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The page of results."""
    head = ["model", "nodes", "kernels", "times as fast", "the original beside itself", "pairs", "MB", "error", "dropped", "seconds"]
    return [
        "# Speed and size of the optimized models",
        "",
        "Written by `benchmarks/speed.py`: `graphopt optimize` with all its checks. Speed is the original's time / the result's time, with",
        "its 95 % interval; beside it the original against itself shows what noise alone does. Inputs are made up by graphopt.",
        f"The figures are the command's own, with at most {_TIME_LIMIT_S} s of timing: it takes back what it finds slower, so",
        "that they are no second opinion.",
        "",
        f"Machine: {results.machine()}",
        "",
        f"- slower: {_names(row for row in rows if is_slower(row))}",
        f"- too noisy to exclude that it is slower: {_names(row for row in rows if is_undecided(row))}",
        f"- larger: {_names(row for row in rows if is_larger(row))}",
        f"- failed: {_names(row for row in rows if 'failure' in row)}",
        "",
        *results.table(head, (_cells(row) for row in rows)),
    ]


def _names(rows: Any) -> str:
    return ", ".join(row["model"] for row in rows) or "none"


def _cells(row: dict[str, Any]) -> list[object]:
    if "failure" in row:
        return [row["model"], row["failure"], *[""] * 7, row["seconds"]]
    figures = row["figures"]
    speed, error = figures["speed"], figures["relative_error"]
    return [
        row["model"],
        f"{figures['nodes_before']} → {figures['nodes_after']}",
        "-" if figures["kernels_after"] is None else f"{figures['kernels_before']} → {figures['kernels_after']}",
        _interval(speed["speedup"]) if speed else "-",
        _interval(speed["same"]) if speed else "-",
        speed["runs"] if speed else "-",
        f"{figures['bytes_before'] / 1e6:.2f} → {figures['bytes_after'] / 1e6:.2f}",
        "-" if error is None else f"{error:.0e}",
        len(row["dropped"]),
        row["seconds"],
    ]


def _interval(found: dict[str, float]) -> str:
    return f"{found['ratio']:.3f} [{found['low']:.3f}, {found['high']:.3f}]"


def main() -> None:
    """Measures all models and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", help="files, or parts of names (default: all models; only then are results written)")
    wanted = parser.parse_args().models
    console = Console(width=180)
    rows = []
    for model in all_models(wanted):
        rows.append(measure(model))
        console.print(*_cells(rows[-1]), *(str(drop) for drop in rows[-1].get("dropped", ())), sep="  ")
    if not wanted:
        results.write("speed", page(rows), {"version": 1, "machine": results.machine(), "models": rows})
    if any(is_slower(row) or is_larger(row) for row in rows):
        raise SystemExit("a result is slower or larger than its original")


if __name__ == "__main__":
    main()

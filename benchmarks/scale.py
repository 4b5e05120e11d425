"""Memory and seconds on large models: 3 GB of weights, 10,000 nodes, a quarter of a billion weights that are pruned."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import results
from models import count_nodes
from processes import GRAPHOPT, run
from rich.console import Console
from synthetic_encoder import write_encoder, write_samples
from synthetic_models import write_heavy, write_long

_LAYERS = 48
_LENGTH = 10_000
_ENCODER_LAYERS = 20
_PRUNE = ("--preset=prune", "--macs=0.7", "--data=samples")


@dataclass(frozen=True)
class Case:
    """A model and what is asked of it.

    Attributes:
        name: what results call it.
        make: writes the model.
        verify: level of verification.
        options: further ones of `graphopt optimize`.
        most_seconds: goal; None for none.
        most_mb: goal for the largest resident set in 10^6 bytes; None for none.
    """

    name: str
    make: Callable[[Path], None]
    verify: str
    options: Sequence[str] = ()
    most_seconds: float | None = None
    most_mb: float | None = None


def _write_pruned(path: Path) -> None:
    write_encoder(path, _ENCODER_LAYERS)
    write_samples(path.parent / "samples", count=8, positions=128)


_CASES = (
    Case("3.2 GB of weights", partial(write_heavy, layers=_LAYERS), "structure", most_mb=400),
    Case("3.2 GB of weights, 6 of 48 changed", partial(write_heavy, layers=_LAYERS, scaled_every=8), "structure", most_mb=400),
    Case("3.2 GB of weights, all changed", partial(write_heavy, layers=_LAYERS, scaled_every=1), "structure", most_mb=400),
    Case("10,000 nodes", partial(write_long, length=_LENGTH), "structure", most_seconds=10),
    Case("10,000 nodes, outputs too", partial(write_long, length=_LENGTH), "outputs"),
    Case("1.0 GB of weights, pruned to 0.7 of the work", _write_pruned, "outputs", _PRUNE, 120, 2 * 1007),
)


@dataclass(frozen=True)
class Row:
    """What came of a case."""

    name: str
    nodes_before: int
    nodes_after: int | None
    seconds: float
    cpu_seconds: float
    peak_mb: float
    met: bool | None
    failure: str = ""


def measure(case: Case) -> Row:
    """Makes the model in a temporary folder and optimizes it in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "model.onnx", Path(folder) / "result.onnx"
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:  # a child's peak counts what its parent once held
            pool.submit(case.make, source).result()
        nodes = count_nodes(source)
        options = [option.replace("=samples", f"={folder}/samples") for option in case.options]
        done = run([*GRAPHOPT, source, "-o", target, f"--verify={case.verify}", "--quiet", *options])
        if done.status:
            return Row(case.name, nodes, None, done.seconds, done.cpu_seconds, done.peak_mb, met=False, failure=done.reason)
        goals = [found <= most for found, most in ((done.seconds, case.most_seconds), (done.peak_mb, case.most_mb)) if most is not None]
        return Row(case.name, nodes, count_nodes(target), done.seconds, done.cpu_seconds, done.peak_mb, all(goals) if goals else None)


def page(rows: Sequence[Row]) -> list[str]:
    """The page of results."""
    goals = {case.name: _goal(case) for case in _CASES}
    head = ["model", "nodes before", "nodes after", "seconds", "CPU seconds", "peak MB", "goal", "met"]
    lines = (
        [
            row.name,
            row.nodes_before,
            row.nodes_after or row.failure,
            f"{row.seconds:.1f}",
            f"{row.cpu_seconds:.1f}",
            f"{row.peak_mb:.0f}",
            goals[row.name],
            {True: "yes", False: "**no**", None: "-"}[row.met],
        ]
        for row in rows
    )
    return [
        "# Large models",
        "",
        "Written by `benchmarks/scale.py`: whole processes of `graphopt optimize`; the peak is the largest resident set in 10^6 bytes,",
        "pages of mapped files included.",
        "",
        f"Machine: {results.machine()}",
        "",
        *results.table(head, lines),
    ]


def _goal(case: Case) -> str:
    parts = [f"{most:g} {unit}" for most, unit in ((case.most_seconds, "s"), (case.most_mb, "MB")) if most is not None]
    return ", ".join(parts) or "-"


def main() -> None:
    """Measures all cases and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="*", help="parts of names (default: all cases; only then are results written)")
    wanted = parser.parse_args().cases
    console = Console(width=160)
    rows = []
    for case in _CASES:
        if not wanted or any(word in case.name for word in wanted):
            rows.append(measure(case))
            console.print(rows[-1])
    if not wanted:
        results.write("scale", page(rows), {"version": 1, "machine": results.machine(), "cases": [asdict(row) for row in rows]})


if __name__ == "__main__":
    main()

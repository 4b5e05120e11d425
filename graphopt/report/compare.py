"""Two models side by side: outputs, size, nodes, kernels, loading, memory and speed."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir
from rich.console import Group
from rich.table import Table
from rich.text import Text

from graphopt import files
from graphopt.errors import VerificationError
from graphopt.graph.signature import Signature, signature_of
from graphopt.result import count_nodes
from graphopt.runtime.fidelity import Fidelity, measure, merge
from graphopt.runtime.kernels import executed_kernels
from graphopt.runtime.session import SessionOptions, open_session
from graphopt.runtime.timing import Speed, compare_speed
from graphopt.runtime.trial import runnable_samples
from graphopt.samples import Samples


@dataclass(frozen=True)
class Figures:
    """What one of the two models is.

    Attributes:
        path: the file.
        bytes: on the disk, data files included.
        nodes: in the graph, subgraphs and functions included.
        kernels: that the runtime executes after its own optimizations.
    """

    path: Path
    bytes: int
    nodes: int
    kernels: int


@dataclass(frozen=True)
class Comparison:
    """Two models side by side.

    Attributes:
        a: the original.
        b: the model that is compared with it.
        outputs: how close the outputs of b are to those of a, by name, over all samples.
        speed: speed of b beside a, and what loading takes.
        samples: how many were run.
        source: where they come from, in words.
        synthetic: they are made up: closeness and speed on real inputs may differ.
    """

    a: Figures
    b: Figures
    outputs: Mapping[str, Fidelity]
    speed: Speed
    samples: int
    source: str
    synthetic: bool

    def agrees(self, tolerance: float) -> bool:
        """Whether integer and boolean outputs are equal, and others differ by at most ``tolerance`` of their largest magnitude."""
        return all(fidelity.within(tolerance) for fidelity in self.outputs.values())

    def to_json(self) -> dict[str, Any]:
        """Plain data; ``version`` counts changes of this form. A figure that is not finite is None."""
        sides = {key: vars(side) | {"path": str(side.path)} for key, side in (("a", self.a), ("b", self.b))}
        samples = {"count": self.samples, "source": self.source, "synthetic": self.synthetic}
        outputs = [_fidelity_json(fidelity) for fidelity in self.outputs.values()]
        return {"version": 1, **sides, "samples": samples, "outputs": outputs, "speed": dataclasses.asdict(self.speed)}

    def __rich__(self) -> Group:
        marked = " (made up: real inputs may give other figures)" if self.synthetic else ""
        return Group(self._figures(), Text(), self._outputs(), Text(f"measured on {self.source}{marked}", style="dim"))

    def _figures(self) -> Table:
        table = Table("", self.a.path.name, self.b.path.name, "", box=None, header_style="bold", pad_edge=False)
        for column in table.columns[1:3]:
            column.justify = "right"
        for label, before, after in (
            ("bytes", self.a.bytes, self.b.bytes),
            ("nodes", self.a.nodes, self.b.nodes),
            ("kernels executed", self.a.kernels, self.b.kernels),
        ):
            table.add_row(label, f"{before:,}", f"{after:,}", f"{after / before - 1:+.1%}" if before and after != before else "")
        speed, loads = self.speed, (self.speed.original_load, self.speed.result_load)
        table.add_row("load, milliseconds", *(f"{load.seconds * 1e3:.3g}" for load in loads), "")
        table.add_row("peak memory, MB", *("?" if load.peak_mb is None else f"{load.peak_mb:.0f}" for load in loads), "")
        table.add_row(
            "run, milliseconds",
            *(f"{seconds * 1e3:.3g}" for seconds in (speed.original_seconds, speed.result_seconds)),
            f"{speed.speedup} times as fast (A/A {speed.same}{', synthetic inputs' if self.synthetic else ''})",
        )
        return table

    def _outputs(self) -> Table:
        table = Table("output", "relative error", "largest error", "SQNR, dB", "top-1", box=None, header_style="bold", pad_edge=False)
        for column in table.columns[1:]:
            column.justify = "right"
        for fidelity in self.outputs.values():
            table.add_row(Text(fidelity.name), *_cells(fidelity))
        return table


def compare(
    a: str | Path,
    b: str | Path,
    data: Samples | str | Path | Iterable[Mapping[str, Any]] | None = None,
    *,
    shapes: Mapping[str, int] | None = None,
    options: SessionOptions | None = None,
    time_limit_s: float = 20.0,
) -> Comparison:
    """Runs two models on the same samples and measures both.

    Args:
        a: the original: a file, or a folder with one model.
        b: the model to compare with it.
        data: samples, all of which are run; None for synthetic ones.
        shapes: lengths of open dimensions for synthetic samples.
        options: how sessions are made.
        time_limit_s: limit on the seconds spent on timing.

    Raises:
        ModelFileError: a file cannot be read.
        SamplesError: the samples do not fit the original, or none can be made up that it runs on.
        VerificationError: the models do not take the same inputs.
        SessionError: a model does not load or run.
    """
    path_a, path_b = files.model_file(Path(a)), files.model_file(Path(b))
    model_a, model_b = files.load(path_a), files.load(path_b)
    _check_inputs((path_a, signature_of(model_a)), (path_b, signature_of(model_b)))
    if data is None:
        samples = runnable_samples(model_a, shapes, options)
    else:
        samples = data if isinstance(data, Samples) else Samples.open(data, signature_of(model_a))
    return Comparison(
        a=_figures(path_a, model_a, options),
        b=_figures(path_b, model_b, options),
        outputs=_closeness(path_a, path_b, samples, options),
        speed=compare_speed(path_a, path_b, samples, options, time_limit_s=time_limit_s),
        samples=len(samples),
        source=samples.description,
        synthetic=samples.is_synthetic,
    )


def _figures(path: Path, model: ir.Model, options: SessionOptions | None) -> Figures:
    return Figures(path, files.total_bytes(path), count_nodes(model), executed_kernels(path, options).total)


def _closeness(a: Path, b: Path, samples: Samples, options: SessionOptions | None) -> dict[str, Fidelity]:
    """Runs both on all samples, one sample at a time; the sessions are gone afterwards, so that they do not disturb a timing."""
    reference, found = open_session(a, "all", options), open_session(b, "all", options)
    return merge(measure(reference.run(feed), found.run(feed)) for feed in samples)


def _check_inputs(a: tuple[Path, Signature], b: tuple[Path, Signature]) -> None:
    for (path, signature), (other, its_signature) in ((a, b), (b, a)):
        known = {port.name for port in its_signature.inputs}
        for port in signature.inputs:
            if port.name not in known:
                raise VerificationError(f"the models do not take the same inputs: {path} wants {port.name!r}, {other} does not")


def _cells(fidelity: Fidelity) -> tuple[str, ...]:
    if fidelity.problem:
        return (fidelity.problem,)
    if fidelity.exact:
        return (f"{fidelity.different} of {fidelity.elements} differ",)
    top1 = "" if fidelity.top1 is None else f"{fidelity.top1:.2%}"
    sqnr = "identical" if not fidelity.different else f"{fidelity.sqnr_db:.1f}"
    return f"{fidelity.relative:.1e}", f"{fidelity.max_abs:.1e}", sqnr, top1


def _fidelity_json(fidelity: Fidelity) -> dict[str, Any]:
    figures = {name: getattr(fidelity, name) for name in ("max_abs", "relative", "sqnr_db", "top1", "mismatches")}
    finite = {name: value if value is None or math.isfinite(value) else None for name, value in figures.items()}
    return {"name": fidelity.name, "exact": fidelity.exact, "elements": fidelity.elements, "problem": fidelity.problem} | finite

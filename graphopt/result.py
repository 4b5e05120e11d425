"""What a run gives back: the model, the ledger, the figures; and the files that hold them."""

from __future__ import annotations

import functools
import json
import platform
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import onnx_ir as ir

from graphopt import __version__, files
from graphopt.choosing.coverage import Coverage
from graphopt.files.atomic import PendingFile
from graphopt.graph.edits import all_nodes, forget_given_names
from graphopt.intake import Intake
from graphopt.ledger import METADATA_KEY, Drop, Key, Ledger
from graphopt.proof import Prover
from graphopt.recipe import Recipe, Resolution
from graphopt.runtime.timing import Speed
from graphopt.stage import Attempt

_RECIPE = ".recipe.yaml"
_LEDGER = ".ledger.json"
_LEAST_LEDGER_BYTES = 4096
_LEDGER_SHARE = 0.01


@dataclass(frozen=True)
class Figures:
    """What was measured, before and after.

    Attributes:
        bytes_before, bytes_after: size on disk, external data included.
        nodes_before, nodes_after: nodes of the files, subgraphs included, ``Constant`` nodes left out.
        kernels_before, kernels_after: kernels that the runtime executes with its own optimizations on; None where not measured.
        speed: the timed comparison; None where none was made.
        relative_error: the largest difference seen, relative to the largest magnitude of its output; None where nothing ran.
        sqnr_db: the smallest signal-to-noise ratio of an output; None where nothing was approximated.
        metric: the user's own, its name and its number for the original and for the result; None where there is none.
        coverage: how much of the work of layers runs in integers; None where nothing was approximated, or nothing could be run.
        synthetic: figures come from made-up samples.
        sessions, inferences: what verification took.
        seconds: time per pass and per kind of check.
    """

    bytes_before: int
    bytes_after: int
    nodes_before: int
    nodes_after: int
    kernels_before: int | None = None
    kernels_after: int | None = None
    speed: Speed | None = None
    relative_error: float | None = None
    sqnr_db: float | None = None
    metric: tuple[str, float, float] | None = None
    coverage: Coverage | None = None
    synthetic: bool = False
    sessions: int = 0
    inferences: int = 0
    seconds: Mapping[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        seconds = {name: round(value, 3) for name, value in self.seconds.items()}
        held = {name: found.to_json() if found else None for name, found in (("speed", self.speed), ("coverage", self.coverage))}
        return vars(self) | {"seconds": seconds} | held


@dataclass(frozen=True)
class Result:
    """What a run gives back.

    Attributes:
        held: the optimized model in memory; None where it was written, and is read back when asked for.
        path: the written file, or None.
        source: the file that the model came from, or None.
        ledger: what was done, dropped and nearly done.
        recipe: the resolved recipe: replaying it gives the same bytes.
        figures: what was measured.
    """

    held: ir.Model | None
    path: Path | None
    source: Path | None
    ledger: Ledger
    recipe: Recipe
    figures: Figures

    @functools.cached_property
    def model(self) -> ir.Model:
        """The optimized model; weights that stand in files stay there until they are read."""
        if self.held is not None:
            return self.held
        assert self.path is not None
        return files.load(self.path)

    @property
    def changed(self) -> bool:
        """Whether anything was rewritten."""
        return bool(self.ledger.rewrites)

    def to_json(self) -> dict[str, Any]:
        """Plain data; ``version`` counts changes of this form."""
        return {
            "version": 1,
            "source": self.source.name if self.source else None,
            "path": str(self.path) if self.path else None,
            "changed": self.changed,
            "figures": self.figures.to_json(),
            "rules": self.ledger.counts(),
            "dropped": [{"rewrite": str(drop.key), "reason": drop.reason} for drop in self.ledger.drops],
            "notes": self.ledger.notes,
        }


def count_nodes(model: ir.Model) -> int:
    """Nodes of the main graph, of all subgraphs and of functions; ``Constant`` nodes do nothing and do not count."""
    functions = sum(1 for function in model.functions.values() for _ in function)
    return functions + sum(1 for node in all_nodes(model) if node.op_type != "Constant")


def write_model(attempts: Sequence[Attempt], dropped: Sequence[Key], fallback: ir.Model, path: Path, original: Path) -> None:
    """Writes a candidate with its stamp and its embedded ledger, which is shortened or left out where it is too large.

    Args:
        attempts: the stages; the last one's model is written.
        dropped: for the ledger.
        fallback: the model where there are no stages.
        path: where to write.
        original: the file that must not be exceeded in size.
    """
    model = (attempts[-1].model if attempts else fallback).clone()
    forget_given_names(model)
    ledger = Ledger(drops=[Drop(key, "") for key in dropped])
    for attempt in attempts:
        ledger.absorb(attempt.recorder)
    before = files.total_bytes(original)
    is_external = before > original.stat().st_size  # one file stays one file, though weights may stand in scratch files meanwhile
    room = max(_LEAST_LEDGER_BYTES, int(before * _LEDGER_SHARE))
    plain = model.clone()
    files.stamp(model)
    while True:
        text = ledger.embedded(room)
        model.metadata_props.pop(METADATA_KEY, None)
        if text:
            model.metadata_props[METADATA_KEY] = text
        files.save(model, path, external_data=is_external)
        excess = files.total_bytes(path) - before
        if excess <= 0:
            return
        if not text:  # not even the stamp fits
            plain.metadata_props.pop(METADATA_KEY, None)
            files.save(plain, path, external_data=is_external)
            return
        room = len(text) - excess


def ledger_beside(model: Path) -> Path:
    """Where the ledger of a written model stands, if it was kept."""
    return model.with_name(f"{model.name}{_LEDGER}")


def write_beside(result: Result, folder: Path, name: str, *, ledger: bool) -> list[Path]:
    """Writes the resolved recipe, and the ledger where wanted, into a folder, under the names that they have beside the model.

    Args:
        result: what a run gives back.
        folder: where to write.
        name: the model file's name.
        ledger: whether the ledger is wanted.

    Returns:
        The files.
    """
    texts = {f"{name}{_RECIPE}": result.recipe.to_yaml()}
    if ledger:
        content = result.ledger.to_json() | {"figures": result.figures.to_json()}
        texts[f"{name}{_LEDGER}"] = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    for file, text in texts.items():
        with PendingFile(folder, file) as pending:
            pending.write(text.encode())
            pending.commit(folder / file)
    return [folder / file for file in texts]


def place_beside(written: Sequence[Path], target: Path) -> None:
    """Moves what :func:`write_beside` wrote to its place beside a model; needs no space on the disk."""
    for file in written:
        file.replace(target.with_name(file.name))
    ledger = ledger_beside(target)
    if ledger.name not in {file.name for file in written}:
        ledger.unlink(missing_ok=True)  # one from an earlier run would describe another model


def resolved(recipe: Recipe, denied: Collection[tuple[str, str, str]], *, measured: bool) -> Recipe:
    """The recipe with every measured choice fixed.

    Args:
        recipe: as it was given.
        denied: rewrites that must not happen, from the recipe or found out in this run.
        measured: whether anything was timed on this machine; else an earlier resolution's machine stays.
    """
    if recipe.resolved and not measured:
        return recipe.model_copy(update={"resolved": recipe.resolved.model_copy(update={"dropped": sorted(denied)})})
    machine = f"{platform.machine()} {platform.system()}" if measured else ""
    made_with = {"graphopt": __version__} | {name: metadata.version(name) for name in ("onnx", "onnx-ir", "onnxscript")}
    return recipe.model_copy(update={"resolved": Resolution(dropped=sorted(denied), made_with=made_with, machine=machine)})


def figures_of(intake: Intake, attempts: Sequence[Attempt], prover: Prover, path: Path, **verification: Any) -> Figures:
    """Gathers the figures of a run.

    Args:
        intake: the original.
        attempts: the stages.
        prover: holds what was measured of the file.
        path: the file.
        verification: ``relative_error``, ``sqnr_db``, ``metric``, ``coverage``, ``synthetic``, ``sessions``, ``inferences``, ``seconds``.
    """
    return Figures(
        bytes_before=files.total_bytes(prover.original),
        bytes_after=files.total_bytes(path),
        nodes_before=count_nodes(intake.model),
        nodes_after=count_nodes(attempts[-1].model if attempts else intake.model),
        kernels_before=prover.kernels_before.total if prover.kernels_before else None,
        kernels_after=prover.kernels_after.total if prover.kernels_after else None,
        speed=prover.speed,
        **verification,
    )

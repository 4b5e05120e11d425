"""Tools that quantize, each in an environment of its own, and the files that they made; those of other tools are kept."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import processes
from models import ROOT
from peer_tools import environment
from subjects import FOLDER, Subject

_KEPT = ROOT / "build" / "peers-quantized"
_SCRIPTS = Path(__file__).resolve().parent / "peer_scripts"
LIMIT_S = 600.0
LIMIT_MB = 12_000
_ITEMS, _FEW_ITEMS = 128, 64
"""Samples that other tools calibrate on; the few where they keep all activations in memory."""

ONNXRUNTIME = ("onnxruntime", ("onnxruntime==1.31.1", "onnx==1.23.2", "onnx-ir==1.1.0", "sympy==1.14.0"))
NNCF = ("nncf", ("nncf==3.4.0", "onnxruntime==1.31.1", "onnx==1.23.2"))


@dataclass(frozen=True)
class Quantizer:
    """One way of one tool.

    Attributes:
        name: what results call it.
        version: what a kept file depends on besides the model: the packages, or nothing where it is made anew each time.
        command: program and arguments for a model and the file to write.
        suits: which models it is meant for.
    """

    name: str
    version: str
    command: Callable[[Subject, Path], Sequence[str | Path]]
    suits: Callable[[Subject], bool]


@dataclass(frozen=True)
class Made:
    """What a tool made of a model.

    Attributes:
        path: the file; it is there only where the tool did not fail.
        key: what it was made from.
        seconds: of the whole process.
        peak_mb: its largest resident set in 10^6 bytes.
        failure: what the tool said instead; empty where it made a file.
        note: what it said besides.
    """

    path: Path
    key: str
    seconds: float
    peak_mb: float
    failure: str
    note: str

    @property
    def digest(self) -> str:
        """Of the file's bytes."""
        return _digest(self.path)


def ours() -> list[Quantizer]:
    """This project's presets."""
    return [_ours("int8", _always), _ours("int4", _has_large_linear_layers)]


def peers() -> list[Quantizer]:
    """Other tools; their environments are made where they do not stand yet."""
    return [
        *(_static(name, method) for name, method in (("min-max", "minmax"), ("percentile", "percentile"), ("entropy", "entropy"))),
        _onnxruntime("onnxruntime dynamic", "dynamic", 0, _always),
        _nncf(),
        *(_onnxruntime(f"onnxruntime 4 bit, block {block}", f"4bit-{block}", 0, _has_large_linear_layers) for block in (32, 128)),
    ]


def _always(_: Subject) -> bool:
    return True


def _has_large_linear_layers(subject: Subject) -> bool:
    return subject.is_transformer


def _static(name: str, method: str) -> Quantizer:
    return _onnxruntime(f"onnxruntime {name}", method, _ITEMS if method == "minmax" else _FEW_ITEMS, _always)


def _onnxruntime(name: str, method: str, items: int, suits: Callable[[Subject], bool]) -> Quantizer:
    python, script = environment(*ONNXRUNTIME) / "python", _SCRIPTS / "quantize_onnxruntime.py"

    def command(subject: Subject, target: Path) -> Sequence[str | Path]:
        return [python, script, method, subject.path, subject.feeds, str(-(-items // subject.batch)), target]

    return Quantizer(name, " ".join(ONNXRUNTIME[1]), command, suits)


def _nncf() -> Quantizer:
    python, script = environment(*NNCF) / "python", _SCRIPTS / "quantize_nncf.py"

    def command(subject: Subject, target: Path) -> Sequence[str | Path]:
        kind = "transformer" if subject.is_transformer else "any"
        return [python, script, kind, subject.path, subject.feeds, str(-(-_ITEMS // subject.batch)), target]

    return Quantizer("NNCF", " ".join(NNCF[1]), command, _always)


def _ours(preset: str, suits: Callable[[Subject], bool]) -> Quantizer:
    def command(subject: Subject, target: Path) -> Sequence[str | Path]:
        return [*processes.GRAPHOPT, subject.path, "-o", target, f"--preset={preset}", "--data", subject.feeds]

    return Quantizer(f"graphopt {preset}", "", command, suits)


def make(subject: Subject, quantizer: Quantizer) -> Made:
    """Runs a tool on a model, unless it is kept what the same version made of the same bytes."""
    target, record = _places(subject, quantizer)
    key = f"{quantizer.version} {_digest(subject.path)}"
    known = kept(subject, quantizer)
    if quantizer.version and known is not None and known.key == key:
        return known
    shutil.rmtree(target.parent, ignore_errors=True)
    target.parent.mkdir(parents=True)
    done = processes.run(quantizer.command(subject, target), limit_s=LIMIT_S, limit_mb=LIMIT_MB)
    notes = [line.removeprefix("note: ") for line in done.output.splitlines() if line.startswith("note: ")]
    failure = failure_of(done).replace(str(subject.path), subject.name) if done.status or not target.exists() else ""
    made = Made(target, key, round(done.seconds, 1), round(done.peak_mb), failure, "; ".join(notes))
    record.write_text(json.dumps({name: value for name, value in asdict(made).items() if name != "path"}, indent=1), encoding="utf-8")
    return made


def kept(subject: Subject, quantizer: Quantizer) -> Made | None:
    """What a tool made of a model last time; None where it never ran."""
    target, record = _places(subject, quantizer)
    return Made(target, **json.loads(record.read_text(encoding="utf-8"))) if record.exists() else None


def _places(subject: Subject, quantizer: Quantizer) -> tuple[Path, Path]:
    """The file that a tool writes, alone in a folder, and the record of how it came about."""
    folder = (_KEPT if quantizer.version else FOLDER / "files") / subject.name / quantizer.name.replace(",", "").replace(" ", "-")
    return folder / "model.onnx", folder.with_suffix(".json")


def failure_of(done: processes.Finished) -> str:
    """Why a tool made nothing: its limits, or the last line that it said."""
    if done.seconds > LIMIT_S:
        return f"stopped after {LIMIT_S:.0f} s"
    if any(word in done.errors for word in ("MemoryError", "bad_alloc", "Unable to allocate", "bad allocation")):
        return f"more than {LIMIT_MB / 1000:.0f} GB of memory"
    return done.reason


def size(made: Made) -> int:
    """Bytes of a file and of the data beside it; ledger and recipe are no part of the model."""
    return sum(file.stat().st_size for file in made.path.parent.iterdir() if file.suffix not in {".json", ".yaml"})


def _digest(path: Path) -> str:
    with path.open("rb") as file:  # in pieces: the peak of this process is the least that a process it starts can report
        return hashlib.file_digest(file, "sha256").hexdigest()

"""Taking a model in, in whatever form it comes, and making it loadable for the installed runtime."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnx_ir as ir

from graphopt import files
from graphopt.errors import ModelFileError
from graphopt.graph.opset import convert_opset, opset_of
from graphopt.ledger import Key, Ledger, Recorder, Rewrite, record, recording
from graphopt.runtime.session import Limits, runtime_limits

_MEMORY_NAME = "model.onnx"

_LOADED_BY_ALL = Limits(opset=21, ir_version=10)
"""What the oldest supported runtime loads: up to here no runtime needs to be asked, or to be there at all."""


@dataclass(frozen=True)
class Intake:
    """A model that was taken in, and where its result goes.

    Attributes:
        model: owned by the run; stays as it came, except that nodes get names and the opset may be lowered.
        source: the file it came from, or None.
        target: the file to write, or None.
        companions: the folder whose other files go with the model, or None.
    """

    model: ir.Model
    source: Path | None
    target: Path | None
    companions: Path | None = None

    @property
    def name(self) -> str:
        """What messages call the model."""
        return str(self.source) if self.source else "the model"

    @property
    def output_name(self) -> str:
        """The name of the result's file."""
        return (self.target or self.source or Path(_MEMORY_NAME)).name

    def scratch_folder(self) -> ScratchFolder:
        """A folder for temporary files: beside the target, so that the last step is a rename.

        Raises:
            ModelFileError: the target's folder cannot be written.
        """
        return ScratchFolder(self.target.parent if self.target else None)

    def path(self, folder: Path) -> Path:
        """The original as a file; a model that came in memory is saved in ``folder`` once."""
        if self.source is not None:
            return self.source
        path = folder / "original" / _MEMORY_NAME
        if not path.exists():
            path.parent.mkdir()
            files.save(self.model, path)
        return path

    def notes(self) -> list[str]:
        """Warnings about the model as it came."""
        wrong = files.non_finite_weights(self.model)
        return [f"warning: {len(wrong)} weights hold NaN or infinite values, first {wrong[0]}"] if wrong else []

    def copy_companions(self) -> None:
        """Copies the files that came with the model in its folder."""
        if self.companions is not None and self.target is not None and self.target.parent != self.companions:
            files.copy_companions(self.companions, self.target.parent, self.source or self.target)


class ScratchFolder:
    """A temporary folder that goes when its context ends."""

    def __init__(self, parent: Path | None) -> None:
        try:
            self._folder = tempfile.TemporaryDirectory(prefix=".graphopt-", dir=parent, ignore_cleanup_errors=True)
        except OSError as error:
            raise ModelFileError(f"{parent or tempfile.gettempdir()}: cannot be written: {error.strerror}") from error

    def __enter__(self) -> Path:
        return Path(self._folder.name)

    def __exit__(self, *_: object) -> None:
        self._folder.cleanup()


def take(model: str | Path | onnx.ModelProto | ir.Model, output: str | Path | None, *, in_place: bool) -> Intake:
    """Takes a model in.

    Args:
        model: a file, a folder with one model, or a model in memory, which is copied.
        output: the file to write; a folder where ``model`` is one; an existing folder keeps the file's name.
        in_place: write onto the input.

    Raises:
        ModelFileError: the model cannot be read, or the output cannot be where it is wanted.
    """
    if not isinstance(model, (str, Path)):
        if in_place:
            raise ModelFileError("a model in memory cannot be optimized in place; name an output file")
        owned = files.from_proto(model) if isinstance(model, onnx.ModelProto) else files.from_ir(model)
        return Intake(owned, None, _target(Path(output), _MEMORY_NAME) if output else None)
    given = Path(model)
    source = files.model_file(given)
    companions = given if given.is_dir() else None
    if in_place and output is not None:
        raise ModelFileError("give an output file or --in-place, not both")
    if in_place:
        return Intake(files.load(source), source, source)
    target = _target(Path(output), source.name, folder=companions is not None) if output else None
    if target is not None and target.resolve() == source.resolve():
        raise ModelFileError(f"{target} is the input itself; use --in-place to overwrite it")
    loaded = files.load(source)
    if target is not None and target.resolve() in {data.resolve() for data in files.data_files(loaded)}:
        raise ModelFileError(f"{target} holds the input's weights; choose another name")
    return Intake(loaded, source, target, companions if output else None)


def lowered(intake: Intake, folder: Path, ledger: Ledger) -> Path:
    """The model as the installed runtime can load it: the original file, or a lowered copy in ``folder``.

    A model whose opset or IR version is newer than the runtime takes is converted in place, and the ledger says so.

    Raises:
        UnsupportedModelError: the version converter cannot lower it.
    """
    model, original = intake.model, intake.path(folder)  # a model in memory is saved as it came
    version, ir_version = opset_of(model), model.ir_version or 0
    if version <= _LOADED_BY_ALL.opset and ir_version <= _LOADED_BY_ALL.ir_version:
        return original
    limits = runtime_limits()
    if version <= limits.opset and ir_version <= limits.ir_version:
        return original
    with recording(Recorder()) as recorder:
        convert_opset(model, min(version, limits.opset))
        model.ir_version = min(model.ir_version, limits.ir_version)
        if model.ir_version < ir_version:
            record(Rewrite(Key("opset", "lower-ir-version", f"{ir_version} to {model.ir_version}")))
    ledger.absorb(recorder)
    ledger.notes.append(
        f"lowered from opset {version}, IR version {ir_version} to opset {opset_of(model)}, IR version {model.ir_version},"
        " the newest that the installed runtime loads"
    )
    path = folder / "lowered" / _MEMORY_NAME
    path.parent.mkdir()
    files.save(model, path)
    return path


def _target(output: Path, name: str, *, folder: bool = False) -> Path:
    if folder or output.is_dir():
        try:
            output.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ModelFileError(f"{output}: the folder cannot be made: {error.strerror}") from error
        return output / name
    files.check_target(output)
    return output

"""The commands that store models compactly."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from graphopt.cli.app import app
from graphopt.cli.options import Json, Model, QuietFlag, progress_of, show


@app.command()
def pack(
    model: Model,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Where to write the container.  [default: MODEL.gopt]", show_default=False)
    ] = None,
    quiet: QuietFlag = False,
    as_json: Json = False,
) -> None:
    """Entropy-code a model, data files included, into one container, and show how close it comes to the ideal size.

    `graphopt unpack` gives back the same bytes; `graphopt.load_packed` makes a session without a file.

    Example: `graphopt pack model.onnx -o model.gopt`
    """
    from graphopt import container
    from graphopt.report.store import table_of

    with progress_of(quiet=quiet or as_json).step(f"pack {model}"):
        packed = container.pack(model, output)
    show(packed.to_json() if as_json else table_of(packed), quiet=quiet)


@app.command()
def unpack(
    packed: Annotated[Path, typer.Argument(metavar="CONTAINER", help="What `graphopt pack` wrote.", show_default=False)],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Where to write the model.  [default: CONTAINER.onnx]", show_default=False)
    ] = None,
    quiet: QuietFlag = False,
    as_json: Json = False,
) -> None:
    """Write a packed model and its data files again, byte for byte.

    Example: `graphopt unpack model.gopt -o model.onnx`
    """
    from graphopt import container

    with progress_of(quiet=quiet or as_json).step(f"unpack {packed}"):
        paths = [str(path) for path in container.unpack(packed, output)]
    show({"version": 1, "paths": paths} if as_json else f"wrote {', '.join(paths)}", quiet=quiet)

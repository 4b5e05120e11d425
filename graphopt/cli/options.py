"""What commands share: options that mean the same everywhere, and how results are shown."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console

if TYPE_CHECKING:
    from graphopt.progress import Progress
    from graphopt.recipe import Recipe
    from graphopt.runtime.session import SessionOptions

Model = Annotated[Path, typer.Argument(help="An ONNX file, or a folder that holds one and its companions.", show_default=False)]
Data = Annotated[
    str | None,
    typer.Option(
        "--data", metavar="SAMPLES", help=".npz, a folder of .npz/.npy, test_data_set folders, or module:function.", show_default=False
    ),
]
Shapes = Annotated[
    str | None, typer.Option("--shape", metavar="NAME=N,…", help="Sizes of symbolic dimensions for synthetic samples.", show_default=False)
]
Threads = Annotated[int, typer.Option("--threads", min=0, help="Threads within an operator; 0: the runtime's choice.")]
Json = Annotated[bool, typer.Option("--json", help="Print machine-readable results.")]
QuietFlag = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but results and errors.")]
Tolerance = Annotated[float, typer.Option("--tolerance", help="Largest difference allowed, relative to each output's largest magnitude.")]
TimeLimit = Annotated[float, typer.Option("--time-limit", metavar="SECONDS", help="Limit on one timed comparison.")]
CustomOps = Annotated[
    list[Path] | None, typer.Option("--custom-ops", metavar="LIB", help="Register a library of custom operators.", show_default=False)
]
Imports = Annotated[bool, typer.Option("--allow-imports", help="Let passes be named as module:Class.")]

Include = Annotated[
    list[str] | None, typer.Option("--include", metavar="GLOB|TYPE", help="Approximate these layers only.", show_default=False)
]
Exclude = Annotated[
    list[str] | None, typer.Option("--exclude", metavar="GLOB|TYPE", help="Leave these layers as they are.", show_default=False)
]
Isa = Annotated[
    Literal["native", "avx2"] | None,
    typer.Option("--isa", help="avx2: integers that are right on any x86.  [default: native]", show_default=False),
]


def recipe_of(preset_name: str, path: Path | None, specs: Sequence[str] | None, flags: dict[str, Any]) -> Recipe:
    """The recipe of a preset with its flags, of a file, or of some passes."""
    from graphopt.presets import PRESETS, preset
    from graphopt.recipe import Recipe

    known = PRESETS[preset_name].flags if path is None and not specs and preset_name in PRESETS else {}
    for flag in flags:
        if flag not in known:
            raise typer.BadParameter(f"no such option: --{flag.replace('_', '-')}")
    if path is None and not specs:
        return preset(preset_name, **flags)
    if path is not None and specs:
        raise typer.BadParameter("give --recipe or --pass, not both")
    return Recipe.load(path) if path is not None else Recipe.of(*(specs or ()))


def flags_of(arguments: Sequence[str]) -> dict[str, Any]:
    """The flags of a preset, ``--name value`` or ``--name=value``, from what no option of the command took."""
    words = [part for word in arguments for part in (word.split("=", 1) if word.startswith("--") else [word])]
    if stray := next((word for word in words[::2] if not word.startswith("--")), None):
        raise typer.BadParameter(f"unexpected argument: {stray}")
    if len(words) % 2:
        raise typer.BadParameter(f"{words[-1]} is not an option, or lacks its value")
    return {name.removeprefix("--").replace("-", "_"): value for name, value in zip(words[::2], words[1::2], strict=True)}


def sizes_of(text: str | None) -> dict[str, int]:
    """Reads ``NAME=N,…``."""
    sizes: dict[str, int] = {}
    for part in filter(None, (text or "").split(",")):
        name, _, number = part.partition("=")
        if not name.strip() or not number.strip().isdigit():
            raise typer.BadParameter(f"--shape: {part!r} is not of the form NAME=N")
        sizes[name.strip()] = int(number)
    return sizes


def session_of(threads: int, custom_ops: Sequence[Path] | None) -> SessionOptions:
    """How sessions are made."""
    from graphopt.runtime.session import SessionOptions

    return SessionOptions(threads=threads, custom_ops=tuple(custom_ops or ()))


def progress_of(*, quiet: bool) -> Progress:
    """Where progress is shown: on standard error, or nowhere."""
    from graphopt.progress import Quiet, progress_on

    return Quiet() if quiet else progress_on(Console(stderr=True))


def show(content: Any, *, quiet: bool) -> None:
    """Prints a result: plain data as JSON, text as it is, anything else as rich draws it."""
    if isinstance(content, dict):
        typer.echo(json.dumps(content, indent=1, ensure_ascii=False))
    elif quiet:
        return
    elif isinstance(content, str):
        typer.echo(content)
    else:
        Console(soft_wrap=False).print(content)

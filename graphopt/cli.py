"""The command line: each command reads its arguments, calls the library, and prints; nothing is decided here."""

from __future__ import annotations

import gc
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console

from graphopt import __version__
from graphopt.errors import GraphoptError

if TYPE_CHECKING:
    from graphopt.progress import Progress
    from graphopt.recipe import Recipe

_INTERRUPTED = 130

app = typer.Typer(
    name="graphopt",
    help="Compiles ONNX models into smaller, faster ONNX models that stock ONNX Runtime runs, and proves it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)

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


@app.callback(invoke_without_command=True)
def _common(
    verbose: Annotated[int, typer.Option("--verbose", "-v", count=True, help="Log what happens; twice for more.", show_default=False)] = 0,
    version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False,
) -> None:
    if version:
        typer.echo(f"graphopt {__version__}")
        raise typer.Exit
    level = {0: logging.WARNING, 1: logging.INFO}.get(verbose, logging.DEBUG)
    logging.basicConfig(format="%(name)s: %(message)s", stream=sys.stderr)
    logging.getLogger("graphopt").setLevel(level)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def optimize(
    context: typer.Context,
    model: Model,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Where to write the result.", show_default=False)] = None,
    in_place: Annotated[bool, typer.Option("--in-place", help="Write onto the input, atomically.")] = False,
    preset: Annotated[str, typer.Option("--preset", help="A named recipe; see `graphopt recipe`.")] = "exact",
    recipe: Annotated[Path | None, typer.Option("--recipe", help="A recipe file instead of a preset.", show_default=False)] = None,
    passes: Annotated[
        list[str] | None,
        typer.Option("--pass", metavar="PASS", help="Run these passes instead of a preset: 'name(option=value)'.", show_default=False),
    ] = None,
    target: Annotated[str | None, typer.Option("--target", help="cpu, portable or cuda.  [default: cpu]", show_default=False)] = None,
    data: Data = None,
    shape: Shapes = None,
    verify: Annotated[
        Literal["full", "outputs", "structure"] | None,
        typer.Option("--verify", help="How much is proved.  [default: full]", show_default=False),
    ] = None,
    skip: Annotated[
        list[str] | None, typer.Option("--skip", metavar="PASS|RULE", help="Leave a pass or rule out.", show_default=False)
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Fail where a rewrite had to be dropped.")] = False,
    time_limit: Annotated[
        float | None, typer.Option("--time-limit", metavar="SECONDS", help="Limit on one timed comparison.", show_default=False)
    ] = None,
    threads: Annotated[int | None, typer.Option("--threads", min=0, help="Threads within an operator.", show_default=False)] = None,
    no_ledger: Annotated[bool, typer.Option("--no-ledger", help="Do not write OUT.ledger.json.")] = False,
    allow_imports: Imports = False,
    custom_ops: CustomOps = None,
    quiet: QuietFlag = False,
    as_json: Json = False,
) -> None:
    """Optimize a model, prove the result, and write it.

    Example: `graphopt optimize model.onnx -o model.opt.onnx`
    """
    from graphopt import driver
    from graphopt.report import summary

    if output is None and not in_place:
        raise typer.BadParameter("say where to write: --output FILE, or --in-place")
    chosen = _recipe(preset, recipe, passes, _flags(context.args))
    changes: dict[str, Any] = {
        "target": target,
        "verify": verify,
        "time_limit": time_limit,
        "skip": [*chosen.skip, *(skip or [])],
        "shapes": chosen.shapes | _sizes(shape),
    }
    if threads is not None:
        changes["session"] = chosen.session.model_copy(update={"threads": threads})
    result = driver.optimize(
        model,
        output,
        recipe=chosen.changed(**{name: value for name, value in changes.items() if value is not None}),
        data=data,
        in_place=in_place,
        strict=strict,
        keep_ledger=not no_ledger,
        allow_imports=allow_imports,
        custom_ops=custom_ops or (),
        progress=_progress(quiet or as_json),
    )
    _show(result.to_json() if as_json else summary.table_of(result), quiet=quiet)


@app.command()
def export(
    factory: Annotated[
        str, typer.Argument(help="package.module:factory, which returns (module, example_inputs[, dynamic_shapes]).", show_default=False)
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Where to write the model.", show_default=False)],
    opset: Annotated[int | None, typer.Option("--opset", help="Version of the standard operators.", show_default=False)] = None,
    quiet: QuietFlag = False,
    as_json: Json = False,
) -> None:
    """Export a torch module to ONNX and check the file against torch.

    Example: `graphopt export package.module:factory -o model.onnx`
    """
    from graphopt import exporter

    module, inputs, dynamic_shapes = exporter.load_factory(factory)
    with _progress(quiet or as_json).step(f"export {factory}"):
        path = exporter.export(module, inputs, output, dynamic_shapes=dynamic_shapes, opset=opset)
    _show({"version": 1, "path": str(path)} if as_json else f"wrote {path}", quiet=quiet)


@app.command()
def compare(
    a: Annotated[Path, typer.Argument(help="The original.", show_default=False)],
    b: Annotated[Path, typer.Argument(help="The model to compare with it.", show_default=False)],
    data: Data = None,
    shape: Shapes = None,
    tolerance: Tolerance = 1e-4,
    time_limit: TimeLimit = 20.0,
    threads: Threads = 0,
    custom_ops: CustomOps = None,
    quiet: QuietFlag = False,
    as_json: Json = False,
) -> None:
    """Compare two models: fidelity, size, nodes, load time, memory and speed. Exit status 1 where outputs differ.

    Example: `graphopt compare model.onnx model.opt.onnx --data samples.npz`
    """
    from graphopt.report import compare as comparison

    with _progress(quiet or as_json).step(f"compare {a} and {b}"):
        found = comparison.compare(a, b, data, shapes=_sizes(shape), options=_session(threads, custom_ops), time_limit_s=time_limit)
    _show(found.to_json() if as_json else found, quiet=quiet)
    if not found.agrees(tolerance):
        raise GraphoptError(f"{b} differs from {a} by more than {tolerance:g} of the largest output magnitude")


@app.command()
def calibrate(
    model: Model,
    data: Annotated[
        str, typer.Option("--data", metavar="SAMPLES", help="What to run; see `graphopt optimize --help`.", show_default=False)
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Where to write the statistics (.npz).", show_default=False)],
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Take the first samples only.", show_default=False)] = None,
    memory: Annotated[
        str | None, typer.Option("--memory", metavar="SIZE", help="For activations and results.  [default: 320MiB]", show_default=False)
    ] = None,
    threads: Threads = 0,
    custom_ops: CustomOps = None,
    quiet: QuietFlag = False,
    as_json: Json = False,
) -> None:
    """Run samples through a model and save what guided passes want to know of its values and layers.

    Example: `graphopt calibrate model.onnx --data calib.npz -o stats.npz`
    """
    from graphopt import calibration

    size = None if memory is None else calibration.bytes_of(memory)
    with _progress(quiet or as_json).step(f"calibrate {model}"):
        found = calibration.calibrate(model, data, output, limit=limit, memory=size, options=_session(threads, custom_ops))
    _show(found.to_json() if as_json else found, quiet=quiet)


@app.command()
def inspect(
    model: Model,
    shape: Shapes = None,
    kernels: Annotated[bool, typer.Option("--kernels", help="Show the kernels that the runtime executes instead.")] = False,
    custom_ops: CustomOps = None,
    as_json: Json = False,
) -> None:
    """Show a model's signature, operators, parameters, work and largest layers.

    Example: `graphopt inspect model.onnx --shape batch=1,seq=128`
    """
    from graphopt.report import inspect as inspection
    from graphopt.report.kernels import kernels_of

    found = kernels_of(model, _session(0, custom_ops)) if kernels else inspection.inspect(model, shapes=_sizes(shape))
    _show(found.to_json() if as_json else found, quiet=False)


@app.command()
def verify(
    model: Model,
    against: Annotated[Path | None, typer.Option("--against", help="The original whose outputs it must have.", show_default=False)] = None,
    data: Data = None,
    shape: Shapes = None,
    tolerance: Tolerance = 1e-4,
    threads: Threads = 0,
    custom_ops: CustomOps = None,
    as_json: Json = False,
) -> None:
    """Check a model's structure, that it loads and runs, and that its outputs are those of an original.

    Without an original, the runtime's optimizations on are compared with off. Exit status 1 where anything fails.

    Example: `graphopt verify model.opt.onnx --against model.onnx`
    """
    from graphopt import checking

    report = checking.check_model(model, against, data, _sizes(shape), _session(threads, custom_ops), tolerance)
    _show(report.to_json() if as_json else str(report), quiet=False)


@app.command()
def passes(
    name: Annotated[str | None, typer.Argument(help="Show one pass in full.", show_default=False)] = None,
    as_json: Json = False,
) -> None:
    """List all passes with their rules and options, from their own documentation.

    Example: `graphopt passes simplify`
    """
    from graphopt.report import catalogue

    entries = catalogue.entries([name] if name else None)
    _show(
        {"version": 1, "passes": [entry.to_json() for entry in entries]}
        if as_json
        else catalogue.table_of(entries, whole=name is not None),
        quiet=False,
    )


@app.command()
def targets(as_json: Json = False) -> None:
    """List the targets, and what the installed ONNX Runtime has for them.

    Example: `graphopt targets`
    """
    from graphopt.report.targets import target_reports

    reports = target_reports()
    listed = {"version": 1, "targets": [report.to_json() for report in reports]}
    _show(listed if as_json else "\n".join(map(str, reports)), quiet=False)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def recipe(
    context: typer.Context,
    name: Annotated[str | None, typer.Argument(help="A preset to print, or a recipe file to check.", show_default=False)] = None,
    allow_imports: Imports = False,
    as_json: Json = False,
) -> None:
    """Print a preset as a recipe, check a recipe file, or list the presets.

    Example: `graphopt recipe exact > my.yaml` and `graphopt recipe my.yaml`
    """
    from graphopt.recipe import PRESETS, Recipe, preset

    if name is None:
        listed = {key: {"summary": entry.summary, "flags": dict(entry.flags)} for key, entry in PRESETS.items()}
        _show(
            {"version": 1, "presets": listed} if as_json else "\n".join(f"{key}: {entry.summary}" for key, entry in PRESETS.items()),
            quiet=False,
        )
        return
    chosen = preset(name, **_flags(context.args)) if name in PRESETS or not Path(name).exists() else Recipe.load(name)
    chosen.build(allow_imports=allow_imports)
    _show(chosen.model_dump(mode="json") if as_json else chosen.to_yaml().rstrip(), quiet=False)


def _recipe(preset_name: str, path: Path | None, specs: Sequence[str] | None, flags: dict[str, Any]) -> Recipe:
    from graphopt.recipe import PRESETS, Recipe, preset

    known = PRESETS[preset_name].flags if path is None and not specs and preset_name in PRESETS else {}
    for flag in flags:
        if flag not in known:
            raise typer.BadParameter(f"no such option: --{flag.replace('_', '-')}")
    if path is None and not specs:
        return preset(preset_name, **flags)
    if path is not None and specs:
        raise typer.BadParameter("give --recipe or --pass, not both")
    return Recipe.load(path) if path is not None else Recipe.of(*(specs or ()))


def _flags(arguments: Sequence[str]) -> dict[str, Any]:
    """The flags of a preset, ``--name value``, from what no option of the command took."""
    if len(arguments) % 2 or not all(word.startswith("--") for word in arguments[::2]):
        stray = next((word for word in arguments[::2] if not word.startswith("--")), arguments[-1])
        raise typer.BadParameter(f"unexpected argument: {stray}")
    return {name.removeprefix("--").replace("-", "_"): value for name, value in zip(arguments[::2], arguments[1::2], strict=True)}


def _sizes(text: str | None) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for part in filter(None, (text or "").split(",")):
        name, _, number = part.partition("=")
        if not name.strip() or not number.strip().isdigit():
            raise typer.BadParameter(f"--shape: {part!r} is not of the form NAME=N")
        sizes[name.strip()] = int(number)
    return sizes


def _session(threads: int, custom_ops: Sequence[Path] | None) -> Any:
    from graphopt.runtime.session import SessionOptions

    return SessionOptions(threads=threads, custom_ops=tuple(custom_ops or ()))


def _progress(quiet: bool) -> Progress:
    from graphopt.progress import Quiet, progress_on

    return Quiet() if quiet else progress_on(Console(stderr=True))


def _show(content: Any, *, quiet: bool) -> None:
    """Prints a result: plain data as JSON, text as it is, anything else as rich draws it."""
    if isinstance(content, dict):
        typer.echo(json.dumps(content, indent=1, ensure_ascii=False))
    elif quiet:
        return
    elif isinstance(content, str):
        typer.echo(content)
    else:
        Console(soft_wrap=False).print(content)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        arguments: without the program's name; None for those of the process.

    Returns:
        The exit status: 0, 1 for anything wrong with the input, 2 for wrong usage, 130 when interrupted.
    """
    # Models are many small objects that live as long as the process: looking for garbage among them takes a third of the time.
    gc.set_threshold(100_000, 20, 20)
    try:
        app(args=arguments, prog_name="graphopt")
    except SystemExit as leave:  # how the library ends: 0, 2 for wrong usage, 130 when interrupted
        if leave.code == _INTERRUPTED:
            return _fail("interrupted", _INTERRUPTED)
        return leave.code if isinstance(leave.code, int) else int(leave.code is not None)
    except GraphoptError as error:
        return _fail(str(error), 1)
    except KeyboardInterrupt:
        return _fail("interrupted", _INTERRUPTED)
    except MemoryError:
        return _fail("out of memory", 1)
    except OSError as error:  # a full disk, wherever it shows first
        return _fail(f"{error.filename or 'the system'}: {error.strerror or error}", 1)
    return 0


def _fail(message: str, status: int) -> int:
    typer.echo(f"graphopt: {' '.join(message.split())}", err=True)
    return status


if __name__ == "__main__":
    sys.exit(main())

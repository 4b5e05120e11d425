"""The commands that make, measure and examine models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from graphopt.cli.app import app
from graphopt.cli.options import (
    CustomOps,
    Data,
    Exclude,
    Imports,
    Include,
    Isa,
    Json,
    Model,
    QuietFlag,
    Shapes,
    Threads,
    TimeLimit,
    Tolerance,
    flags_of,
    progress_of,
    recipe_of,
    session_of,
    show,
    sizes_of,
)
from graphopt.errors import GraphoptError


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
    with progress_of(quiet=quiet or as_json).step(f"export {factory}"):
        path = exporter.export(module, inputs, output, dynamic_shapes=dynamic_shapes, opset=opset)
    show({"version": 1, "path": str(path)} if as_json else f"wrote {path}", quiet=quiet)


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

    with progress_of(quiet=quiet or as_json).step(f"compare {a} and {b}"):
        found = comparison.compare(a, b, data, shapes=sizes_of(shape), options=session_of(threads, custom_ops), time_limit_s=time_limit)
    show(found.to_json() if as_json else found, quiet=quiet)
    if not found.agrees(tolerance):
        raise GraphoptError(f"{b} differs from {a} by more than {tolerance:g} of the largest output magnitude")


@app.command()
def diff(
    a: Annotated[Path, typer.Argument(help="The first model.", show_default=False)],
    b: Annotated[Path, typer.Argument(help="The second model.", show_default=False)],
    data: Data = None,
    report: Annotated[Path | None, typer.Option("--report", metavar="HTML", help="Write both side by side.", show_default=False)] = None,
    threads: Threads = 0,
    custom_ops: CustomOps = None,
    quiet: QuietFlag = False,
    as_json: Json = False,
) -> None:
    """Align two models by data flow and content, not by names, and list what differs; with samples, where values part.

    Example: `graphopt diff model.onnx model.opt.onnx --data samples.npz`
    """
    from graphopt.report.diff import diff as difference
    from graphopt.report.html import write_difference

    with progress_of(quiet=quiet or as_json).step(f"diff {a} and {b}"):
        found = difference(a, b, data, options=session_of(threads, custom_ops))
        if report is not None:
            write_difference(report, found)
    show(found.to_json() if as_json else found, quiet=quiet)


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
    with progress_of(quiet=quiet or as_json).step(f"calibrate {model}"):
        found = calibration.calibrate(model, data, output, limit=limit, memory=size, options=session_of(threads, custom_ops))
    show(found.to_json() if as_json else found, quiet=quiet)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def sensitivity(
    context: typer.Context,
    model: Model,
    data: Data = None,
    shape: Shapes = None,
    preset: Annotated[str, typer.Option("--preset", help="Whose approximations to examine.")] = "int8",
    recipe: Annotated[Path | None, typer.Option("--recipe", help="A recipe file instead of a preset.", show_default=False)] = None,
    passes: Annotated[
        list[str] | None, typer.Option("--pass", metavar="PASS", help="Examine these passes instead.", show_default=False)
    ] = None,
    include: Include = None,
    exclude: Exclude = None,
    isa: Isa = None,
    threads: Threads = 0,
    allow_imports: Imports = False,
    custom_ops: CustomOps = None,
    quiet: QuietFlag = False,
    as_json: Json = False,
) -> None:
    """Show what approximating each layer costs at the outputs, alone and accumulated, and why.

    Example: `graphopt sensitivity model.onnx --data calib.npz --preset int8`
    """
    from graphopt.choosing import diagnosis
    from graphopt.report.sensitivity import table_of

    chosen = recipe_of(preset, recipe, passes, flags_of(context.args))
    changes = {"include": include, "exclude": exclude, "isa": isa, "shapes": sizes_of(shape)}
    found = diagnosis.diagnose(
        model,
        data,
        chosen.changed(**{name: value for name, value in changes.items() if value}),
        allow_imports=allow_imports,
        options=session_of(threads, custom_ops),
        progress=progress_of(quiet=quiet or as_json),
    )
    show(found.to_json() if as_json else table_of(found), quiet=quiet)


@app.command()
def inspect(
    model: Model,
    shape: Shapes = None,
    kernels: Annotated[bool, typer.Option("--kernels", help="Show the kernels that the runtime executes instead.")] = False,
    couplings: Annotated[bool, typer.Option("--couplings", help="Show which channels could be pruned together instead.")] = False,
    custom_ops: CustomOps = None,
    as_json: Json = False,
) -> None:
    """Show a model's signature, operators, parameters, work and largest layers.

    Example: `graphopt inspect model.onnx --shape batch=1,seq=128`
    """
    from graphopt.report.couplings import coupling_report
    from graphopt.report.inspect import inspect as inspected
    from graphopt.report.kernels import kernels_of

    if kernels and couplings:
        raise typer.BadParameter("give --kernels or --couplings, not both")
    found: Any = coupling_report(model) if couplings else None
    if kernels:
        found = kernels_of(model, session_of(0, custom_ops))
    found = found or inspected(model, shapes=sizes_of(shape))
    show(found.to_json() if as_json else found, quiet=False)


@app.command()
def profile(
    model: Model,
    data: Data = None,
    shape: Shapes = None,
    threads: Threads = 0,
    custom_ops: CustomOps = None,
    quiet: QuietFlag = False,
    as_json: Json = False,
) -> None:
    """Show where the time goes, by kernel and by node of the file, beside what this machine reaches at most; and peak memory.

    Example: `graphopt profile model.onnx --data samples.npz`
    """
    from graphopt.report.profile import profile_of

    with progress_of(quiet=quiet or as_json).step(f"profile {model}"):
        found = profile_of(model, data, shapes=sizes_of(shape), options=session_of(threads, custom_ops))
    show(found.to_json() if as_json else found, quiet=quiet)


@app.command()
def report(
    model: Model,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Where to write the page (.html), or a form for viewers.", show_default=False)
    ],
    against: Annotated[Path | None, typer.Option("--against", help="The original that it was made from.", show_default=False)] = None,
    data: Data = None,
    threads: Threads = 0,
    custom_ops: CustomOps = None,
    quiet: QuietFlag = False,
    as_json: Json = False,
) -> None:
    """Write what became of a model into one HTML file: figures, passes, layers, charts and the graph itself.

    To OUT.onnx: a copy whose nodes tell in their metadata what made them and their time, as Netron shows it. To OUT.json: the
    time of each node as node data for Model Explorer.

    Example: `graphopt report model.opt.onnx --against model.onnx --data samples.npz -o report.html`
    """
    from graphopt.report.html import write_report
    from graphopt.report.viewers import write_annotated, write_node_data

    options = session_of(threads, custom_ops)
    write = {".onnx": write_annotated, ".json": write_node_data}.get(output.suffix.lower())
    if write is not None and against is not None:
        raise typer.BadParameter(f"--against: {output.suffix} tells of one model alone; only a page compares two")
    with progress_of(quiet=quiet or as_json).step(f"report {model}"):
        path = write_report(output, model, against, data, options=options) if write is None else write(output, model, data, options=options)
    show({"version": 1, "path": str(path)} if as_json else f"wrote {path}", quiet=quiet)


@app.command()
def why(
    model: Model,
    node: Annotated[str, typer.Argument(help="A node or value, of the model or of the original.", show_default=False)],
    as_json: Json = False,
) -> None:
    """Show which rewrites made a node of an optimized model, what became of one of the original, and what nearly happened.

    Example: `graphopt why model.opt.onnx node_linear_3`
    """
    from graphopt.report.why import why as story

    found = story(model, node)
    show(found.to_json() if as_json else found, quiet=False)


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

    report = checking.check_model(model, against, data, sizes_of(shape), session_of(threads, custom_ops), tolerance)
    show(report.to_json() if as_json else str(report), quiet=False)

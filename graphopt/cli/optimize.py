"""The command that optimizes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

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
    flags_of,
    progress_of,
    recipe_of,
    session_of,
    show,
    sizes_of,
)


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
    min_sqnr: Annotated[
        float | None, typer.Option("--min-sqnr", metavar="DB", min=0, help="What every output must keep, approximated.", show_default=False)
    ] = None,
    metric: Annotated[
        str | None, typer.Option("--metric", metavar="MODULE:FUNCTION", help="Your own: function(run, path) -> float.", show_default=False)
    ] = None,
    max_drop: Annotated[
        float | None, typer.Option("--max-drop", metavar="X", min=0, help="How much of the metric may be lost.", show_default=False)
    ] = None,
    include: Include = None,
    exclude: Exclude = None,
    isa: Isa = None,
    skip: Annotated[
        list[str] | None, typer.Option("--skip", metavar="PASS|RULE", help="Leave a pass or rule out.", show_default=False)
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Fail where a rewrite had to be dropped.")] = False,
    time_limit: Annotated[
        float | None, typer.Option("--time-limit", metavar="SECONDS", help="Limit on one timed comparison.", show_default=False)
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option("--memory", metavar="SIZE", help="For statistics of layers.  [default: 1GiB]", show_default=False),
    ] = None,
    threads: Annotated[int | None, typer.Option("--threads", min=0, help="Threads within an operator.", show_default=False)] = None,
    report: Annotated[Path | None, typer.Option("--report", metavar="HTML", help="Write a report of the run.", show_default=False)] = None,
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
    from graphopt.calibration import bytes_of
    from graphopt.choosing.metric import function_of
    from graphopt.report import summary

    if output is None and not in_place:
        raise typer.BadParameter("say where to write: --output FILE, or --in-place")
    chosen = recipe_of(preset, recipe, passes, flags_of(context.args))
    changes: dict[str, Any] = {
        "target": target,
        "verify": verify,
        "time_limit": time_limit,
        "skip": [*chosen.skip, *(skip or [])],
        "shapes": chosen.shapes | sizes_of(shape),
        "include": [*chosen.include, *(include or [])],
        "exclude": [*chosen.exclude, *(exclude or [])],
        "isa": isa,
        "metric": metric,
        "max_drop": max_drop,
        "min_sqnr": 0.0 if metric is not None and min_sqnr is None else min_sqnr,  # one's own metric counts alone
        "insist": True if min_sqnr is not None or max_drop is not None else None,
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
        metric=None if metric is None else function_of(metric),
        memory=None if memory is None else bytes_of(memory),
        progress=progress_of(quiet=quiet or as_json),
    )
    if report is not None:
        from graphopt.report.html import write_report

        written = result.path or model
        session = result.recipe.session
        options = session_of(session.threads, custom_ops)
        write_report(report, written, None if in_place else model, data, options=options)
    show(result.to_json() if as_json else summary.table_of(result), quiet=quiet)

"""The commands that tell what there is: passes, targets, recipes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from graphopt.cli.app import app
from graphopt.cli.options import Imports, Json, flags_of, show


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
    show(
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
    show(listed if as_json else "\n".join(map(str, reports)), quiet=False)


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
    from graphopt.presets import PRESETS, preset
    from graphopt.recipe import Recipe

    if name is None:
        listed = {key: {"summary": entry.summary, "flags": dict(entry.flags)} for key, entry in PRESETS.items()}
        show(
            {"version": 1, "presets": listed} if as_json else "\n".join(f"{key}: {entry.summary}" for key, entry in PRESETS.items()),
            quiet=False,
        )
        return
    chosen = preset(name, **flags_of(context.args)) if name in PRESETS or not Path(name).exists() else Recipe.load(name)
    chosen.build(allow_imports=allow_imports)
    show(chosen.model_dump(mode="json") if as_json else chosen.to_yaml().rstrip(), quiet=False)

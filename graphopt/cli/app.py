"""The command line as a whole: its name, its common options, and how it ends."""

from __future__ import annotations

import gc
import logging
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from graphopt import __version__
from graphopt.errors import GraphoptError

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

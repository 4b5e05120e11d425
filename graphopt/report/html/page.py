"""The page: a template, its libraries and the content of a report, in one file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from graphopt.files.atomic import PendingFile
from graphopt.report.diff import Difference
from graphopt.report.html.content import content_of
from graphopt.report.html.difference import difference_content
from graphopt.report.opening import Data
from graphopt.runtime.session import SessionOptions

_LIBRARIES = ("cytoscape.min.js", "chart.umd.min.js")
_COMMON = "common.js"


def write_report(
    target: str | Path,
    result: str | Path,
    original: str | Path | None = None,
    data: Data = None,
    *,
    options: SessionOptions | None = None,
) -> Path:
    """Writes what became of a model into one HTML file, whole or not at all.

    Args:
        target: where to write.
        result: a model that graphopt wrote, with its ledger beside it or inside.
        original: what it was made from; without it there is no before.
        data: samples; None for synthetic ones.
        options: how models are run.

    Returns:
        ``target``.

    Raises:
        ModelFileError: a file cannot be read.
        SamplesError: the samples do not fit.
        SessionError: a model does not load or run.
    """
    content = content_of(Path(result), None if original is None else Path(original), data, options)
    return _written(target, page_of(content, "report", _LIBRARIES))


def write_difference(target: str | Path, difference: Difference) -> Path:
    """Writes what differs between two models into one HTML file, side by side, whole or not at all."""
    return _written(target, page_of(difference_content(difference), "diff"))


def page_of(content: Mapping[str, Any], kind: str, libraries: Iterable[str] = ()) -> str:
    """A page of some kind with its content; what comes from a model stands in it as data alone, never as markup."""
    plain = json.dumps(content, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    data = plain.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    own = _asset(_COMMON) + _asset(f"{kind}.js")
    scripts = "\n".join(f"<script>{text}</script>" for text in (*map(_asset, libraries), own))
    page = _asset(f"{kind}.html").replace("/* style */", _asset("report.css"))
    return page.replace("<!-- data -->", data).replace("<!-- scripts -->", scripts)


def _written(target: str | Path, text: str) -> Path:
    path = Path(target)
    with PendingFile(path.parent, path.name) as pending:
        pending.write(text.encode())
        pending.commit(path)
    return path


def _asset(name: str) -> str:
    text = resources.files("graphopt.report.html").joinpath("assets", name).read_text(encoding="utf-8")
    return "".join(f"{line}\n" for line in text.splitlines() if not line.startswith("//# sourceMappingURL"))

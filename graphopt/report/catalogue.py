"""The catalogue of passes and rules, from their own docstrings."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Group
from rich.text import Text

from graphopt.passes import PASSES, find
from graphopt.passes.base import GuidedPass, options_of
from graphopt.passes.rules import Rule


@dataclass(frozen=True)
class Entry:
    """One pass.

    Attributes:
        name: as recipes spell it.
        kind: exact or guided.
        text: its docstring.
        options: name to type and default.
        rules: name to docstring.
    """

    name: str
    kind: str
    text: str
    options: dict[str, str]
    rules: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return dataclasses.asdict(self)


def entries(names: Sequence[str] | None = None) -> list[Entry]:
    """Describes passes; all of them where no names are given.

    Raises:
        RecipeError: there is no such pass.
    """
    return [_entry(name) for name in names or PASSES]


def table_of(listed: Sequence[Entry], *, whole: bool) -> Group:
    """The passes as text: first lines only, or everything where ``whole``."""
    parts: list[Text] = []
    for entry in listed:
        parts.append(Text.assemble((entry.name, "bold"), f" ({entry.kind})  {entry.text if whole else _first_line(entry.text)}"))
        parts.extend(Text(f"  {name}: {text}") for name, text in entry.options.items())
        parts.extend(
            Text.assemble(("  " + name, "cyan"), f"  {text if whole else _first_line(text)}") for name, text in entry.rules.items()
        )
    return Group(*parts)


def summary_of(pass_name: str, rule: str = "") -> str:
    """The first line that a pass, or a rule of it, says of itself; empty where it has no such rule.

    Raises:
        RecipeError: there is no such pass.
    """
    entry = _entry(pass_name)
    return _first_line(entry.rules.get(rule, "") if rule else entry.text)


def _entry(name: str) -> Entry:
    kind = find(name)
    rules: Sequence[Rule] = getattr(kind, "rules", ())
    return Entry(
        name,
        "guided" if issubclass(kind, GuidedPass) else "exact",
        inspect.getdoc(kind) or "",
        {option: _described(field) for option, field in options_of(kind).items()},
        {rule.name: inspect.getdoc(rule.function) or "" for rule in rules} or dict(getattr(kind, "steps", {})),
    )


def _described(option: dataclasses.Field[Any]) -> str:
    has_default = option.default is not dataclasses.MISSING
    return f"{option.type}{f' = {option.default!r}' if has_default else ''}"


def _first_line(text: str) -> str:
    return text.partition("\n\n")[0].replace("\n", " ")

"""The architecture's floors: a module imports only from its own floor or from one below."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

FLOORS = (
    ("errors", "progress", "solve"),
    ("ledger", "samples", "graph", "files", "container"),
    ("runtime",),
    ("targets",),
    ("passes",),
    tuple("spec recipe presets verification stage choosing proof subject intake result run driver checking calibration exporter".split()),
    ("report",),
    ("cli", "__main__"),
)
FLOOR_OF = {name: number for number, names in enumerate(FLOORS) for name in names}
ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "graphopt"
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")
SOURCES = sorted(path for folder in ("graphopt", "tests", "examples", "benchmarks") for path in (ROOT / folder).rglob("*.py"))


def imports_of(path: Path) -> Iterator[tuple[int, str]]:
    """Line and full name of everything that a file imports, wherever the statement stands."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def _room(name: str) -> str | None:
    """The first part below ``graphopt`` of a dotted name, or None where the name is not of this package."""
    parts = name.split(".")
    return None if parts[0] != "graphopt" else ".".join(parts[1:2])


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_imports_go_down(path: Path) -> None:
    """No module imports from a floor above its own."""
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    assert own in FLOOR_OF, f"{own} stands on no floor: give it one in FLOORS"
    for line, name in imports_of(path):
        room = _room(name)
        if room is None or room == "__version__":
            continue
        assert room in FLOOR_OF, f"{path}:{line} imports {name}: name the module that holds it, not the public API"
        assert FLOOR_OF[room] <= FLOOR_OF[own], f"{path}:{line}: {own} stands below {room}; hand it in as an argument"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_are_never_imported(path: Path) -> None:
    """Nothing imports through the links at the repository's top level, which would load a second copy of each module."""
    for line, name in imports_of(path):
        assert name.split(".")[0] not in {"passes", "runtime"}, f"{path}:{line} imports {name}: say graphopt.{name}"


@pytest.mark.parametrize("name", ["passes", "runtime"])
def test_links_lead_into_the_package(name: str) -> None:
    """The two rooms that the top level shows are the package's own."""
    link = ROOT / name
    if not link.is_symlink():
        pytest.skip("this checkout has no symbolic links")
    assert link.resolve() == PACKAGE / name

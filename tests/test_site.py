"""The documentation's site: its navigation has every page, the API page every public name, and nothing is fetched from elsewhere."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from importlib import util
from pathlib import Path
from typing import Any

import pytest
import yaml

import graphopt

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
CONFIG: dict[str, Any] = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
LOADED = {"script": "src", "img": "src", "iframe": "src", "link": "href", "source": "src"}
"""Elements by which a browser loads something on its own, and the attribute that says what."""
FOR_PEOPLE = {"canonical", "prev", "next"}
"""Kinds of links in a page's head that a browser does not follow by itself."""


def _pages(nav: Any) -> Iterator[str]:
    if isinstance(nav, str):
        yield nav
        return
    for entry in nav.values() if isinstance(nav, dict) else nav:
        yield from _pages(entry)


def test_navigation_names_exactly_the_pages() -> None:
    """Each page of docs stands in the navigation of mkdocs.yml, once, and nothing else does."""
    assert sorted(_pages(CONFIG["nav"])) == sorted(page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md"))


def test_api_page_has_every_public_name() -> None:
    """Each public name has its place on the API page, and each that stands there exists."""
    named = re.findall(r"^::: (\S+)$", (DOCS / "api.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert {f"graphopt.{name}" for name in graphopt.__all__ if name != "__version__"} <= set(named)
    for name in named:
        module, _, attribute = name.rpartition(".")
        __import__(module)
        assert hasattr(sys.modules[module], attribute), name


class _Loads(HTMLParser):
    """Collects what a page makes a browser fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Is told of each element."""
        attributes = dict(attrs)
        if tag in LOADED and attributes.get("rel") not in FOR_PEOPLE:
            self.found.append(attributes.get(LOADED[tag]) or "")


def test_site_is_built_without_warnings_and_needs_no_network(tmp_path: Path) -> None:
    """`mkdocs build --strict` finds every link and docstring in order, and no page makes a browser fetch anything from elsewhere."""
    if any(util.find_spec(name) is None for name in ("mkdocs", "material", "mkdocstrings")):
        pytest.skip("mkdocs, its theme or mkdocstrings is not installed: `make docs` installs them")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for page in tmp_path.rglob("*.html"):
        parser = _Loads()
        parser.feed(page.read_text(encoding="utf-8"))
        assert parser.found
        assert not [place for place in parser.found if re.match(r"(https?:)?//", place)], page.name
    for sheet in tmp_path.rglob("*.css"):
        assert not re.search(r"url\(['\"]?(https?:)?//", sheet.read_text(encoding="utf-8")), sheet.name
    assert "graphopt.optimize" in (tmp_path / "api.html").read_text(encoding="utf-8")

"""Pages that were written, as a parser without a browser sees them."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from typing import Any


class Page(HTMLParser):
    """What a page would load, and the data that it holds."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.scripts = 0
        self.images = 0
        self._is_content = False
        self.content: dict[str, Any] = {}
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Counts what could load or run something."""
        given = dict(attrs)
        self.scripts += tag == "script"
        self.images += tag == "img"
        self._is_content = given.get("id") == "content"
        self.loads += [value for name, value in attrs if name in ("src", "href") and value and not value.startswith(("#", "data:"))]

    def handle_data(self, data: str) -> None:
        """Keeps the content."""
        if self._is_content and data.strip():
            self.content = json.loads(data)
            self._is_content = False

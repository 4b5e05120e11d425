"""Docstrings as the site shows them: cross-reference roles become code, and an attribute line for two names becomes two lines."""

from __future__ import annotations

import re
from typing import Any

import griffe

_ROLE = re.compile(r":(?:class|func|meth|mod):`~?([^`]+)`")
_TWO_NAMES = re.compile(r"^( {4})(\w+), (\w+): (.+)$", re.MULTILINE)


class Plain(griffe.Extension):
    """Rewrites each docstring before it is parsed."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Is called for each module, class, function and attribute."""
        if obj.docstring is not None:
            obj.docstring.value = _TWO_NAMES.sub(r"\1\2: \4\n\1\3: \4", _ROLE.sub(r"`\1`", obj.docstring.value))

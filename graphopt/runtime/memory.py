"""Memory that was freed: the C library keeps it, in pieces that fit the next session but no wide matrix."""

from __future__ import annotations

import ctypes
import sys


def give_back() -> None:
    """Hands what was freed back to the system, where the C library is one that can."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # not in every Linux's library
        if trim is not None:
            trim(0)

"""Feeds that lie as .npz files in a folder; also for the environments of other tools, which have numpy."""

from __future__ import annotations

from pathlib import Path

import numpy as np


def read_feeds(folder: Path, count: int) -> list[dict[str, np.ndarray]]:
    """The first so many feeds of a folder; fewer where it holds fewer."""
    found = []
    for path in sorted(folder.glob("*.npz"))[:count]:
        with np.load(path, allow_pickle=False) as file:
            found.append({name: file[name] for name in file.files})
    return found

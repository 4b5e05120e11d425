"""A shelf: what samples have made so far waits there, in memory up to a limit, else on the disk."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

MEMORY = 512 * 2**20
"""Bytes that wait in memory."""


class Shelf:
    """Arrays by name, sample by sample.

    Args:
        feeds: what is there at first.
        folder: made, for what is too much.
        memory: bytes; see :data:`MEMORY`.
    """

    def __init__(self, feeds: Iterable[Mapping[str, Array]], folder: Path, memory: int = MEMORY) -> None:
        folder.mkdir()
        self._folder, self._left, self._files = folder, memory, 0
        self._samples: list[dict[str, Array | Path]] = []
        for feed in feeds:
            self._samples.append({})
            self[len(self._samples) - 1] = feed

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, sample: int) -> dict[str, Array]:
        return {name: np.load(held) if isinstance(held, Path) else held for name, held in self._samples[sample].items()}

    def __setitem__(self, sample: int, state: Mapping[str, Array]) -> None:
        """Takes in what is new, lets go of what is not there any more; a name always stands for the same array."""
        held = self._samples[sample]
        for name in held.keys() - state.keys():
            gone = held.pop(name)
            if isinstance(gone, Path):
                gone.unlink()
            else:
                self._left += gone.nbytes
        for name in state.keys() - held.keys():
            held[name] = self._put(state[name])

    def _put(self, array: Array) -> Array | Path:
        if array.nbytes <= self._left:
            self._left -= array.nbytes
            return array
        self._files += 1
        path = self._folder / f"{self._files}.npy"
        np.save(path, array)
        return path

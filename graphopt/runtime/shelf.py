"""A shelf: what samples have made so far waits there, in memory up to a limit, else on the disk."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from graphopt.errors import StatisticsError

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
        return {name: self.read(sample, name) for name in self._samples[sample]}

    def __setitem__(self, sample: int, state: Mapping[str, Array]) -> None:
        self.keep(sample, state.keys(), state)

    def read(self, sample: int, name: str) -> Array:
        """One array of a sample."""
        held = self._samples[sample][name]
        return np.load(held) if isinstance(held, Path) else held

    def keep(self, sample: int, names: Collection[str], new: Mapping[str, Any]) -> None:
        """Takes in what is new, lets go of what is not named; a name always stands for the same array.

        Raises:
            StatisticsError: something that is no tensor would have to wait.
        """
        held = self._samples[sample]
        for name in held.keys() - set(names):
            gone = held.pop(name)
            if isinstance(gone, Path):
                gone.unlink()
            else:
                self._left += gone.nbytes
        for name in names:
            if name not in held:
                held[name] = self._put(name, new[name])

    def _put(self, name: str, array: Any) -> Array | Path:
        if not isinstance(array, np.ndarray):
            raise StatisticsError(f"value {name!r} is no tensor: it cannot wait between two layers")
        if array.nbytes <= self._left:
            self._left -= array.nbytes
            return array
        self._files += 1
        path = self._folder / f"{self._files}.npy"
        np.save(path, array)
        return path

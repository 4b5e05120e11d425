"""What is quantized: the zoo's models and two architectures, with feeds to calibrate on."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import ModuleType

import numpy as np
from models import ROOT

FOLDER = ROOT / "build" / "quantization"
"""Feeds, this project's files and all measurements; nothing of it belongs into the repository."""

BATCH = 8
_ARCHITECTURES = ("resnet50", "bert_6l")
Feed = dict[str, np.ndarray]

_RANDOM_FEEDS = 16
_RANDOM_BATCH = 4
_TRANSFORMERS = ("minilm_l6", "llama_shakespeare", "llama_shakespeare_past", "bert_6l")


@dataclass(frozen=True)
class Subject:
    """A model, and what is known of it.

    Attributes:
        name: what results call it.
        path: the file.
        is_trained: whether it belongs to the zoo and is measured by the metric of its task.
        batch: samples in a feed for calibration.
    """

    name: str
    path: Path
    is_trained: bool
    batch: int

    @property
    def is_transformer(self) -> bool:
        """Whether tools should be told so where they ask."""
        return self.name in _TRANSFORMERS

    @property
    def feeds(self) -> Path:
        """The folder of feeds for calibration, one .npz each; made where it is missing."""
        folder = FOLDER / "feeds" / self.name
        if not (folder / "complete").exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            if self.is_trained:
                zoo().write_feeds(self.name, folder, BATCH)
            else:
                write_feeds(random_feeds(self.path.parent, seed=0), folder)
            (folder / "complete").touch()
        return folder

    def timed_feed(self, batch: int) -> Feed:
        """One feed of so many samples, to time runs with."""
        if self.is_trained:
            feed: Feed = next(zoo().calib_feeds(self.name, batch, batch))
            return feed
        return next(random_feeds(self.path.parent, seed=0, batch=batch))


def write_feed(feed: Feed, path: Path) -> None:
    """Writes one .npz."""
    np.savez(path, **feed)  # type: ignore[arg-type]


def write_feeds(feeds: Iterable[Feed], folder: Path) -> None:
    """Writes one .npz a feed."""
    for number, feed in enumerate(feeds):
        write_feed(feed, folder / f"{number:04}.npz")


def all_subjects(wanted: Sequence[str]) -> list[Subject]:
    """Models of the folders that ``GRAPHOPT_ZOO`` and ``GRAPHOPT_ARCH`` name.

    Args:
        wanted: names; empty for all.

    Raises:
        SystemExit: a name is unknown, or there is no zoo.
    """
    known = [*_trained(), *_architectures()]
    unknown = set(wanted) - {subject.name for subject in known}
    if not known:
        raise SystemExit("no models: set GRAPHOPT_ZOO to the folder of trained models")
    if unknown:
        raise SystemExit(f"no such model: {', '.join(sorted(unknown))}; there are: {', '.join(subject.name for subject in known)}")
    return [subject for subject in known if not wanted or subject.name in wanted]


def _trained() -> Iterator[Subject]:
    if folder := os.environ.get("GRAPHOPT_ZOO"):
        root = Path(folder)
        for name in zoo().names(root):
            model = zoo().Model.open(root, name)
            yield Subject(name, model.path, is_trained=True, batch=model.meta.get("max_batch", BATCH))


def _architectures() -> Iterator[Subject]:
    if folder := os.environ.get("GRAPHOPT_ARCH"):
        for name in _ARCHITECTURES:
            path = Path(folder) / name / "model.onnx"
            if path.exists():
                yield Subject(name, path, is_trained=False, batch=_RANDOM_BATCH)


@lru_cache(maxsize=1)
def zoo() -> ModuleType:
    """The zoo's own measurements, ``evaluate.py``."""
    specification = importlib.util.spec_from_file_location("zoo_evaluate", Path(os.environ["GRAPHOPT_ZOO"]) / "evaluate.py")
    if specification is None or specification.loader is None:
        raise SystemExit("GRAPHOPT_ZOO names a folder without evaluate.py")
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module  # its dataclasses look themselves up there
    specification.loader.exec_module(module)
    return module


def random_feeds(folder: Path, seed: int, batch: int = _RANDOM_BATCH) -> Iterator[Feed]:
    """Made-up feeds like the one that lies beside an architecture: pixels in -1..1, whole numbers of the range that it shows."""
    generator = np.random.default_rng(seed)
    with np.load(folder / "inputs.npz", allow_pickle=False) as file:
        example = {name: file[name] for name in file.files}
    for _ in range(_RANDOM_FEEDS):
        yield {name: _like(array, batch, generator) for name, array in example.items()}


def _like(array: np.ndarray, batch: int, generator: np.random.Generator) -> np.ndarray:
    shape = (batch, *array.shape[1:])
    if array.dtype == np.float32:
        return generator.uniform(-1, 1, shape).astype(np.float32)
    return generator.integers(array.min(), array.max(), shape, dtype=array.dtype, endpoint=True)

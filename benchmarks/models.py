"""The models that are measured: where they are, what they are called, and how their nodes are counted."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx

ROOT = Path(__file__).resolve().parent.parent
LEGACY = "torchscript"
"""What the older exporter's file of a model is called after: ``model_torchscript.onnx`` beside ``model.onnx``."""


@dataclass(frozen=True)
class Model:
    """A model file.

    Attributes:
        name: what results call it; holds no folder of this machine.
        path: where it is.
    """

    name: str
    path: Path

    @property
    def is_legacy(self) -> bool:
        """Whether the older exporter wrote it."""
        return self.name.endswith(LEGACY)

    @property
    def twin(self) -> str:
        """The name of the same model from the newer exporter."""
        return self.name.removesuffix(LEGACY).rstrip("/_")


def all_models(wanted: Sequence[str]) -> list[Model]:
    """The example models, and those below the folders that ``GRAPHOPT_ZOO`` and ``GRAPHOPT_ARCH`` name.

    Args:
        wanted: names, parts of names, or files; empty for all models.

    Raises:
        SystemExit: a name matches nothing.
    """
    folders = (ROOT / "examples", *(Path(folder) for name in ("GRAPHOPT_ZOO", "GRAPHOPT_ARCH") if (folder := os.environ.get(name))))
    known = [Model(_name(path), path) for folder in folders for path in sorted(folder.glob("*/*.onnx"))]
    if not wanted:
        return known
    chosen = {model.name: model for word in wanted for model in _matching(word, known)}
    return list(chosen.values())


def _matching(word: str, known: Sequence[Model]) -> list[Model]:
    if Path(word).is_file():
        return [Model(_name(Path(word)), Path(word).resolve())]
    found = [model for model in known if word in model.name]
    if not found:
        raise SystemExit(f"no model is called {word!r}; there are: {', '.join(model.name for model in known)}")
    return found


def _name(path: Path) -> str:
    stem = path.stem.removeprefix("model").lstrip("_")
    return f"{path.resolve().parent.name}/{stem}".rstrip("/")


def count_nodes(path: Path) -> int:
    """Nodes of the main graph, of functions and of all their subgraphs; ``Constant`` nodes do nothing and do not count."""
    model = onnx.load(path, load_external_data=False)
    return _count(model.graph.node) + sum(_count(function.node) for function in model.functions)


def _count(nodes: Iterable[onnx.NodeProto]) -> int:
    total = 0
    for node in nodes:
        total += node.op_type != "Constant"
        for attribute in node.attribute:
            total += _count(attribute.g.node) + sum(_count(graph.node) for graph in attribute.graphs)
    return total


def total_bytes(folder: Path) -> int:
    """Bytes of a result: the model file and its data, which are alone in a folder."""
    return sum(file.stat().st_size for file in folder.iterdir())

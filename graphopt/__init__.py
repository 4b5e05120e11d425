"""graphopt: compiles ONNX models into smaller, faster ONNX models that stock ONNX Runtime runs, and proves it.

The public API, loaded when first used, so that ``import graphopt`` stays quick and needs neither torch nor a runtime.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from graphopt.container import pack, unpack
    from graphopt.driver import optimize
    from graphopt.errors import GraphoptError
    from graphopt.exporter import export
    from graphopt.files import load, save
    from graphopt.recipe import Recipe
    from graphopt.report.compare import compare
    from graphopt.report.inspect import inspect
    from graphopt.result import Result
    from graphopt.runtime.packed import load_packed
    from graphopt.samples import Samples

__version__ = "0.1.0"

__all__ = [
    "GraphoptError",
    "Recipe",
    "Result",
    "Samples",
    "__version__",
    "compare",
    "export",
    "inspect",
    "load",
    "load_packed",
    "optimize",
    "pack",
    "save",
    "unpack",
]

_HOMES = {
    "GraphoptError": "graphopt.errors",
    "Recipe": "graphopt.recipe",
    "Result": "graphopt.result",
    "Samples": "graphopt.samples",
    "compare": "graphopt.report.compare",
    "export": "graphopt.exporter",
    "inspect": "graphopt.report.inspect",
    "load": "graphopt.files",
    "load_packed": "graphopt.runtime.packed",
    "optimize": "graphopt.driver",
    "pack": "graphopt.container",
    "save": "graphopt.files",
    "unpack": "graphopt.container",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)

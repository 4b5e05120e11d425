"""The user's own metric: how good a model is, by a function of theirs."""

from __future__ import annotations

import importlib
import math
import numbers
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt import files
from graphopt.errors import GraphoptError, RecipeError
from graphopt.runtime.session import SessionOptions, open_session

Runs = Callable[[Mapping[str, "np.ndarray[Any, Any]"]], Mapping[str, Any]]
Function = Callable[[Runs, Path], float]


@dataclass
class Metric:
    """A function that says how good a model is, higher is better, and how much of that an approximation may cost.

    The function is called as ``function(run, path)`` with two positional arguments: ``run(feed)`` takes a mapping of input names to
    arrays and returns a mapping of output names to arrays, computed by the runtime as the recipe configures it; ``path`` is a
    ``pathlib.Path`` of the model's file, for functions that open it themselves, and is valid during the call only. It brings its own
    samples, and returns one finite number. It is called once for the original, and for each candidate that is close enough otherwise.

    Attributes:
        name: ``module:function``, or what else messages should call it.
        function: see above.
        max_drop: how much smaller than the original's the number of a candidate may be.
        options: how sessions are made.
        original: the file as it came.
        seconds: spent in it so far.
    """

    name: str
    function: Function
    max_drop: float
    options: SessionOptions
    original: Path
    _before: list[float] = field(default_factory=list)

    @property
    def before(self) -> float:
        """The original's number.

        Raises:
            RecipeError: the function fails, or returns something else than a finite number.
        """
        if not self._before:
            number = self.of(self.original)
            if not math.isfinite(number):
                raise RecipeError(f"metric {self.name}: it gives {number} for the original; it must give a finite number")
            self._before.append(number)
        return self._before[0]

    def of(self, model: ir.Model | Path) -> float:
        """The number of a model.

        Raises:
            RecipeError: the function fails, or returns no number.
        """
        if isinstance(model, Path):
            return self._call(model)
        with tempfile.TemporaryDirectory(prefix="graphopt-", ignore_cleanup_errors=True) as folder:
            path = Path(folder) / "model.onnx"
            files.save(model.clone(), path, external_data=True)
            return self._call(path)

    def loss(self, model: ir.Model | Path) -> str:
        """Why a model is not good enough, or an empty string."""
        after = self.of(model)
        if self.before - after <= self.max_drop:
            return ""
        return f"{self.name} falls from {self.before:.6g} to {after:.6g}, by more than {self.max_drop:g}"

    def _call(self, path: Path) -> float:
        session = open_session(path, "all", self.options)
        try:
            found = self.function(session.run, path)
        except (GraphoptError, MemoryError):
            raise
        except Exception as error:  # whatever the user's function raises is theirs to see, as one line
            raise RecipeError(f"metric {self.name} failed: {type(error).__name__}: {error}") from error
        if not isinstance(found, (numbers.Real, np.ndarray)) or np.size(found) != 1:
            raise RecipeError(f"metric {self.name} must return one number, not {type(found).__name__}")
        return float(found)


def function_of(name: str) -> Function:
    """Imports a metric; the current folder can be imported from.

    Args:
        name: ``module:function``.

    Raises:
        RecipeError: there is no such function.
    """
    module_name, _, function_name = name.partition(":")
    here = str(Path.cwd())
    sys.path.insert(0, here)  # as `python -m` does, so that a script beside the model is found
    try:
        found = getattr(importlib.import_module(module_name), function_name)
    except Exception as error:  # whatever importing a foreign module raises
        raise RecipeError(f"metric {name} cannot be imported: {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove(here)
    if not callable(found):
        raise RecipeError(f"metric {name} is not a function; write module:function")
    function: Function = found
    return function

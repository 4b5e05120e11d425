"""The passes, by the names that recipes and the ledger use; a pass's module is imported when the pass is asked for."""

from __future__ import annotations

import difflib
import importlib
from typing import TYPE_CHECKING

from graphopt.errors import RecipeError

if TYPE_CHECKING:
    from graphopt.passes.base import AnyPass

PASSES: dict[str, str] = {
    "cleanup": "graphopt.passes.cleanup:Cleanup",
    "shapes": "graphopt.passes.shapes:ShapesPass",
    "simplify": "graphopt.passes.simplify:Simplify",
    "activations": "graphopt.passes.activations:Activations",
    "normalize": "graphopt.passes.normalize:Normalize",
    "affine": "graphopt.passes.affine:Affine",
    "attention": "graphopt.passes.attention:Attention",
    "algebra": "graphopt.passes.algebra:Algebra",
    "duplicates": "graphopt.passes.duplicates:Duplicates",
    "equalize": "graphopt.passes.quantize.equalize:Equalize",
    "prune": "graphopt.passes.prune:Prune",
    "depth": "graphopt.passes.prune.depth:Depth",
    "factorize": "graphopt.passes.factorize:Factorize",
    "sparsify": "graphopt.passes.prune.sparsity:Sparsify",
    "cluster": "graphopt.passes.cluster:Cluster",
    "smooth": "graphopt.passes.quantize.smooth:Smooth",
    "weights": "graphopt.passes.quantize.weights:Weights",
    "static": "graphopt.passes.quantize.static:Static",
    "dynamic": "graphopt.passes.quantize.dynamic:Dynamic",
    "recurrent": "graphopt.passes.quantize.recurrent:Recurrent",
    "embeddings": "graphopt.passes.quantize.embeddings:Embeddings",
    "retarget": "graphopt.passes.quantize.retarget:Retarget",
    "strip-quantization": "graphopt.passes.quantize.strip:StripQuantization",
    "half": "graphopt.passes.quantize.half:Half",
    "half-storage": "graphopt.passes.quantize.half_storage:HalfStorage",
    "storage": "graphopt.passes.quantize.storage:Storage",
    "bias": "graphopt.passes.quantize.bias:BiasCorrection",
}
"""Where each pass stands; the exact ones in the order in which they reach their fixed point in the fewest rounds."""


def find(name: str) -> type[AnyPass]:
    """The class of a pass.

    Raises:
        RecipeError: no pass has that name; the message has the most similar ones.
    """
    if name not in PASSES:
        close = difflib.get_close_matches(name, PASSES, n=3) or list(PASSES)
        raise RecipeError(f"there is no pass {name!r}; did you mean {' or '.join(close)}?")
    module, _, kind = PASSES[name].partition(":")
    found: type[AnyPass] = getattr(importlib.import_module(module), kind)
    return found

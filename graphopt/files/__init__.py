"""Model files: the one door to reading, writing, copying and measuring them."""

from __future__ import annotations

from graphopt.files.copies import copy_companions, copy_model, move_model, total_bytes
from graphopt.files.external import data_files
from graphopt.files.reading import from_ir, from_proto, load, model_file
from graphopt.files.weights import non_finite_weights
from graphopt.files.writing import check_target, save, stamp

__all__ = [
    "check_target",
    "copy_companions",
    "copy_model",
    "data_files",
    "from_ir",
    "from_proto",
    "load",
    "model_file",
    "move_model",
    "non_finite_weights",
    "save",
    "stamp",
    "total_bytes",
]

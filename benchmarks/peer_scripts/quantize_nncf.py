"""Quantizes a model with NNCF's post-training quantization for ONNX models; runs in its environment.

Called as ``python quantize_nncf.py MODEL_TYPE MODEL FEEDS COUNT TARGET``.

MODEL_TYPE is ``transformer``, as its documentation asks for such models, or ``any``.
"""

from __future__ import annotations

import sys
from pathlib import Path

import nncf
import onnx
from feeds import read_feeds


def main(model_type: str, model: str, feeds: str, count: str, target: str) -> None:
    """Quantizes with the default options."""
    samples = read_feeds(Path(feeds), int(count))
    kind = nncf.ModelType.TRANSFORMER if model_type == "transformer" else None
    quantized = nncf.quantize(onnx.load(model), nncf.Dataset(samples), subset_size=len(samples), model_type=kind)
    onnx.save(quantized, target)


if __name__ == "__main__":
    main(*sys.argv[1:])

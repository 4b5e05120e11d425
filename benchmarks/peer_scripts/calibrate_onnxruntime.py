"""Finds the ranges of a model's activations with onnxruntime's own calibrator; runs in its environment.

Called as ``python calibrate_onnxruntime.py METHOD MODEL FEEDS COUNT``.
"""

from __future__ import annotations

import sys
from pathlib import Path

from feeds import read_feeds
from onnxruntime.quantization import CalibrationMethod, create_calibrator
from quantize_onnxruntime import Reader

_RANGES = {"percentile": CalibrationMethod.Percentile, "entropy": CalibrationMethod.Entropy}


def main(method: str, model: str, feeds: str, count: str) -> None:
    """Collects and computes all ranges."""
    calibrator = create_calibrator(model, augmented_model_path="augmented.onnx", calibrate_method=_RANGES[method])
    calibrator.set_execution_providers(["CPUExecutionProvider"])
    calibrator.collect_data(Reader(read_feeds(Path(feeds), int(count))))
    sys.stdout.write(f"{len(calibrator.compute_data().data)} ranges\n")


if __name__ == "__main__":
    main(*sys.argv[1:])

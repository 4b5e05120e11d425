"""Quantizes a model with onnxruntime's own tools, as their documentation says; runs in their environment.

Called as ``python quantize_onnxruntime.py METHOD MODEL FEEDS COUNT TARGET``.

METHOD is minmax, percentile or entropy (static), dynamic, or 4bit-BLOCK. What had to be left out of the preparation is
printed.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx.shape_inference
from feeds import read_feeds
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_dynamic, quantize_static
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
from onnxruntime.quantization.shape_inference import quant_pre_process

_RANGES = {"minmax": CalibrationMethod.MinMax, "percentile": CalibrationMethod.Percentile, "entropy": CalibrationMethod.Entropy}


class Reader(CalibrationDataReader):
    """Hands out feeds one by one."""

    def __init__(self, feeds: list[dict[str, np.ndarray]]) -> None:
        self._feeds: Iterator[dict[str, np.ndarray]] = iter(feeds)

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next feed, or None after the last."""
        return next(self._feeds, None)


def prepared(model: Path) -> Path:
    """The model after the preparation that the tools ask for; without symbolic shapes, or as it is, where that fails."""
    for left_out in ((), ("skip_symbolic_shape",)):
        target = Path(f"prepared{len(left_out)}.onnx")
        try:
            quant_pre_process(str(model), str(target), **dict.fromkeys(left_out, True))
        except Exception as error:  # whatever a tool raises is its failure
            done_without = "no preparation" if left_out else "preparation without symbolic shapes"
            sys.stdout.write(f"note: {done_without}, which failed with {type(error).__name__}\n")
        else:
            return target
    return model


def quantize(method: str, model: Path, feeds: list[dict[str, np.ndarray]], target: Path) -> None:
    """Writes the quantized model."""
    if method == "dynamic":
        quantize_dynamic(model, target, per_channel=True, weight_type=QuantType.QInt8)
    elif method.startswith("4bit-"):
        block = int(method.removeprefix("4bit-"))
        quantizer = MatMulNBitsQuantizer(onnx.load(model), bits=4, block_size=block, is_symmetric=True, accuracy_level=4)
        quantizer.process()
        quantizer.model.save_model_to_file(str(target), use_external_data_format=False)
    else:
        kinds = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8}
        reader, ranges = Reader(feeds), _RANGES[method]
        quantize_static(model, target, reader, quant_format=QuantFormat.QDQ, per_channel=True, calibrate_method=ranges, **kinds)


def without_shapes(model: Path) -> Path:
    """The model without the shapes of values inside that its exporter wrote, which the tool may find to contradict its own."""
    proto, target = onnx.load(model), Path("bare.onnx")
    del proto.graph.value_info[:]
    onnx.save(proto, target)
    return target


def main(method: str, model: str, feeds: str, count: str, target: str) -> None:
    """Prepares and quantizes; once more without the stored shapes, where they are what the tool stumbles over."""
    samples = read_feeds(Path(feeds), int(count))
    try:
        quantize(method, prepared(Path(model)), samples, Path(target))
    except onnx.shape_inference.InferenceError:
        sys.stdout.write("note: the shapes stored in the model had to be removed\n")
        quantize(method, without_shapes(Path(model)), samples, Path(target))


if __name__ == "__main__":
    main(*sys.argv[1:])

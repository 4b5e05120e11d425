"""Quantizes the weights of a model's linear layers with onnxruntime's own tools; runs in their environment.

Called as ``python quantize_decoder.py BITS BLOCK LEVEL MODEL TARGET``; LEVEL is MatMulNBits' accuracy level or ``default``, and
``8 0 dynamic`` stands for ``quantize_dynamic``.
"""

from __future__ import annotations

import sys
from pathlib import Path

import onnx
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer


def main(bits: str, block: str, level: str, model: str, target: str) -> None:
    """Writes the quantized model."""
    if level == "dynamic":
        quantize_dynamic(Path(model), Path(target), per_channel=True, weight_type=QuantType.QInt8)
        return
    chosen = None if level == "default" else int(level)
    quantizer = MatMulNBitsQuantizer(onnx.load(model), bits=int(bits), block_size=int(block), is_symmetric=True, accuracy_level=chosen)
    quantizer.process()
    quantizer.model.save_model_to_file(target, use_external_data_format=False)


if __name__ == "__main__":
    main(*sys.argv[1:])

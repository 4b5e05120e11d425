"""What computes in integers: values and weights between quantize and dequantize."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphopt.graph.edits import Builder
from graphopt.targets.emit.packing import DOMAIN, Array, named

QLINEAR_CONV = "QLinearConv"
"""A convolution of codes, as the standard defines it."""
NHWC_QLINEAR_CONV = "com.microsoft::QLinearConv"
"""What the runtime makes of it: channels last."""
QLINEAR_MATMUL = "QLinearMatMul"
QGEMM = "com.microsoft::QGemm"


def qlinear(operator: str) -> str:
    """The kernel that an operator between dequantize and quantize runs as: ``Add``, ``Mul``, ``Concat``, pools, activations."""
    return f"{DOMAIN}::QLinear{operator}"


@dataclass(frozen=True)
class Codes:
    """Numbers as 8-bit codes: ``x = (code - zero_point) * scale``, one scale for all or, in a vector, one per index of an axis.

    Attributes:
        scale: constant, float32.
        zero_point: constant, uint8.
    """

    scale: ir.Value
    zero_point: ir.Value


def quantize(op: Builder, value: ir.Value, codes: Codes) -> ir.Value:
    """Makes the codes of a float32 value: uint8, since int8 ones lose most kernels on CPUs."""
    return op.op("QuantizeLinear", value, codes.scale, codes.zero_point)


def dequantize(op: Builder, value: ir.Value, codes: Codes, axis: int | None = None) -> ir.Value:
    """Makes the float32 value of codes; ``axis`` is that of scales in a vector."""
    return op.op("DequantizeLinear", value, codes.scale, codes.zero_point, axis=axis)


def quantized_weight(op: Builder, stored: Array, scale: Array, axis: int, wish: str = "") -> ir.Value:
    """Makes a float32 weight of constant codes, for a Conv, Gemm or MatMul between dequantize and quantize.

    Zero points are 0; QGemm wants them all the same.

    Args:
        op: makes nodes and constants.
        stored: int8, as the operator stores it.
        scale: ``[out]`` float32, positive.
        axis: of the output channels in ``stored``.
        wish: the name that the weight should resemble.
    """
    codes = op.constant(np.ascontiguousarray(stored), named(wish, "quantized"))
    scales = op.constant(np.ascontiguousarray(scale, np.float32), named(wish, "scales"))
    zero_points = op.constant(np.zeros(scale.shape, np.int8), named(wish, "zero_points")) if stored.ndim == 2 else None
    return op.op("DequantizeLinear", codes, scales, *([zero_points] if zero_points else []), axis=axis)


def quantized_bias(op: Builder, bias: Array, scale: Array, wish: str = "") -> ir.Value:
    """Makes a float32 bias of constant codes, for a Conv or Gemm between dequantize and quantize.

    Older runtimes make an integer kernel only where the bias is in the units of its sums; newer ones round a float one so themselves.

    Args:
        op: makes nodes and constants.
        bias: ``[out]`` float32.
        scale: of a step of the sums, that of the data times that of the weight; ``[out]`` float32, or one for all without an axis.
        wish: the name that the bias should resemble.
    """
    limits = np.iinfo(np.int32)
    codes = np.clip(np.rint(bias / scale.astype(np.float64)), limits.min, limits.max).astype(np.int32)
    stored, scales = op.constant(codes, named(wish, "quantized")), op.constant(scale.astype(np.float32), named(wish, "scales"))
    return op.op("DequantizeLinear", stored, scales, axis=0 if scale.ndim else None)

"""Shape rules of the operators that compute: windows, products, resizing, normalization, attention."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest

import numpy as np
import onnx_ir as ir

from graphopt.graph.shapes import dims
from graphopt.graph.shapes.dims import Dim
from graphopt.graph.shapes.facts import Fact, Operands, Shape
from graphopt.graph.shapes.rules import RULES, Rule, broadcast_shapes


def like_first(operands: Operands) -> list[Fact]:
    """Operators whose first output has the type and shape of their first input; others are not followed."""
    return [Fact(operands.dtype(), operands.shape())]


def predicate(operands: Operands) -> Fact:
    """Operators that answer with one boolean an element."""
    return Fact(ir.DataType.BOOL, operands.shape())


def window(operands: Operands) -> Fact | None:
    """Conv and the pools."""
    of, kernel = operands.shape(), operands.attribute("kernel_shape")
    is_pool = "Pool" in operands.node.op_type
    weight = None if is_pool else operands.shape(1)
    if kernel is None and weight is not None:
        kernel = weight[2:]
    if of is None or kernel is None or not all(isinstance(k, int) for k in kernel) or (weight is None and not is_pool):
        return None
    rank = len(kernel)
    strides, dilations = operands.attribute("strides", [1] * rank), operands.attribute("dilations", [1] * rank)
    spatial: list[Dim] = []
    for axis, (k, stride, dilation) in enumerate(zip(kernel, strides, dilations, strict=True)):
        length = _windows(operands, of[2 + axis], axis, dilation * (k - 1) + 1, stride, rank)
        spatial.append(operands.fresh() if length is None else length)
    result = (of[0], of[1] if weight is None else weight[0], *spatial)
    return Fact(operands.dtype(), result)


def _windows(operands: Operands, length: Dim, axis: int, reach: int, stride: int, rank: int) -> Dim | None:
    """How many windows of a reach fit on an axis."""
    padding = operands.attribute("auto_pad", "NOTSET")
    if padding.startswith("SAME"):
        return dims.floor_divide(dims.add(length, stride - 1), stride)
    pads = operands.attribute("pads", [0] * (2 * rank)) if padding == "NOTSET" else [0] * (2 * rank)
    room = dims.add(length, pads[axis] + pads[axis + rank] - reach)
    down, up = dims.floor_divide(room, stride), dims.floor_divide(dims.add(room, stride - 1), stride)
    if operands.attribute("ceil_mode", 0) and down != up:
        return None  # releases disagree about a last window that starts in the padding
    return None if down is None else dims.add(down, 1)


def conv_transpose(operands: Operands) -> Fact | None:
    """ConvTranspose."""
    of, weight = operands.shape(0), operands.shape(1)
    if of is None or weight is None:
        return None
    rank = len(of) - 2
    kernel = operands.attribute("kernel_shape", weight[2:])
    strides, dilations = operands.attribute("strides", [1] * rank), operands.attribute("dilations", [1] * rank)
    pads, extra = operands.attribute("pads", [0] * (2 * rank)), operands.attribute("output_padding", [0] * rank)
    padding, wanted = operands.attribute("auto_pad", "NOTSET"), operands.attribute("output_shape")
    spatial: list[Dim] = []
    for axis in range(rank):
        if wanted is not None:
            spatial.append(wanted[len(wanted) - rank + axis])
        elif padding.startswith("SAME"):
            spatial.append(dims.multiply(of[2 + axis], strides[axis]))
        else:
            margin = 0 if padding == "VALID" else pads[axis] + pads[axis + rank]
            reach = dims.add(dims.multiply(dims.subtract(kernel[axis], 1), dilations[axis]), 1 + extra[axis] - margin)
            spatial.append(dims.add(dims.multiply(dims.subtract(of[2 + axis], 1), strides[axis]), reach))
    return Fact(operands.dtype(), (of[0], dims.multiply(weight[1], operands.attribute("group", 1)), *spatial))


def global_pool(operands: Operands) -> Fact | None:
    """Global pools."""
    of = operands.shape()
    return None if of is None else Fact(operands.dtype(), (*of[:2], *[1] * (len(of) - 2)))


def resize(operands: Operands) -> Fact | None:
    """Resize and Upsample, by sizes or by scales; an axis whose length depends on rounding gets a fresh one."""
    of = operands.shape()
    mode, policy = operands.attribute("coordinate_transformation_mode", ""), operands.attribute("keep_aspect_ratio_policy", "stretch")
    if of is None or mode == "tf_crop_and_resize" or policy != "stretch":
        return None
    axes = [axis % len(of) for axis in operands.attribute("axes") or range(len(of))]
    has_roi = operands.node.op_type == "Resize" and operands.opset > 10
    sizes, scales = operands.dims(3) if has_roi else None, operands.content(2 if has_roi else 1)
    result = list(of)
    for index, axis in enumerate(axes):
        length: Dim | None = None
        if sizes is not None and len(sizes) == len(axes):
            length = sizes[index]
        elif not operands.has(3) and scales is not None and scales.size == len(axes) and scales.flat[index] is not None:
            length = _scaled(of[axis], float(scales.flat[index]))
        result[axis] = operands.fresh() if length is None else length
    return Fact(operands.dtype(), tuple(result))


def _scaled(length: Dim, scale: float) -> Dim | None:
    if scale.is_integer():
        return dims.multiply(length, int(scale))
    return int(np.floor(np.float32(length) * np.float32(scale))) if isinstance(length, int) else None


def matmul(operands: Operands) -> Fact | None:
    """MatMul with numpy's rules for ranks one and above two; also its integer form."""
    a, b = operands.shape(0), operands.shape(1)
    if not a or not b:
        return None
    left, right = (a if len(a) > 1 else (1, *a)), (b if len(b) > 1 else (*b, 1))
    batch = broadcast_shapes(operands, [left[:-2], right[:-2]]) or ()
    outer = (*left[-2:-1], *right[-1:]) if len(a) > 1 and len(b) > 1 else left[-2:-1] if len(a) > 1 else right[-1:] if len(b) > 1 else ()
    dtype = ir.DataType.INT32 if operands.node.op_type == "MatMulInteger" else operands.dtype()
    return Fact(dtype, (*batch, *outer))


def gemm(operands: Operands) -> Fact | None:
    """Gemm."""
    a, b = operands.shape(0), operands.shape(1)
    if a is None or b is None:
        return None
    return Fact(operands.dtype(), (a[1 if operands.attribute("transA", 0) else 0], b[0 if operands.attribute("transB", 0) else 1]))


def matmul_n_bits(operands: Operands) -> Fact | None:
    """com.microsoft MatMulNBits."""
    of = operands.shape()
    return None if of is None else Fact(operands.dtype(), (*of[:-1], operands.attribute("N")))


def gather_block_quantized(operands: Operands) -> Fact | None:
    """com.microsoft GatherBlockQuantized from rows packed into bytes."""
    table, indices = operands.shape(0), operands.shape(1)
    if table is None or indices is None or len(table) != 2 or operands.attribute("gather_axis", 0):
        return None
    per_element = 8 // operands.attribute("bits", 4) if operands.dtype(0) == ir.DataType.UINT8 else 1
    return Fact(operands.dtype(2), (*indices, dims.multiply(table[1], per_element)))


def dynamic_quantize_lstm(operands: Operands) -> list[Fact] | None:
    """com.microsoft DynamicQuantizeLSTM."""
    of, weight = operands.shape(0), operands.shape(1)
    if of is None or weight is None:
        return None
    state = Fact(operands.dtype(), (weight[0], of[1], operands.attribute("hidden_size")))
    return [Fact(operands.dtype(), (of[0], *(state.shape or ()))), state, state]


def depth_to_space(operands: Operands) -> Fact | None:
    """DepthToSpace."""
    of, block = operands.shape(), operands.attribute("blocksize")
    if of is None:
        return None
    channels = dims.divide_exactly(of[1], block * block)
    spatial = [dims.multiply(d, block) for d in of[2:]]
    return Fact(operands.dtype(), (of[0], operands.fresh() if channels is None else channels, *spatial))


def argument_of_extreme(operands: Operands) -> Fact | None:
    """ArgMax and ArgMin."""
    of = operands.shape()
    if of is None:
        return None
    axis, keep = operands.attribute("axis", 0) % len(of), operands.attribute("keepdims", 1)
    return Fact(ir.DataType.INT64, (*of[:axis], *([1] if keep else []), *of[axis + 1 :]))


def non_zero(operands: Operands) -> Fact | None:
    """NonZero."""
    of = operands.shape()
    return None if of is None else Fact(ir.DataType.INT64, (len(of), operands.fresh()))


def top_k(operands: Operands) -> list[Fact] | None:
    """TopK."""
    of, count = operands.shape(), operands.dims(1)
    if of is None:
        return None
    axis, k = operands.attribute("axis", -1) % len(of), count[0] if count else operands.attribute("k")
    result = (*of[:axis], operands.fresh() if k is None else k, *of[axis + 1 :])
    return [Fact(operands.dtype(), result), Fact(ir.DataType.INT64, result)]


def layer_normalization(operands: Operands) -> list[Fact]:
    """LayerNormalization with its optional mean and deviation."""
    of = operands.shape()
    if of is None:
        return like_first(operands)
    axis = operands.attribute("axis", -1) % len(of)
    moments = Fact(ir.DataType.FLOAT, (*of[:axis], *[1] * (len(of) - axis)))
    return [Fact(operands.dtype(), of), moments, moments]


def dropout(operands: Operands) -> list[Fact]:
    """Dropout."""
    return [Fact(operands.dtype(), operands.shape()), Fact(ir.DataType.BOOL, operands.shape())]


def quantize(operands: Operands) -> Fact:
    """QuantizeLinear: the type is the zero point's."""
    dtype = operands.dtype(2) if operands.has(2) else ir.DataType(operands.attribute("output_dtype", 0) or ir.DataType.UINT8)
    return Fact(dtype, operands.shape())


def dequantize(operands: Operands) -> Fact:
    """DequantizeLinear: the type is the scale's."""
    return Fact(operands.dtype(1), operands.shape())


def attention(operands: Operands) -> list[Fact] | None:
    """The standard Attention, of three or four axes."""
    q, v = operands.shape(0), operands.shape(2)
    if q is None or v is None or len(q) != len(v):
        return None
    if len(q) == 4:
        return [Fact(operands.dtype(), (*q[:3], v[3]))]
    size = dims.divide_exactly(v[2], operands.attribute("kv_num_heads"))
    return None if size is None else [Fact(operands.dtype(), (*q[:2], dims.multiply(size, operands.attribute("q_num_heads"))))]


def multi_head_attention(operands: Operands) -> list[Fact] | None:
    """MultiHeadAttention over separate queries, keys and values of three axes."""
    q, v = operands.shape(0), operands.shape(2) if operands.has(2) else None
    return None if q is None or v is None or (len(q), len(v)) != (3, 3) else [Fact(operands.dtype(), (*q[:2], v[2]))]


def agreement(branches: Sequence[Fact], operands: Operands) -> Fact:
    """What is known of the output of an If: that in which its branches agree."""
    shapes = [fact.shape for fact in branches]
    dtypes = {fact.dtype for fact in branches}
    dtype = dtypes.pop() if len(dtypes) == 1 else None
    ranks = {None if of is None else len(of) for of in shapes}
    if None in ranks or len(ranks) != 1:
        return Fact(dtype, None)
    merged: Shape = tuple(found[0] if len(set(found)) == 1 else operands.fresh() for found in zip_longest(*[of or () for of in shapes]))
    return Fact(dtype, merged)


_LIKE_FIRST = """
    Abs Acos Acosh Asin Asinh Atan Atanh BatchNormalization BitwiseNot Ceil Celu Clip Cos Cosh CumSum Elu Erf Exp Floor Gelu
    GroupNormalization HardSigmoid HardSwish Hardmax Identity InstanceNormalization LRN LeakyRelu Log LogSoftmax LpNormalization
    MeanVarianceNormalization Mish Neg Not RMSNormalization Reciprocal Relu RotaryEmbedding Round ScatterElements ScatterND Scatter
    Selu Shrink Sigmoid Sign SimplifiedLayerNormalization Sin Sinh Softmax Softplus Softsign Sqrt Swish Tan Tanh ThresholdedRelu Trilu
    com.microsoft::BiasGelu com.microsoft::FastGelu com.microsoft::Gelu com.microsoft::QuickGelu com.microsoft::RotaryEmbedding
    com.microsoft::SkipLayerNormalization com.microsoft::SkipSimplifiedLayerNormalization
"""


def _table() -> dict[str, Rule]:
    from_elements = dict.fromkeys("Abs Ceil Floor Identity Neg Not Reciprocal Sqrt".split(), RULES["Add"])
    table: dict[str, Rule] = dict.fromkeys(_LIKE_FIRST.split(), like_first) | from_elements | RULES
    table |= dict.fromkeys("IsNaN IsInf".split(), predicate)
    table |= dict.fromkeys("Conv AveragePool LpPool".split(), window)
    table |= dict.fromkeys("GlobalAveragePool GlobalMaxPool GlobalLpPool".split(), global_pool)
    table |= dict.fromkeys("Resize Upsample".split(), resize)
    table |= dict.fromkeys("MatMul MatMulInteger".split(), matmul)
    table |= dict.fromkeys("ArgMax ArgMin".split(), argument_of_extreme)
    table |= {
        "MaxPool": window, "ConvTranspose": conv_transpose, "Gemm": gemm, "DepthToSpace": depth_to_space, "NonZero": non_zero,
        "TopK": top_k, "LayerNormalization": layer_normalization, "Dropout": dropout, "QuantizeLinear": quantize,
        "DequantizeLinear": dequantize, "Attention": attention, "com.microsoft::MatMulNBits": matmul_n_bits,
        "com.microsoft::MultiHeadAttention": multi_head_attention,
        "com.microsoft::DynamicQuantizeMatMul": matmul, "com.microsoft::GatherBlockQuantized": gather_block_quantized,
        "com.microsoft::DynamicQuantizeLSTM": dynamic_quantize_lstm,
    }  # fmt: skip
    return table


ALL_RULES = _table()
"""Every rule by operator: ``Conv``, or ``com.microsoft::Gelu``."""

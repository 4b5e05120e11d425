"""Linear and recurrent layers with packed weights."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from graphopt.graph.edits import Builder
from graphopt.solve.grid import Quantized
from graphopt.targets.emit.packing import BITS, BLOCKS, DOMAIN, INTEGERS, Array, named, pack_blocks, packed


def matmul_nbits(op: Builder, data: ir.Value, weight: Quantized, bias: Array | None = None, wish: str = "") -> ir.Value:
    """Makes ``data W^T + bias`` of a weight in blocks; planned as :data:`MATMUL_NBITS`.

    Args:
        op: makes nodes and constants.
        data: ``[..., K]`` float32.
        weight: one group, ``[1, N, K]``, 2, 4 or 8 bits, one scale per block of 16 to 256 inputs.
        bias: ``[N]`` float32.
        wish: the name that the weight should resemble.

    Returns:
        ``[..., N]`` float32.
    """
    scheme = weight.grid.scheme
    block = scheme.per
    _, out, width = weight.codes.shape
    assert scheme.bits in BITS, "no kernel has these bits"
    assert block in BLOCKS, "no kernel has such blocks"
    assert isinstance(block, int), "one of the blocks"
    zero_point = None
    if not scheme.symmetric:
        zero_point = op.constant(packed(weight.grid.zero_point[0], scheme.bits), named(wish, "zero_points"))
    inputs = [
        data,
        op.constant(pack_blocks(weight, block), named(wish, "quantized")),
        op.constant(np.ascontiguousarray(weight.grid.scale[0], np.float32), named(wish, "scales")),
        zero_point,
        *([None, op.constant(bias.astype(np.float32))] if bias is not None else []),
    ]
    while inputs[-1] is None:
        inputs.pop()
    attributes = {"K": width, "N": out, "bits": scheme.bits, "block_size": block, "accuracy_level": INTEGERS}
    return op.op("MatMulNBits", *inputs, domain=DOMAIN, **attributes)


def dynamic_quantize_matmul(op: Builder, data: ir.Value, weight: Quantized, bias: Array | None = None, wish: str = "") -> ir.Value:
    """Makes ``data W^T + bias``, the data quantized to 8 bits at each call; planned as :data:`DYNAMIC_QUANTIZE_MATMUL`.

    Args:
        op: makes nodes and constants.
        data: ``[..., K]`` float32.
        weight: one group, ``[1, N, K]``, symmetric, stored in int8, one positive scale per output channel.
        bias: ``[N]`` float32.
        wish: the name that the weight should resemble.

    Returns:
        ``[..., N]`` float32.
    """
    scheme = weight.grid.scheme
    assert scheme.symmetric, "unsigned weights run several times slower"
    assert scheme.per == "channel", "one scale per output channel"
    inputs = [
        data,
        op.constant(np.ascontiguousarray(weight.codes[0].T), named(wish, "quantized")),
        op.constant(np.ascontiguousarray(weight.grid.scale[0, :, 0], np.float32), named(wish, "scales")),
        *([None, op.constant(bias.astype(np.float32))] if bias is not None else []),
    ]
    return op.op("DynamicQuantizeMatMul", *inputs, domain=DOMAIN)


def dynamic_quantize_lstm(op: Builder, node: ir.Node, weight: Quantized, recurrence: Quantized) -> Sequence[ir.Value]:
    """Makes an LSTM whose data and state are quantized to 8 bits at each step; planned as :data:`DYNAMIC_QUANTIZE_LSTM`.

    Args:
        op: makes nodes and constants.
        node: the LSTM that it replaces, data ``[steps, batch, in]``; its other inputs and its attributes are taken over.
        weight: ``W [directions, 4 * hidden, in]``, symmetric, stored in int8, one positive scale per row.
        recurrence: ``R [directions, 4 * hidden, hidden]``, likewise.

    Returns:
        As many outputs as the LSTM has.
    """
    inputs = [*node.inputs, *[None] * (8 - len(node.inputs))]
    for index, part in ((1, weight), (2, recurrence)):
        assert part.grid.scheme.symmetric, "signed weights"
        assert part.grid.scheme.per == "channel", "one scale per row"
        replaced = node.inputs[index]
        name = "" if replaced is None else replaced.name or ""
        inputs[index] = op.constant(np.ascontiguousarray(part.codes.transpose(0, 2, 1)), named(name, "quantized"))
        scale = np.ascontiguousarray(part.grid.scale[..., 0], np.float32)
        inputs += [op.constant(scale, named(name, "scales")), op.constant(np.zeros(scale.shape, np.int8), named(name, "zero_points"))]
    attributes = {name: attribute for name, attribute in node.attributes.items() if name != "layout"}
    return op.ops("DynamicQuantizeLSTM", *inputs, outputs=len(node.outputs), domain=DOMAIN, **attributes)

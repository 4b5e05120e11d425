"""Multiply-accumulates of single operators, from the shapes of what they read and make."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from graphopt.graph.view import attribute, input_of, operator_of

Shape = tuple[int, ...]


class UnknownShapeError(Exception):
    """A shape that a rule needs is not known."""


@dataclass(frozen=True)
class Operation:
    """A node with the shapes around it."""

    node: ir.Node
    shape_of: Callable[[ir.Value], Shape | None]

    def input(self, index: int) -> Shape:
        """The shape of an input that must be there."""
        return self._known(input_of(self.node, index))

    def output(self, index: int = 0) -> Shape:
        """The shape of an output that must be there."""
        return self._known(self.node.outputs[index] if index < len(self.node.outputs) else None)

    def has_input(self, index: int) -> bool:
        """Whether an optional input is there."""
        return input_of(self.node, index) is not None

    def has_output(self, index: int) -> bool:
        """Whether an optional output is made."""
        return index < len(self.node.outputs) and bool(self.node.outputs[index].name)

    def integer(self, name: str, default: int = 0) -> int:
        """An integer attribute."""
        return attribute(self.node, name, default)

    def _known(self, value: ir.Value | None) -> Shape:
        shape = None if value is None else self.shape_of(value)
        if shape is None:
            raise UnknownShapeError
        return shape


Rule = Callable[[Operation], int]


def macs_of(node: ir.Node, shape_of: Callable[[ir.Value], Shape | None]) -> int | None:
    """Multiply-accumulates of one run of a node.

    Elementwise operators, reductions, and whatever else of the standard domain multiplies no matrices counts 0.

    Returns:
        None where a shape is missing, or the operator is of another domain and not known.
    """
    operator = operator_of(node)
    rule = RULES.get(operator)
    if rule is None:
        return 0 if "::" not in operator or operator.removeprefix("com.microsoft::") in FREE else None
    try:
        return rule(Operation(node, shape_of))
    except (UnknownShapeError, IndexError, ZeroDivisionError):  # shapes that do not fit the operator tell nothing either
        return None


def _convolution(weight: int) -> Rule:
    """Each place of the output takes the whole kernel of its channel."""

    def rule(op: Operation) -> int:
        return math.prod(op.output()) * math.prod(op.input(weight)[1:])

    return rule


def _transposed_convolution(op: Operation) -> int:
    return math.prod(op.input(0)) * math.prod(op.input(1)[1:])


def _product(op: Operation) -> int:
    """Any product of matrices: each element of the output is a sum over the inner axis of the left one."""
    left = op.input(0)
    turned = len(left) > 1 and op.integer("transA")
    inner = left[0] if turned and op.integer("transBatchA") else left[-2 if turned else -1]
    return math.prod(op.output()) * inner


def _packed_product(op: Operation) -> int:
    return math.prod(op.output()) * op.integer("K")


def _recurrent(op: Operation) -> int:
    """Both weights are used once for each step and each sequence, whatever their order in memory."""
    steps = math.prod(op.input(0)[:2])
    return steps * (math.prod(op.input(1)) + math.prod(op.input(2)))


def _einsum(op: Operation) -> int:
    """The product of all index lengths, where an index is summed over or operands are multiplied."""
    terms = attribute(op.node, "equation", "").replace(" ", "").split("->")[0].split(",")
    lengths: dict[str, int] = {}
    for index, term in enumerate(terms):
        shape = op.input(index)
        head, dots, tail = term.partition("...")
        ellipsis = [f"...{i}" for i in range(len(head) + len(tail) - len(shape), 0)] if dots else []
        for letter, length in zip([*head, *ellipsis, *tail], shape, strict=True):
            lengths[letter] = max(length, lengths.get(letter, 1))
    total = math.prod(lengths.values())
    return total if len(terms) > 1 and total > math.prod(op.output()) else 0


def _attention(op: Operation) -> int:
    """The standard operator: queries with all keys, then the weights with all values."""
    query, key, value = op.input(0), op.input(1), op.input(2)
    heads = query[1] if len(query) == 4 else op.integer("q_num_heads")
    key_heads = key[1] if len(key) == 4 else op.integer("kv_num_heads")
    batch, queries = query[0], query[-2]
    width = query[-1] if len(query) == 4 else query[-1] // heads
    value_width = value[-1] if len(value) == 4 else value[-1] // key_heads
    keys = key[-2] + (op.input(4)[2] if op.has_input(4) else 0)
    return batch * heads * queries * keys * (width + value_width)


def _packed_attention(op: Operation) -> int:
    """The runtime's Attention: the projection of the input to queries, keys and values is part of it."""
    batch, steps, _ = op.input(0)
    width, packed = op.input(1)
    sizes: tuple[int, ...] = attribute(op.node, "qkv_hidden_sizes", (packed // 3,) * 3)
    keys = steps + (op.input(4)[3] if op.has_input(4) else 0)
    return batch * steps * (width * packed + keys * (sizes[0] + sizes[2]))


def _multi_head_attention(op: Operation) -> int:
    query = op.input(0)
    batch, steps = query[:2]
    if len(query) == 5:  # queries, keys and values in one input: [batch, steps, heads, 3, width]
        return 2 * batch * steps * steps * query[2] * query[4]
    key = op.input(1)
    packed = len(key) == 5
    keys = key[2] if len(key) == 4 else key[1]
    if op.has_output(1):
        keys = op.output(1)[2]
    width = query[2]
    value_width = width if packed else op.output()[-1]
    return batch * steps * keys * (width + value_width)


def _group_query_attention(op: Operation) -> int:
    batch, steps, width = op.output()
    keys = op.output(1)[2] if op.has_output(1) else op.input(1 if op.has_input(1) else 0)[1]
    return 2 * batch * steps * keys * width


RULES: Mapping[str, Rule] = {
    "Conv": _convolution(1),
    "DeformConv": _convolution(1),
    "ConvInteger": _convolution(1),
    "QLinearConv": _convolution(3),
    "com.microsoft::FusedConv": _convolution(1),
    "ConvTranspose": _transposed_convolution,
    "Gemm": _product,
    "MatMul": _product,
    "MatMulInteger": _product,
    "QLinearMatMul": _product,
    "com.microsoft::FusedGemm": _product,
    "com.microsoft::QGemm": _product,
    "com.microsoft::FusedMatMul": _product,
    "com.microsoft::DynamicQuantizeMatMul": _product,
    "com.microsoft::MatMulIntegerToFloat": _product,
    "com.microsoft::MatMulNBits": _packed_product,
    "com.microsoft::MatMulBnb4": _packed_product,
    "com.microsoft::MatMulFpQ4": _product,
    "Einsum": _einsum,
    "RNN": _recurrent,
    "GRU": _recurrent,
    "LSTM": _recurrent,
    "com.microsoft::DynamicQuantizeLSTM": _recurrent,
    "Attention": _attention,
    "com.microsoft::Attention": _packed_attention,
    "com.microsoft::QAttention": _packed_attention,
    "com.microsoft::MultiHeadAttention": _multi_head_attention,
    "com.microsoft::GroupQueryAttention": _group_query_attention,
}
"""How to count, by operator."""

FREE = frozenset(
    {
        *("BiasAdd", "BiasDropout", "BiasGelu", "BiasSoftmax", "BiasSplitGelu", "FastGelu", "Gelu", "QuickGelu", "GroupNorm"),
        *("SkipGroupNorm", "SkipLayerNormalization", "SkipSimplifiedLayerNormalization", "SimplifiedLayerNormalization"),
        *("EmbedLayerNormalization", "QEmbedLayerNormalization", "RotaryEmbedding", "GatherBlockQuantized", "NhwcMaxPool"),
        *("QuantizeLinear", "DequantizeLinear", "QLinearAdd", "QLinearAveragePool", "QLinearConcat", "QLinearGlobalAveragePool"),
        *("QLinearLeakyRelu", "QLinearMul", "QLinearReduceMean", "QLinearSigmoid", "QLinearSoftmax", "QLinearWhere"),
        *("ExpandDims", "Unique", "Range", "Trilu", "GatherND", "Pad", "Inverse", "Sampling", "GatedRMSNorm"),
    }
)
"""Operators of ONNX Runtime's own domain that multiply no matrices."""

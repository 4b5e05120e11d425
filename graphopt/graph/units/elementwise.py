"""Operators that leave indices where they are: elementwise ones, normalization, pooling, reductions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from graphopt.graph.units.step import Axes, Rule, Step, UnknownError
from graphopt.graph.units.ties import Axis
from graphopt.graph.view import attribute

_SAME = """
Abs Acos Acosh Asin Asinh Atan Atanh Cast CastLike Ceil Celu Clip Cos Cosh Dropout Elu Erf Exp Floor Gelu HardSigmoid HardSwish Identity
IsInf IsNaN LeakyRelu Log Mish Neg Not Reciprocal Relu Round Selu Shrink Sigmoid Sign Sin Sinh Softplus Softsign Sqrt Swish Tan Tanh
ThresholdedRelu com.microsoft::Gelu com.microsoft::QuickGelu
""".split()
_BROADCAST = """
Add And BitwiseAnd BitwiseOr BitwiseXor Div Equal Greater GreaterOrEqual Less LessOrEqual Max Mean Min Mod Mul Or Pow PRelu Sub Sum
Where Xor com.microsoft::BiasGelu com.microsoft::FastGelu
""".split()
_POOLS = "AveragePool GlobalAveragePool GlobalLpPool GlobalMaxPool LpPool MaxPool".split()
_REDUCTIONS = """
ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare
""".split()
_ALONG = {"Softmax": -1, "LogSoftmax": -1, "Hardmax": -1, "LpNormalization": -1, "CumSum": 0}


def same(step: Step) -> Sequence[Axes]:
    """Every output has the axes of the first input."""
    return [step.axes()] * len(step.node.outputs)


def broadcast(step: Step) -> Sequence[Axes]:
    """Elementwise over operands that broadcast."""
    operands = [(step.axes(i), step.length(i)) for i in range(len(step.node.inputs)) if step.has(i)]
    return [step.broadcast(*operands, out=step.out)]


def pool(step: Step) -> Sequence[Axes]:
    """Channels stay; windows cover the axes after them."""
    batch, channels, *rest = step.axes()
    step.pin(*rest)
    return [[batch, channels, *[None] * len(rest)]] * len(step.node.outputs)


def reduce(step: Step) -> Sequence[Axes]:
    """What is reduced over must stay: a mean over fewer values is another mean."""
    axes = list(step.axes())
    given = step.view.integers(step.node.inputs[1]) if step.has(1) else attribute(step.node, "axes", ())
    if given is None:
        raise UnknownError
    if not given and attribute(step.node, "noop_with_empty_axes", 0):
        return [axes]
    return [_without(step, axes, given or range(len(axes)))]


def arg(step: Step) -> Sequence[Axes]:
    """The position of an extreme along one axis."""
    return [_without(step, list(step.axes()), [step.axis()])]


def along(step: Step) -> Sequence[Axes]:
    """Operators in which the indices of one axis see each other."""
    axes = list(step.axes())
    if step.node.op_type == "CumSum":
        given = step.view.integers(step.node.inputs[1])
        if given is None:
            raise UnknownError
        first = given[0] % len(axes)
        last = first + 1
    else:
        flattens = step.view.opset < 13 and step.node.op_type != "LpNormalization"
        first = step.axis(default=1 if flattens else _ALONG[step.node.op_type])
        last = len(axes) if flattens else first + 1
    step.pin(*axes[first:last])
    return [axes]


def batch_normalization(step: Step) -> Sequence[Axes]:
    """One scale, bias, mean and variance a channel."""
    axes = list(step.axes())
    for index in range(1, len(step.node.inputs)):
        axes[1] = step.tie(axes[1], step.axes(index)[0])
    return [axes, *[[axes[1]]] * (len(step.node.outputs) - 1)]


def instance_normalization(step: Step) -> Sequence[Axes]:
    """Each channel is normalized by itself."""
    batch, channels, *rest = step.axes()
    step.pin(*rest)
    for index in (1, 2):
        channels = step.tie(channels, step.axes(index)[0])
    return [[batch, channels, *[None] * len(rest)]]


def layer_normalization(step: Step) -> Sequence[Axes]:
    """The normalized axes stay: statistics over fewer values are other statistics."""
    axes = list(step.axes())
    first = step.axis(default=-1)
    for index in range(1, len(step.node.inputs)):
        if step.has(index):
            step.pin(*step.axes(index))
    step.pin(*axes[first:])
    return [axes, *([*axes[:first], *[None] * (len(axes) - first)] for _ in step.node.outputs[1:])]


def skip_normalization(step: Step) -> Sequence[Axes]:
    """A sum, normalized along its last axis; the fourth output is the sum itself."""
    operands = [(step.axes(i), step.length(i)) for i in range(len(step.node.inputs)) if step.has(i)]
    merged = step.broadcast(*operands, out=step.out)
    step.pin(merged[-1])
    return [merged if index in (0, 3) else [*merged[:-1], None] for index in range(len(step.node.outputs))]


def _without(step: Step, axes: list[Axis], reduced: Iterable[int]) -> Axes:
    gone = {index % len(axes) for index in reduced}
    step.pin(*(axes[index] for index in gone))
    if attribute(step.node, "keepdims", 1):
        return [None if index in gone else axis for index, axis in enumerate(axes)]
    return [axis for index, axis in enumerate(axes) if index not in gone]


ELEMENTWISE: Mapping[str, Rule] = {
    **dict.fromkeys(_SAME, same),
    **dict.fromkeys(_BROADCAST, broadcast),
    **dict.fromkeys(_POOLS, pool),
    **dict.fromkeys(_REDUCTIONS, reduce),
    **dict.fromkeys(_ALONG, along),
    "ArgMax": arg,
    "ArgMin": arg,
    "BatchNormalization": batch_normalization,
    "InstanceNormalization": instance_normalization,
    "LayerNormalization": layer_normalization,
    "RMSNormalization": layer_normalization,
    "SimplifiedLayerNormalization": layer_normalization,
    "com.microsoft::SkipLayerNormalization": skip_normalization,
    "com.microsoft::SkipSimplifiedLayerNormalization": skip_normalization,
}
"""Rules by operator."""

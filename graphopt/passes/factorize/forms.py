"""Forms: what a layer becomes two of, at which ranks, and at what cost."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, Self

import numpy as np
import onnx_ir as ir

from graphopt.graph.edits import Builder, Names, remove_dead
from graphopt.graph.layers import GEMMS, Layer, Layout
from graphopt.graph.macs import macs_of
from graphopt.graph.view import attribute, operator_of
from graphopt.solve.metric import Metric
from graphopt.solve.rank import Pair, Split, split_product

Array = np.ndarray[Any, Any]
Shapes = Mapping[str, tuple[int, ...]]
Cost = Literal["macs", "parameters"]

_PAYS = 0.95
"""Two layers pay where they take this share of the work of one: what lies between them has to be written and read."""
_LEVELS = 32
"""Ranks to choose from, about."""
_LIKED = 16
"""Channels that kernels take together; layers too small for ranks of that size take multiples of 4."""


@dataclass(frozen=True)
class Form(abc.ABC):
    """A layer that may become two.

    Attributes:
        layer: a layer of one group.
        macs: its multiply-accumulates.
    """

    layer: Layer
    macs: int

    @abc.abstractmethod
    def share(self, rank: int, cost: Cost) -> float:
        """What the two cost of what the layer costs."""

    @abc.abstractmethod
    def sizes(self, rank: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """The shapes of both factors."""

    @abc.abstractmethod
    def solved(self, weight: Array, metric: Metric) -> Pair | Split:
        """Knows the closest factors of ``W [1, out, in]`` of any rank."""

    @abc.abstractmethod
    def product(self, factors: tuple[Array, Array]) -> Array:
        """``[1, out, in]``: what factors stand for."""

    @abc.abstractmethod
    def put(self, factors: tuple[Array, Array], names: Names) -> str:
        """Puts two layers in the place of the layer, which becomes the second; returns the name of the first."""

    @abc.abstractmethod
    def __str__(self) -> str: ...

    def of(self, node: ir.Node) -> Self:
        """The same form of the layer at a node of a clone."""
        return replace(self, layer=self.layer.on(node))

    def nearest(self, weight: Array, metric: Metric, rank: int) -> Array:
        """The closest ``[1, out, in]`` that two layers can be."""
        return self.product(self.solved(weight, metric).factors(rank))

    def amount(self, rank: int, cost: Cost) -> int:
        """What the two cost."""
        return round(self.share(rank, cost) * self.whole(cost))

    def whole(self, cost: Cost) -> int:
        """What the layer costs."""
        return self.macs if cost == "macs" else self.layer.size

    @cached_property
    def ranks(self) -> list[int]:
        """The ranks that pay, falling; none where no rank does."""
        most = next((rank for rank in range(self.layer.shape[1], 0, -1) if self._pays(rank)), 0)
        unit = _LIKED if most >= 4 * _LIKED else 4
        step = unit * max(1, round(most / _LEVELS / unit))
        return list(range(most // step * step, 0, -step))

    def _pays(self, rank: int) -> bool:
        return max(self.share(rank, "macs"), self.share(rank, "parameters")) <= _PAYS


class Product(Form):
    """``W = second @ first``: a matrix becomes two, a kernel one of fewer outputs and a 1 x 1."""

    def share(self, rank: int, cost: Cost) -> float:  # noqa: D102 (inherited)
        _, out, width = self.layer.shape
        return rank * (width + out) / (width * out)  # strides act in the first, so that work and weights shrink alike

    def sizes(self, rank: int) -> tuple[tuple[int, int], tuple[int, int]]:  # noqa: D102 (inherited)
        _, out, width = self.layer.shape
        return (rank, width), (out, rank)

    def solved(self, weight: Array, metric: Metric) -> Pair:  # noqa: D102 (inherited)
        return Pair.of(weight, metric)

    def product(self, factors: tuple[Array, Array]) -> Array:  # noqa: D102 (inherited)
        first, second = factors
        return (second @ first)[None]

    def put(self, factors: tuple[Array, Array], names: Names) -> str:  # noqa: D102 (inherited)
        first, second = (factor[None] for factor in factors)
        layer = self.layer
        if layer.layout is not Layout.CONV:
            return _put_matrices(layer, layer.restore(first), layer.restore(second), names)
        rank = len(layer.stored_shape) - 2
        plain = {"kernel_shape": [1] * rank, "strides": [1] * rank, "dilations": [1] * rank, "pads": [0] * 2 * rank}
        ones = second.reshape(*second.shape[1:], *[1] * rank)
        return _put_kernels(layer, layer.restore(first), dict(_kernel_attributes(layer)), ones, plain, names)

    def __str__(self) -> str:
        return "two layers"


@dataclass(frozen=True)
class Separable(Form):
    """A k x k kernel becomes k x 1 and 1 x k.

    Attributes:
        wider: how many times as many places the first has to work at as the second.
    """

    wider: float

    @property
    def _kernel(self) -> tuple[int, int]:
        _, _, height, width = self.layer.stored_shape
        return height, width

    def share(self, rank: int, cost: Cost) -> float:  # noqa: D102 (inherited)
        _, out, width = self.layer.shape
        taps = self._kernel[1]
        places = self.wider if cost == "macs" else 1.0
        return rank * (places * width / taps + out * taps) / (width * out)

    def sizes(self, rank: int) -> tuple[tuple[int, int], tuple[int, int]]:  # noqa: D102 (inherited)
        _, out, width = self.layer.shape
        taps = self._kernel[1]
        return (rank, width // taps), (out, rank * taps)

    def solved(self, weight: Array, metric: Metric) -> Split:  # noqa: D102 (inherited)
        return Split(weight, metric, self._kernel[1])

    def product(self, factors: tuple[Array, Array]) -> Array:  # noqa: D102 (inherited)
        return split_product(*factors)

    def put(self, factors: tuple[Array, Array], names: Names) -> str:  # noqa: D102 (inherited)
        height, width = self._kernel
        first, second = factors
        attributes = _kernel_attributes(self.layer)
        halves = [{name: _along(axis, name, value) for name, value in attributes.items()} for axis in (0, 1)]
        vertical, horizontal = first.reshape(len(first), -1, height, 1), second.reshape(len(second), len(first), 1, width)
        return _put_kernels(self.layer, vertical, halves[0], horizontal, halves[1], names)

    def __str__(self) -> str:
        height, width = self._kernel
        return f"{height} x 1 and 1 x {width}"


def form_of(layer: Layer, shapes: Shapes) -> Form | str:
    """The form of a layer, or why it has none.

    Args:
        layer: of the main graph.
        shapes: of values, by name, on one sample.
    """
    macs = macs_of(layer.node, lambda value: shapes.get(value.name or ""))
    reason = _obstacle(layer)
    if reason or not macs:
        return reason or "how much work it does is not known"
    kernel = layer.stored_shape[2:] if layer.layout is Layout.CONV else ()
    form: Form = Product(layer, macs)
    if len(kernel) == 2 and min(kernel) > 1:  # a kernel that is split along its axes loses far less than one of fewer outputs
        places = [shapes[value.name or ""][3] for value in (layer.input, layer.node.outputs[0])]
        form = Separable(layer, macs, places[0] / max(places[1], 1))
    return form if form.ranks else f"{layer.stored_shape} is too small: no rank leaves less work"


def _obstacle(layer: Layer) -> str:
    if layer.layout is Layout.CONV_TRANSPOSE:
        return "it is a transposed convolution"
    if layer.groups != 1:
        return f"it has {layer.groups} groups"
    if len(layer.stored_shape) < 2:
        return "it makes one output"
    if len(layer.value.uses()) > 1:
        return "its weight is used elsewhere too"
    return ""


def _put_matrices(layer: Layer, first: Array, second: Array, names: Names) -> str:
    node, data = layer.node, 1 - layer.index
    op = Builder(node, names)
    kind = "Gemm" if operator_of(node) in GEMMS else node.op_type
    turned = {name: attribute(node, name, 0) or None for name in ("transA", "transB")}
    weight = op.constant(_stored(first, layer), layer.value.name or "")
    inputs = (weight, layer.input) if data else (layer.input, weight)
    between = op.op(kind, *inputs, domain=node.domain if kind == node.op_type else "", **turned)
    node.replace_input_with(data, between)
    node.attributes.pop("transB" if data else "transA", None)
    _replace_weight(layer, op.constant(_stored(second, layer), layer.value.name or ""))
    return op.added[-1].name or ""


def _put_kernels(layer: Layer, first: Array, before: dict[str, Any], second: Array, after: dict[str, Any], names: Names) -> str:
    node, op = layer.node, Builder(layer.node, names)
    name = layer.value.name or ""
    between = op.op("Conv", layer.input, op.constant(_stored(first, layer), name), **(before | {"kernel_shape": list(first.shape[2:])}))
    node.replace_input_with(0, between)
    for each in ("kernel_shape", "strides", "dilations", "pads", "auto_pad"):
        node.attributes.pop(each, None)
    for key, value in (after | {"kernel_shape": list(second.shape[2:])}).items():
        node.attributes[key] = ir.convenience.convert_attribute(key, value)
    _replace_weight(layer, op.constant(_stored(second, layer), name))
    return op.added[-1].name or ""


def _stored(array: Array, layer: Layer) -> Array:
    return np.ascontiguousarray(array, layer.weight().dtype)


def _replace_weight(layer: Layer, new: ir.Value) -> None:
    old = layer.value
    layer.node.replace_input_with(layer.index, new)
    remove_dead([old])


def _kernel_attributes(layer: Layer) -> dict[str, Any]:
    """Strides, dilations and pads as the node has them, those that are left out left out."""
    names = ("strides", "dilations", "pads", "auto_pad")
    found = {name: layer.node.attributes[name].value for name in names if name in layer.node.attributes}
    return {name: value if isinstance(value, str) else list(value) for name, value in found.items()}


def _along(axis: int, name: str, value: Any) -> Any:
    """What an attribute of a kernel of two axes becomes for one that stretches along one of them."""
    if isinstance(value, str):
        return value
    idle = 0 if name == "pads" else 1
    return [number if place % 2 == axis else idle for place, number in enumerate(value)]

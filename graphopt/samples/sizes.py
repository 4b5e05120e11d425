"""Plausible lengths for the symbolic dimensions of a model's inputs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import onnx_ir as ir

from graphopt.errors import SamplesError
from graphopt.graph.signature import Port, Signature, signature_of

Role = Literal["batch", "channels", "height", "width", "past", "total", "sequence"]

_PROFILES: tuple[Mapping[Role, int], ...] = tuple(
    {"batch": batch, "channels": 3, "height": height, "width": width, "past": past, "sequence": sequence, "total": past + sequence}
    for batch, height, width, past, sequence in (
        (2, 64, 64, 8, 16),
        (1, 96, 96, 5, 24),
        (1, 48, 320, 0, 64),
        (1, 224, 224, 16, 1),
        (1, 256, 256, 0, 32),
        (1, 320, 320, 0, 80),
        (1, 512, 512, 0, 128),
        (1, 640, 640, 0, 256),
        (1, 384, 384, 0, 512),
        (1, 299, 299, 0, 576),
        (1, 800, 800, 0, 1024),
        (1, 1024, 1024, 0, 3000),
        (1, 28, 28, 0, 16000),
        (1, 32, 32, 1, 1),
        (1, 1, 1, 0, 1),
    )
)
"""Tried in this order: first two that differ in every length, then sizes that models are commonly made for."""

_CACHE = re.compile(r"past|cache|present", re.IGNORECASE)
_SEQUENCE = re.compile(r"seq|len|time|token|frame|step", re.IGNORECASE)


@dataclass(frozen=True)
class Axis:
    """One axis whose length is open."""

    symbol: str
    port: Port
    index: int


def open_axes(signature: Signature) -> list[Axis]:
    """All input axes without a fixed length; those without a name are called ``INPUT.axisN``."""
    return [
        Axis(length if isinstance(length, str) else f"{port.name}.axis{index}", port, index)
        for port in signature.inputs
        for index, length in enumerate(port.shape or ())
        if not isinstance(length, int)
    ]


def plausible_shapes(model: ir.Model) -> list[dict[str, int]]:
    """Lengths for all symbolic dimensions, most plausible first; try them until the model runs.

    The first two differ in every length. Names are those of the inputs' symbolic dimensions, or ``INPUT.axisN``.
    """
    axes = open_axes(signature_of(model))
    fixed = _from_weights(model, axes)
    roles: dict[str, Role] = {}
    for axis in axes:
        roles.setdefault(axis.symbol, _role(axis, axes))
    assignments = [{symbol: fixed.get(symbol, profile[role]) for symbol, role in roles.items()} for profile in _PROFILES]
    for assignment in assignments:
        _derive_sums(assignment)
    return [one for index, one in enumerate(assignments) if one not in assignments[:index]]


def complete(signature: Signature, given: Mapping[str, int], model: ir.Model) -> dict[str, int]:
    """The lengths in `given`, and the most plausible ones for all other symbols.

    Raises:
        SamplesError: `given` names a dimension that the model lacks, or a negative length.
    """
    symbols = list(dict.fromkeys(axis.symbol for axis in open_axes(signature)))
    unknown = [name for name in given if name not in symbols]
    if unknown:
        raise SamplesError(f"the model has no dimension {unknown[0]!r}; it has {', '.join(symbols) or 'only fixed ones'}")
    if any(length < 0 for length in given.values()):
        raise SamplesError(f"lengths must not be negative: {dict(given)}")
    lengths = plausible_shapes(model)[0] | dict(given)
    derived = dict(lengths)
    _derive_sums(derived)
    return derived | dict(given)


def _role(axis: Axis, axes: list[Axis]) -> Role:
    """What an axis means, judged by its name, its input's name and its place."""
    name, rank = axis.symbol.removeprefix(axis.port.name).lower(), len(axis.port.shape or ())
    cache = bool(_CACHE.search(axis.port.name)) and rank >= 3
    if "batch" in name or name in ("n", "b", "bs"):
        return "batch"
    if ("past" in name and "+" not in name) or (cache and axis.index > 0):
        return "past"
    if "total" in name or ("past" in name and "+" in name) or _is_total(axis, axes):
        return "total"
    if _SEQUENCE.search(name):
        return "sequence"
    if axis.index == 0:
        return "batch"
    return _image_role(axis, name) if rank >= 4 else "sequence"


def _image_role(axis: Axis, name: str) -> Role:
    shape = axis.port.shape or ()
    channels_last = shape[-1] in (1, 3, 4)
    first = 1 if channels_last else 2
    if axis.index == len(shape) - 1 if channels_last else axis.index == 1:
        return "channels"
    if name.startswith("w") or "width" in name:
        return "width"
    return "height" if axis.index == first or name.startswith("h") else "width"


def _is_total(axis: Axis, axes: list[Axis]) -> bool:
    """A mask over cached and new positions: its last axis is not that of the other inputs, and there is a cache."""
    if "mask" not in axis.port.name.lower() or axis.index == 0:
        return False
    others = {other.symbol for other in axes if other.port is not axis.port and "mask" not in other.port.name.lower()}
    return axis.symbol not in others and any(_CACHE.search(other.port.name) for other in axes)


def _derive_sums(lengths: dict[str, int]) -> None:
    """Gives dimensions that are named as a sum of others, such as ``past + sequence``, that sum."""
    for symbol in lengths:
        terms = [term.strip() for term in symbol.split("+")]
        if len(terms) > 1 and all(term in lengths or term.isdigit() for term in terms):
            lengths[symbol] = sum(lengths[term] if term in lengths else int(term) for term in terms)


def _from_weights(model: ir.Model, axes: list[Axis]) -> dict[str, int]:
    """Lengths that the weight of a convolution or a matrix product, which reads the input, dictates."""
    values = {value.name: value for value in model.graph.inputs}
    found: dict[str, int] = {}
    for axis in axes:
        for node, position in values[axis.port.name].uses():
            weight = node.inputs[1] if len(node.inputs) > 1 else None
            shape = None if weight is None or weight.shape is None else weight.shape
            length = None if shape is None or position != 0 else _wanted_length(node, shape, axis)
            if length:
                found.setdefault(axis.symbol, length)
    return found


def _wanted_length(node: ir.Node, weight: ir.Shape, axis: Axis) -> int | None:
    last = axis.index == len(axis.port.shape or ()) - 1
    if node.op_type == "Conv" and axis.index == 1 and isinstance(weight[1], int):
        return weight[1] * node.attributes.get_int("group", 1)
    if node.op_type == "MatMul" and last and len(weight) == 2 and isinstance(weight[0], int):
        return weight[0]
    if node.op_type == "Gemm" and last and not node.attributes.get_int("transA", 0):
        length = weight[1 if node.attributes.get_int("transB", 0) else 0]
        return length if isinstance(length, int) else None
    return None

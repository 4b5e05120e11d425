"""Makes up inputs that a model accepts: indices within their tables, masks, positions, states, noise."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import numpy as np
import onnx_ir as ir

from graphopt.errors import SamplesError
from graphopt.graph.signature import Port, Signature
from graphopt.samples import sizes
from graphopt.samples.uses import Uses, integer_uses

Fill = Callable[[tuple[int, ...], np.random.Generator, int], np.ndarray]
"""Values for one input: from its shape, a random generator and the sample's index."""

_MASK = re.compile(r"mask", re.IGNORECASE)
_SEGMENTS = re.compile(r"token_type|segment", re.IGNORECASE)
_POSITIONS = re.compile(r"position", re.IGNORECASE)
_LENGTHS = re.compile(r"(^|_)(len|lens|length|lengths)$", re.IGNORECASE)
_STATES = re.compile(
    r"past|cache|(^|[_.])(state|states|mem|memory|h|c|h_?0|c_?0|hx|cx|hn|cn|h_in|c_in|hidden|cell|hidden_in|cell_in|initial_[hc])([_.\d]|$)",
    re.IGNORECASE,
)
_ACTIVATIONS = re.compile(r"hidden_states|encoder", re.IGNORECASE)

_DEFAULT_IDS = 2
_SHORTEST_PADDED = 8
_STATE_SCALE = 0.1


class Maker:
    """Makes feeds for one model.

    Raises:
        SamplesError: an input is no tensor, or its rank is not known.
    """

    def __init__(self, model: ir.Model, signature: Signature) -> None:
        values = {value.name: value for value in model.graph.inputs}
        for port in signature.inputs:
            if port.dtype is None or port.shape is None:
                raise SamplesError(f"cannot make up the input {port.name}, which is no tensor of known rank; pass samples")
        self._ports = signature.inputs
        self._fills = {port.name: _fill(port, signature, integer_uses(values[port.name], model)) for port in signature.inputs}

    def feed(self, lengths: Mapping[str, int], index: int, seed: int) -> dict[str, np.ndarray]:
        """The feed of sample `index`, with symbolic dimensions as `lengths` says."""
        random = np.random.default_rng([seed, index])
        feed = {}
        for port in self._ports:
            values = self._fills[port.name](_shape(port, lengths), random, index)
            assert port.dtype is not None  # the constructor has refused others
            feed[port.name] = values if port.dtype == ir.DataType.STRING else values.astype(port.dtype.numpy())
        return feed


def _shape(port: Port, lengths: Mapping[str, int]) -> tuple[int, ...]:
    open_symbols = {axis.index: axis.symbol for axis in sizes.open_axes(Signature((port,), ()))}
    return tuple(length if isinstance(length, int) else lengths[open_symbols[axis]] for axis, length in enumerate(port.shape or ()))


def _fill(port: Port, signature: Signature, uses: Uses) -> Fill:
    """Chooses how to fill an input; what the graph says comes before what names suggest."""
    assert port.dtype is not None  # the caller has refused others
    name, rank = port.name, len(port.shape or ())
    if port.dtype == ir.DataType.STRING:
        return lambda shape, random, index: np.full(shape, "text", dtype=object)
    if uses.compared is not None and _is_scalar(port):
        return _constant(uses.compared)
    if _MASK.search(name):
        return _padded_mask if rank == 2 and not port.dtype.is_floating_point() else _constant(1)
    if port.dtype.is_floating_point():
        state = (_STATES.search(name) and not _ACTIVATIONS.search(name)) or _returns_as_state(port, signature)
        return _state if state else lambda shape, random, index: random.standard_normal(shape)
    if port.dtype == ir.DataType.BOOL:
        return _constant(True)
    if _SEGMENTS.search(name):
        return _constant(0)
    if _POSITIONS.search(name) and rank:
        return _positions(uses.limit)
    return _integers(port, signature, uses)


def _integers(port: Port, signature: Signature, uses: Uses) -> Fill:
    if _LENGTHS.search(port.name):
        return _constant(next((p.shape[1] for p in signature.inputs if p.shape and len(p.shape) > 1 and isinstance(p.shape[1], int)), 1))
    if uses.limit is None and (uses.shapes or _is_scalar(port)):
        return _constant(1)
    if uses.limit is None and port.dtype == ir.DataType.UINT8 and len(port.shape or ()) >= 3:
        return lambda shape, random, index: random.integers(0, 256, shape)
    high = max(1, _DEFAULT_IDS if uses.limit is None else uses.limit)
    return lambda shape, random, index: random.integers(0, high, shape)


def _is_scalar(port: Port) -> bool:
    return all(length == 1 for length in port.shape or ())


def _constant(value: float) -> Fill:
    return lambda shape, random, index: np.full(shape, value)


def _padded_mask(shape: tuple[int, ...], random: np.random.Generator, index: int) -> np.ndarray:
    """Ones; in every second sample the last quarter is padding, so that a mask that goes unread is seen."""
    mask = np.ones(shape, np.int64)
    if index % 2 and shape[-1] >= _SHORTEST_PADDED:
        mask[:, -(shape[-1] // 4) :] = 0
    return mask


def _state(shape: tuple[int, ...], random: np.random.Generator, index: int) -> np.ndarray:
    """Zeros, as at the start of a sequence; in later samples small values, since zeros hide the weights behind them."""
    return np.zeros(shape) if index == 0 else random.standard_normal(shape) * _STATE_SCALE


def _positions(limit: int | None) -> Fill:
    def fill(shape: tuple[int, ...], random: np.random.Generator, index: int) -> np.ndarray:
        positions = np.arange(shape[-1])
        return np.broadcast_to(positions if limit is None else positions % limit, shape)

    return fill


def _returns_as_state(port: Port, signature: Signature) -> bool:
    """An output of the same type and shape whose name begins or ends alike, such as ``h`` and ``hn``."""
    name = port.name.lower()
    return any(
        other.dtype == port.dtype
        and other.shape is not None
        and len(other.shape) == len(port.shape or ())
        and other.name.lower() in (f"{name}n", f"{name}_n", f"{name}_out", f"{name}_next", f"new_{name}", f"next_{name}", f"{name}o")
        for other in signature.outputs
    )

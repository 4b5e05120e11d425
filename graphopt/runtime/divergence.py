"""Divergence: how far two models are apart at values that correspond, all the way through."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.runtime.fidelity import IDENTICAL_DB, Fidelity, measure, merge
from graphopt.runtime.session import Feed, SessionOptions
from graphopt.runtime.trace import ValueTracer, trace_shapes

Array = np.ndarray[Any, Any]

_MEMORY = 256 * 2**20
"""Bytes of values of each model that are held at once."""
_SAME = 1e-3
"""Largest difference, relative to the largest magnitude, of values that are the same in another shape."""
SCALED_DB = 60.0
"""Signal-to-noise ratio from which on factors explain a difference."""
_MUCH_DB = 10.0
"""Factors of channels that bring a value so much closer have been moved there from the next layer, or to it."""
_ENOUGH = 16
"""Elements of a channel from which on a number of its own tells something: one that has a single element always has one that fits."""
_RANK_OF_TEXT = 3


@dataclass(frozen=True, eq=False)
class Moments:
    """Sums over the elements of two values, the reference first: of products and of squares, ``float64 [channels]``, or of all in one.

    Attributes:
        count: elements of each channel.
        product, reference, found: the sums.
    """

    count: int
    product: Array
    reference: Array
    found: Array

    @classmethod
    def of(cls, reference: Any, found: Any) -> Moments:
        """Of two arrays of floats with the same shape; zeros for anything else."""
        arrays = np.asarray(reference), np.asarray(found)
        if arrays[0].shape != arrays[1].shape or any(array.dtype.kind != "f" for array in arrays):
            return cls(0, *np.zeros((3, 1)))
        x, y = (_channels(array.astype(np.float64)) for array in arrays)
        return cls(x.shape[1], *(np.einsum("ck,ck->c", *pair) for pair in ((x, y), (x, x), (y, y))))

    @property
    def whole(self) -> Moments:
        """Of all channels together."""
        sums = (each.sum(keepdims=True) for each in (self.product, self.reference, self.found))
        return Moments(self.count * self.product.size, *sums)

    def plus(self, other: Moments) -> Moments:
        """Of the elements of both; in one where an axis that was taken for that of channels differs in length."""
        if self.product.size != other.product.size:
            return self.whole.plus(other.whole)
        sums = (self.product + other.product, self.reference + other.reference, self.found + other.found)
        return Moments(self.count + other.count, *sums)

    @property
    def factor(self) -> float | None:
        """The number that the reference has to be multiplied by; None where that leaves more noise than 60 dB below the value."""
        return float(self.whole.product[0] / self.whole.reference[0]) if self.whole.scaled_db > SCALED_DB else None

    @property
    def scaled_db(self) -> float:
        """Signal to noise in dB, each channel of the reference multiplied by the number that suits it best; 0 where that is unknown."""
        if not all(np.isfinite(each).all() for each in (self.product, self.reference, self.found)) or not self.product.any():
            return 0.0
        explained = self.product**2 / np.where(self.reference > 0, self.reference, 1.0)
        signal = float(self.found.sum())
        return 10 * math.log10(signal / max(signal - float(explained.sum()), signal * 10 ** (-IDENTICAL_DB / 10)))


def _channels(array: Array) -> Array:
    """``[channels, elements]``: along the second axis of pictures, else along the last."""
    if not array.ndim:
        return array.reshape(1, 1)
    moved = np.moveaxis(array, 1 if array.ndim > _RANK_OF_TEXT else -1, 0)
    return moved.reshape(moved.shape[0], -1) if array.size else np.zeros((1, 1))


@dataclass(frozen=True)
class Deviation:
    """How far a value is from its counterpart.

    Attributes:
        fidelity: over all samples.
        factor: what the reference has to be multiplied by; None where no number brings the two within 60 dB.
        channels_db: signal to noise in dB once each channel is multiplied by a number of its own; None where that explains little.
    """

    fidelity: Fidelity
    factor: float | None
    channels_db: float | None

    @classmethod
    def of(cls, fidelity: Fidelity, moments: Moments) -> Deviation:
        """Of what was summed up."""
        nearest = max(fidelity.sqnr_db, moments.whole.scaled_db)
        explains = moments.count >= _ENOUGH and fidelity.sqnr_db < SCALED_DB and moments.scaled_db > nearest + _MUCH_DB
        return cls(fidelity, moments.factor, moments.scaled_db if explains else None)


def divergence(
    a: ir.Model,
    b: ir.Model,
    pairs: Sequence[tuple[str, str]],
    feeds: Iterable[Feed],
    options: SessionOptions | None = None,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
) -> dict[str, Deviation]:
    """Runs two models on the same samples, without the runtime's optimizations, and compares values.

    Args:
        a: the first model, the reference.
        b: the second model.
        pairs: values of the main graphs that are compared: the name in ``a``, the name in ``b``.
        feeds: samples for both; run through once for each group of values that fits into memory.
        options: how to run.
        shapes: of the values of ``a`` with the first feed; traced where None.

    Returns:
        By the name in ``a``, in the order of ``pairs``; values that are no tensors are left out.

    Raises:
        SessionError: a model does not load or does not run.
    """
    first = next(iter(feeds), None)
    if first is None:
        return {}
    sizes = trace_shapes(a, first, options) if shapes is None else shapes
    found: dict[str, Deviation] = {}
    for group in _groups([pair for pair in pairs if pair[0] in sizes], sizes):
        tracers = ValueTracer(a, [name for name, _ in group], options), ValueTracer(b, [other for _, other in group], options)
        found |= _of_group(tracers, group, feeds)
    return found


def _of_group(tracers: tuple[ValueTracer, ValueTracer], group: Sequence[tuple[str, str]], feeds: Iterable[Feed]) -> dict[str, Deviation]:
    measured: dict[str, Fidelity] = {}
    moments: dict[str, Moments] = {}
    for feed in feeds:
        reference, found = tracers[0].run(feed), tracers[1].run(feed)
        paired = {name: _like(reference[name], found[other]) for name, other in group}
        measured = merge((measured, measure(reference, paired)))
        for name, other in paired.items():
            more = Moments.of(reference[name], other)
            moments[name] = moments[name].plus(more) if name in moments else more
    return {name: Deviation.of(fidelity, moments[name]) for name, fidelity in measured.items()}


def _like(reference: Any, found: Any) -> Any:
    """What was found, in the reference's shape where it is the same in another one."""
    x, y = np.asarray(reference), np.asarray(found)
    if x.shape == y.shape or x.size != y.size or x.dtype != y.dtype or x.dtype.kind not in "biuf":
        return found
    same = np.allclose(x.reshape(-1), y.reshape(-1), rtol=0, atol=_SAME * float(np.abs(x).max(initial=0)), equal_nan=True)
    return y.reshape(x.shape) if same else found


def _groups(pairs: Sequence[tuple[str, str]], shapes: Mapping[str, tuple[int, ...]]) -> Iterator[list[tuple[str, str]]]:
    group: list[tuple[str, str]] = []
    held = 0
    for pair in pairs:
        size = 4 * int(np.prod(shapes[pair[0]]))
        if group and held + size > _MEMORY:
            yield group
            group, held = [], 0
        group.append(pair)
        held += size
    if group:
        yield group

"""Divergence: how far two models are apart at values that correspond, all the way through."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir

from graphopt.runtime.fidelity import IDENTICAL_DB, Fidelity, measure, merge
from graphopt.runtime.session import Feed, SessionOptions
from graphopt.runtime.trace import ValueTracer, trace_shapes

_MEMORY = 256 * 2**20
"""Bytes of values of each model that are held at once."""
_SAME = 1e-3
"""Largest difference, relative to the largest magnitude, of values that are the same in another shape."""
_SCALED_DB = 60.0
"""Signal-to-noise ratio from which on one factor explains a difference."""


class Moments(NamedTuple):
    """Sums over the elements of two values, the reference first: of products and of squares."""

    product: float = 0.0
    reference: float = 0.0
    found: float = 0.0

    @classmethod
    def of(cls, reference: Any, found: Any) -> Moments:
        """Of two arrays of floats with the same shape; zeros for anything else."""
        arrays = np.asarray(reference), np.asarray(found)
        if arrays[0].shape != arrays[1].shape or any(array.dtype.kind != "f" for array in arrays):
            return cls()
        x, y = (array.reshape(-1).astype(np.float64) for array in arrays)
        return cls(float(x @ y), float(x @ x), float(y @ y))

    def __add__(self, other: tuple[float, ...]) -> Moments:  # type: ignore[override]  # sums, not a longer tuple
        return Moments(*(x + y for x, y in zip(self, other, strict=True)))

    @property
    def factor(self) -> float | None:
        """The number that the reference has to be multiplied by; None where that leaves more noise than 60 dB below the value."""
        if not all(map(math.isfinite, self)) or not self.product:
            return None
        noise = max(self.found - self.product**2 / self.reference, self.found * 10 ** (-IDENTICAL_DB / 10))
        return self.product / self.reference if 10 * math.log10(self.found / noise) > _SCALED_DB else None


@dataclass(frozen=True)
class Deviation:
    """How far a value is from its counterpart.

    Attributes:
        fidelity: over all samples.
        factor: what the reference has to be multiplied by; None where no number brings the two within 60 dB.
    """

    fidelity: Fidelity
    factor: float | None


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
    moments = {name: Moments() for name, _ in group}
    for feed in feeds:
        reference, found = tracers[0].run(feed), tracers[1].run(feed)
        paired = {name: _like(reference[name], found[other]) for name, other in group}
        measured = merge((measured, measure(reference, paired)))
        for name in moments:
            moments[name] += Moments.of(reference[name], paired[name])
    return {name: Deviation(fidelity, moments[name].factor) for name, fidelity in measured.items()}


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

"""Uniform grids for weights: ``w = (code - zero_point) * scale``, one scale a tensor, an output channel, or a block of inputs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from graphopt.errors import RecipeError

Array = np.ndarray[Any, Any]

SHRINKS = 32
"""How many clipped ranges the search tries; the fit by least squares then moves the best between its neighbours."""
REFITS = 3
CHUNK = 1 << 16
"""Weights searched at a time: what stays in the cache."""


@dataclass(frozen=True)
class Scheme:
    """The kind of a grid.

    Attributes:
        bits: 2 to 8; the number of codes is ``2**bits``. 7 bits in 8-bit storage are what 16-bit pair sums cannot saturate on.
        symmetric: codes are signed with the zero point 0; otherwise unsigned, with a zero point of their own.
        per: one scale per ``"tensor"``, per output ``"channel"``, or per so many consecutive inputs of a channel.
        mirrored: symmetric grids may have negative scales, so that the code without a counterpart (-8 of -8..7) lies on the side where
            the largest weight is: a tenth less error at 4 bits, a fifth at 2. For kernels that just multiply, as MatMulNBits;
            some runtimes refuse scales that are not positive.

    Raises:
        RecipeError: a value is out of range.
    """

    bits: int
    symmetric: bool = True
    per: Literal["tensor", "channel"] | int = "channel"
    mirrored: bool = False

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 8:
            raise RecipeError(f"a grid of {self.bits} bits does not exist: take 2 to 8")
        if isinstance(self.per, int) and self.per < 1:
            raise RecipeError(f"a block of {self.per} weights does not exist: take 16, 32, 64, 128 or 256")
        if self.mirrored and not self.symmetric:
            raise RecipeError("an asymmetric grid needs no negative scales: give one of symmetric and mirrored up")

    @property
    def low(self) -> int:
        """The smallest code."""
        return -(1 << (self.bits - 1)) if self.symmetric else 0

    @property
    def high(self) -> int:
        """The largest code."""
        return self.low + (1 << self.bits) - 1

    @property
    def dtype(self) -> np.dtype[Any]:
        """Codes are int8 or uint8, unpacked."""
        return np.dtype(np.int8 if self.symmetric else np.uint8)

    def block(self, width: int) -> int:
        """How many inputs of ``width`` share a scale."""
        return min(self.per, width) if isinstance(self.per, int) else width


@dataclass(frozen=True, eq=False)
class Grid:
    """The grid of one weight ``[groups, out, in]``.

    Attributes:
        scale: ``[groups, out, blocks]`` float32, not zero, negative only where the scheme is mirrored; ``[1, 1, 1]`` for one scale
            a tensor. The last block may be partial.
        zero_point: integers (int32) of the same shape, within the codes; so 0 is on every grid.
        scheme: what kind of grid it is.
    """

    scale: Array
    zero_point: Array
    scheme: Scheme

    def quantize(self, weight: Array) -> Array:
        """The nearest codes (ties to even, as QuantizeLinear): ``[groups, out, in]`` int8 or uint8."""
        block = self.scheme.block(weight.shape[-1])
        parts = into_blocks(weight, block)
        steps = round_steps(parts, self.scale[..., None], self.zero_point[..., None], self.scheme)
        return from_blocks(steps + self.zero_point[..., None].astype(steps.dtype), weight.shape[-1]).astype(self.scheme.dtype)

    def dequantize(self, codes: Array) -> Array:
        """The weights of codes ``[groups, out, in]``: float32, as DequantizeLinear computes them."""
        parts = into_blocks(codes.astype(np.int32), self.scheme.block(codes.shape[-1]))
        return from_blocks((parts - self.zero_point[..., None]).astype(np.float32) * self.scale[..., None], codes.shape[-1])

    def columns(self, width: int) -> tuple[Array, Array]:
        """Scale and zero point of each of ``width`` columns: two arrays that broadcast to ``[groups, out, width]``."""
        block = self.scheme.block(width)
        return np.repeat(self.scale, block, axis=-1)[..., :width], np.repeat(self.zero_point, block, axis=-1)[..., :width]


@dataclass(frozen=True, eq=False)
class Quantized:
    """A weight on a grid.

    Attributes:
        codes: ``[groups, out, in]`` int8 or uint8.
        grid: what the codes mean.
    """

    codes: Array
    grid: Grid

    @property
    def weight(self) -> Array:
        """The weights that the codes stand for: ``[groups, out, in]`` float32; computed at each call."""
        return self.grid.dequantize(self.codes)


def round_to_nearest(weight: Array, grid: Grid) -> Quantized:
    """Every weight ``[groups, out, in]`` at the nearest point of the grid, each by itself."""
    return Quantized(grid.quantize(weight), grid)


def fit_extremes(weight: Array, scheme: Scheme) -> Grid:
    """The finest grid that clips no weight.

    Args:
        weight: ``[groups, out, in]``, any float dtype, finite.
        scheme: the kind of grid.
    """
    low, high = _extremes(into_blocks(weight, scheme.block(weight.shape[-1])), scheme)
    return Grid(*_covering(low, high, scheme), scheme)


def fit_errors(weight: Array, scheme: Scheme, importance: Array) -> Grid:
    """The grid whose nearest points have the smallest weighted squared error; clips where that pays.

    A search over clipped ranges (and up to 4 bits over neighbouring zero points), then scales by least squares for the codes found.

    Args:
        weight: ``[groups, out, in]``, any float dtype, finite.
        scheme: the kind of grid.
        importance: ``[groups, in]``, not negative: the price of a squared error in each column, as the diagonal of H.
    """
    block = scheme.block(weight.shape[-1])
    parts = into_blocks(weight, block)
    price = into_blocks(importance.astype(parts.dtype)[:, None, :], block)
    if scheme.per == "tensor":
        return Grid(*_search(parts, price, scheme), scheme)
    scale = np.empty((*parts.shape[:2], parts.shape[2]), np.float32)
    zero_point = np.empty(scale.shape, np.int32)
    for groups, rows in _chunks(parts):
        scale[groups, rows], zero_point[groups, rows] = _search(parts[groups, rows], price[groups], scheme)
    return Grid(scale, zero_point, scheme)


def round_steps(values: Array, scale: Array, zero_point: Array, scheme: Scheme) -> Array:
    """The nearest codes, less the zero point, as floats: ``clip(round(values / scale))``; the arguments broadcast."""
    steps = values / scale
    np.rint(steps, out=steps)
    bounds = (np.asarray(end - zero_point, steps.dtype) for end in (scheme.low, scheme.high))
    return np.clip(steps, *bounds, out=steps)


def into_blocks(weight: Array, block: int) -> Array:
    """``[groups, out, in]`` as ``[groups, out, blocks, block]``, filled up with zeros, float16 as float32."""
    if weight.dtype == np.float16:
        weight = weight.astype(np.float32)
    missing = -weight.shape[-1] % block
    if missing:
        weight = np.pad(weight, ((0, 0), (0, 0), (0, missing)))
    return weight.reshape(*weight.shape[:-1], -1, block)


def from_blocks(parts: Array, width: int) -> Array:
    """The reverse of :func:`into_blocks` for ``width`` columns."""
    return parts.reshape(*parts.shape[:-2], -1)[..., :width]


def _chunks(parts: Array) -> Iterator[tuple[slice, slice]]:
    """Slices of groups and rows that hold about :data:`CHUNK` weights each."""
    groups, rows, blocks, block = parts.shape
    row_step = max(1, CHUNK // (blocks * block))
    group_step = max(1, CHUNK // (blocks * block * rows))
    for first in range(0, groups, group_step):
        for row in range(0, rows, row_step):
            yield slice(first, first + group_step), slice(row, row + row_step)


def _axes(scheme: Scheme) -> tuple[int, ...]:
    """The axes of blocks that one scale spans."""
    return (0, 1, 3) if scheme.per == "tensor" else (3,)


def _sum(values: Array, scheme: Scheme) -> Array:
    total: Array = values.sum(axis=_axes(scheme), keepdims=True)
    return total[..., 0]


def _extremes(parts: Array, scheme: Scheme) -> tuple[Array, Array]:
    """Smallest and largest weight of each scale, zero among them."""
    axes = _axes(scheme)
    low = parts.min(axis=axes, keepdims=True, initial=0.0)[..., 0]
    high = parts.max(axis=axes, keepdims=True, initial=0.0)[..., 0]
    return low, high


def _covering(low: Array, high: Array, scheme: Scheme) -> tuple[Array, Array]:
    """Scale and zero point whose codes reach from ``low`` to ``high`` and hardly beyond."""
    if scheme.mirrored:
        longer, shorter = np.maximum(high, -low), np.minimum(high, -low)
        size = np.maximum(longer / -scheme.low, shorter / scheme.high)
        scale = _usable(np.where(high > -low, -size, size))
        return scale, np.zeros(scale.shape, np.int32)
    if scheme.symmetric:
        scale = _usable(np.maximum(high / scheme.high, low / scheme.low))
        return scale, np.zeros(scale.shape, np.int32)
    scale = _usable((high - low) / (scheme.high - scheme.low))
    zero_point = np.clip(np.rint(scheme.low - low / scale), scheme.low, scheme.high)
    return scale, zero_point.astype(np.int32)


def _usable(scale: Array) -> Array:
    """A float32 scale that can be divided by: 1 where all weights are zero, no subnormal numbers."""
    size = np.maximum(np.abs(scale), np.finfo(np.float32).tiny)
    return np.where(scale == 0, 1.0, np.copysign(size, scale)).astype(np.float32)


def _search(parts: Array, price: Array, scheme: Scheme) -> tuple[Array, Array]:
    """Scale and zero point of least weighted error for weights ``[groups, out, blocks, block]``."""
    widest, centre = _covering(*_extremes(parts, scheme), scheme)
    scale, zero_point = widest, centre
    error = _error(parts, price, scale, zero_point, scheme)
    smallest = {2: 0.12, 3: 0.16, 4: 0.22, 5: 0.3, 6: 0.35}.get(scheme.bits, 0.4)
    shifts = (0, -1, 1) if not scheme.symmetric and scheme.bits <= 4 else (0,)
    half_step = _sum(np.broadcast_to(price, parts.shape), scheme) / 4
    for shift in shifts:
        shifted = np.clip(centre + shift, scheme.low, scheme.high)
        for shrink in np.geomspace(1.0, smallest, SHRINKS if shift == 0 else SHRINKS // 2):
            trial = _usable(widest * np.float32(shrink))
            other = _error(parts, price, trial, shifted, scheme)
            scale, zero_point, error = _better((scale, zero_point, error), (trial, shifted, other))
            # What is clipped now, and only grows as ranges shrink, errs by no less than all does, less half a step everywhere.
            if ((other - half_step * trial**2 > error) | (error == 0)).all():
                break
    for _ in range(REFITS):
        steps = round_steps(parts, scale[..., None], zero_point[..., None], scheme)
        weighted = price * steps
        above, below = _sum(weighted * parts, scheme), _sum(weighted * steps, scheme)
        trial = _usable(np.where(below > 0, above / np.where(below > 0, below, 1.0), scale))
        other = _error(parts, price, trial, zero_point, scheme)
        scale, zero_point, error = _better((scale, zero_point, error), (trial, zero_point, other))
    return scale, zero_point


_Found = tuple[Array, Array, Array]
"""Scale, zero point and error."""


def _better(best: _Found, trial: _Found) -> _Found:
    """The one of less error, scale by scale."""
    wins = trial[2] < best[2]
    return np.where(wins, trial[0], best[0]), np.where(wins, trial[1], best[1]), np.where(wins, trial[2], best[2])


def _error(parts: Array, price: Array, scale: Array, zero_point: Array, scheme: Scheme) -> Array:
    change = round_steps(parts, scale[..., None], zero_point[..., None], scheme)
    change *= scale[..., None]
    change -= parts
    np.square(change, out=change)
    change *= price
    return _sum(change, scheme)

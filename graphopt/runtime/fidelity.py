"""How close the outputs of two models are, output by output and over many samples."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

IDENTICAL_DB = 200.0
"""Signal-to-noise ratio reported for outputs that do not differ at all; larger ones are cut to it."""


@dataclass(frozen=True)
class Fidelity:
    """How close one output is to its reference, over all samples measured so far.

    Attributes:
        name: the output's name; an element of a sequence or map output is ``name[0]`` or ``name[key]``.
        elements: number of elements compared.
        exact: the output is integer, boolean or text, so that every element must be equal.
        max_abs: largest absolute difference; infinite where one side alone is NaN or infinite.
        relative: largest absolute difference of a sample / largest absolute reference of that sample; the worst sample counts.
        signal: sum of squares of the reference.
        noise: sum of squares of the differences.
        different: number of elements that are not equal.
        top1_equal: positions whose largest element along the last axis has the same index.
        top1_total: such positions; 0 where the last axis has length 1 or the output is exact.
        problem: a difference in kind (missing, other shape, other type), or an empty string.
    """

    name: str
    elements: int = 0
    exact: bool = False
    max_abs: float = 0.0
    relative: float = 0.0
    signal: float = 0.0
    noise: float = 0.0
    different: int = 0
    top1_equal: int = 0
    top1_total: int = 0
    problem: str = ""

    @property
    def sqnr_db(self) -> float:
        """Signal-to-noise ratio in dB, at most 200 (identical); minus infinity for what cannot be compared."""
        if self.problem or not math.isfinite(self.noise):
            return -math.inf
        if self.noise == 0.0:
            return IDENTICAL_DB
        return min(IDENTICAL_DB, 10 * math.log10(self.signal / self.noise)) if self.signal else -math.inf

    @property
    def top1(self) -> float | None:
        """Share of positions that agree in their largest element; None where that makes no sense."""
        return self.top1_equal / self.top1_total if self.top1_total else None

    @property
    def mismatches(self) -> float:
        """Share of elements that are not equal."""
        return self.different / self.elements if self.elements else 0.0

    def within(self, tolerance: float) -> bool:
        """Whether an exact output is equal, and another one differs by at most `tolerance` of its largest magnitude."""
        return not self.problem and (self.different == 0 or (not self.exact and self.relative <= tolerance))

    def __str__(self) -> str:
        if self.problem:
            return f"{self.name}: {self.problem}"
        if self.exact:
            return f"{self.name}: {self.different} of {self.elements} elements differ"
        top1 = "" if self.top1 is None else f", top-1 agreement {self.top1:.2%}"
        return f"{self.name}: relative error {self.relative:.1e}, {self.sqnr_db:.1f} dB{top1}"


def measure(reference: Mapping[str, Any], found: Mapping[str, Any]) -> dict[str, Fidelity]:
    """Compares the outputs of one sample.

    Args:
        reference: outputs of the original: arrays, or lists and dicts of arrays, or None, by name.
        found: outputs of the other model; names that the reference lacks are ignored.

    Returns:
        One entry per array of the reference, in its order.
    """
    pairs = (pair for name in reference for pair in _leaves(name, reference[name], found.get(name)))
    return {fidelity.name: fidelity for fidelity in pairs}


def merge(parts: Iterable[Mapping[str, Fidelity]]) -> dict[str, Fidelity]:
    """Joins the measurements of several samples or shards into one per output."""
    merged: dict[str, Fidelity] = {}
    for part in parts:
        for name, fidelity in part.items():
            merged[name] = _join(merged[name], fidelity) if name in merged else fidelity
    return merged


def within(reference: Mapping[str, Any], found: Mapping[str, Any], tolerance: float) -> bool:
    """Whether all outputs of one sample are close: integers, booleans and text equal, others as `Fidelity.within` says."""
    return all(fidelity.within(tolerance) for fidelity in measure(reference, found).values())


def worst(measured: Mapping[str, Fidelity]) -> Fidelity | None:
    """The output that is furthest from its reference, or None where nothing was measured."""
    return max(measured.values(), key=lambda f: (bool(f.problem), f.mismatches if f.exact else f.relative), default=None)


def _leaves(name: str, reference: Any, found: Any) -> Iterator[Fidelity]:
    if isinstance(reference, (list, tuple, Mapping)):
        yield from _container(name, reference, found)
    elif reference is None or found is None:
        yield Fidelity(name, exact=True, problem="" if reference is found else "missing" if found is None else "was empty, is not")
    else:
        yield _array(name, np.asarray(reference), np.asarray(found))


def _container(name: str, reference: Any, found: Any) -> Iterator[Fidelity]:
    expected, actual = _items(reference), _items(found)
    if actual is None or expected is None or expected.keys() != actual.keys():
        have = "none" if actual is None else str(len(actual))
        yield Fidelity(name, exact=True, problem=f"{len(expected or ())} elements expected, found {have}, or other keys")
        return
    yield Fidelity(name, exact=True)
    for key, value in expected.items():
        yield from _leaves(f"{name}[{key}]", value, actual[key])


def _items(value: Any) -> dict[Any, Any] | None:
    if isinstance(value, Mapping):
        return dict(value)
    return dict(enumerate(value)) if isinstance(value, (list, tuple)) else None


def _array(name: str, reference: np.ndarray, found: np.ndarray) -> Fidelity:
    if reference.shape != found.shape:
        return Fidelity(name, problem=f"shape {list(reference.shape)} expected, found {list(found.shape)}")
    if reference.dtype.kind in "biuOSU":
        different = int(np.count_nonzero(reference != found))
        return Fidelity(name, elements=reference.size, exact=True, different=different, max_abs=_integer_distance(reference, found))
    return _floats(name, reference, found)


def _integer_distance(reference: np.ndarray, found: np.ndarray) -> float:
    if reference.size == 0 or reference.dtype.kind in "OSU" or found.dtype.kind in "OSU":
        return 0.0
    return float(np.abs(reference.astype(np.float64) - found.astype(np.float64)).max())


def _floats(name: str, reference: np.ndarray, found: np.ndarray) -> Fidelity:
    wide = np.complex128 if reference.dtype.kind == "c" else np.float64
    a, b = reference.astype(wide), found.astype(wide)
    with np.errstate(invalid="ignore", over="ignore"):
        gap = np.abs(a - b)
    finite = np.abs(a)
    if not np.isfinite(gap.max(initial=0.0)):
        gap[(a == b) | (np.isnan(a) & np.isnan(b))] = 0.0
        gap[np.isnan(gap)] = math.inf
        finite = finite[np.isfinite(a)]
    scale = float(finite.max(initial=0.0))
    max_abs = float(gap.max(initial=0.0))
    comparable = a.ndim > 0 and a.size > 0 and a.shape[-1] > 1 and wide is np.float64
    agree = np.asarray(a.argmax(-1) == b.argmax(-1)) if comparable else np.zeros(0, bool)
    return Fidelity(
        name,
        elements=a.size,
        max_abs=max_abs,
        relative=max_abs / scale if scale else max_abs,
        signal=float(np.square(finite).sum()),
        noise=float(np.square(gap).sum()),
        different=int(np.count_nonzero(gap)),
        top1_equal=int(np.count_nonzero(agree)),
        top1_total=agree.size,
    )


def _join(a: Fidelity, b: Fidelity) -> Fidelity:
    return replace(
        a,
        elements=a.elements + b.elements,
        exact=a.exact or b.exact,
        max_abs=max(a.max_abs, b.max_abs),
        relative=max(a.relative, b.relative),
        signal=a.signal + b.signal,
        noise=a.noise + b.noise,
        different=a.different + b.different,
        top1_equal=a.top1_equal + b.top1_equal,
        top1_total=a.top1_total + b.top1_total,
        problem=a.problem or b.problem,
    )

"""Divergence: how far two models are apart at values that correspond, all the way through."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.runtime.fidelity import Fidelity, measure, merge
from graphopt.runtime.session import Feed, SessionOptions
from graphopt.runtime.trace import ValueTracer, trace_shapes

_MEMORY = 256 * 2**20
"""Bytes of values of each model that are held at once."""


def divergence(
    a: ir.Model, b: ir.Model, pairs: Sequence[tuple[str, str]], feeds: Iterable[Feed], options: SessionOptions | None = None
) -> dict[str, Fidelity]:
    """Runs two models on the same samples, without the runtime's optimizations, and compares values.

    Args:
        a: the first model, the reference.
        b: the second model.
        pairs: values of the main graphs that are compared: the name in ``a``, the name in ``b``.
        feeds: samples for both; run through once for each group of values that fits into memory.
        options: how to run.

    Returns:
        By the name in ``a``, in the order of ``pairs``; values that are no tensors are left out.

    Raises:
        SessionError: a model does not load or does not run.
    """
    measured: dict[str, Fidelity] = {}
    first = next(iter(feeds), None)
    if first is None:
        return measured
    shapes, its = trace_shapes(a, first, options), trace_shapes(b, first, options)
    for group in _groups([pair for pair in pairs if pair[0] in shapes and pair[1] in its], shapes):
        reference = ValueTracer(a, [name for name, _ in group], options)
        found = ValueTracer(b, [other for _, other in group], options)
        measured |= merge(_of_feed(reference.run(feed), found.run(feed), group) for feed in feeds)
    return measured


def _of_feed(reference: Mapping[str, Any], found: Mapping[str, Any], group: Sequence[tuple[str, str]]) -> dict[str, Fidelity]:
    return measure(reference, {name: found[other] for name, other in group})


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

"""Islands: which nodes run in integers together, and which of their values share a grid. Pure analysis of the graph."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from graphopt.graph.shapes.dims import evaluate, symbols_of
from graphopt.graph.view import View, operator_of
from graphopt.passes.quantize.static.grids import Shared, Union, grids_of
from graphopt.passes.quantize.static.kernels import Ground, Kernel, Kind, kernel_of

_LENGTH = 64
"""What an unknown length counts where sizes are compared."""


@dataclass(frozen=True, eq=False)
class Plan:
    """What runs in integers.

    Attributes:
        kernels: by node, in the order of the graph.
        grids: every value that is stored in codes is in one of them.
        joined: Concat nodes whose inputs and output share a grid, so that codes are only moved.
    """

    kernels: Mapping[ir.Node, Kernel]
    grids: tuple[Shared, ...]
    joined: frozenset[ir.Node]

    @property
    def layers(self) -> Iterator[Kernel]:
        """The kernels with a weight."""
        return (kernel for kernel in self.kernels.values() if kernel.kind is Kind.LAYER)

    @property
    def made(self) -> Mapping[ir.Value, Kernel]:
        """The values that come out as codes, with what makes them."""
        return {value: kernel for kernel in self.kernels.values() for value in kernel.outputs}

    @property
    def islands(self) -> Iterator[list[Kernel]]:
        """Kernels that hang together through codes."""
        return _components(self.kernels.values())


def plan_of(model: ir.Model, ground: Ground, is_allowed: Callable[[Kernel], bool]) -> Plan:
    """Plans the islands of a model: convolutions, and between them all that saves conversions.

    Args:
        model: stays as it is; its main graph is looked at.
        ground: what nodes are judged on.
        is_allowed: whether a kernel may be used; asked for each candidate.
    """
    found: dict[ir.Node, Kernel] = {}
    inside: set[ir.Node] = set()
    for node in model.graph:
        kernel = None if node in inside else kernel_of(node, ground)
        if kernel is not None and is_allowed(kernel):
            found[node] = kernel
            inside.update(kernel.absorbed)
    size_of = _Sizes(ground.view)
    while True:
        idle = _idle(found, size_of)
        if not idle:
            break
        for node in idle:
            del found[node]
    return Plan(found, *grids_of(found, ground.view))


class _Sizes:
    """Elements of values, unknown lengths counted alike."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._known: dict[ir.Value, int] = {}

    def __call__(self, value: ir.Value) -> int:
        if value not in self._known:
            shape = self._view.shape(value) or ()
            lengths = (evaluate(dim, dict.fromkeys(symbols_of(dim), _LENGTH)) or 1 for dim in shape)
            self._known[value] = max(1, math.prod(lengths))
        return self._known[value]


def _idle(kernels: Mapping[ir.Node, Kernel], size_of: Callable[[ir.Value], int]) -> list[ir.Node]:
    """Kernels that cost more conversions than they save, products that stand alone, and islands without a layer."""
    makers = {value: kernel for kernel in kernels.values() for value in kernel.outputs}
    readers: dict[ir.Value, list[Kernel]] = {}
    for kernel in kernels.values():
        for value in kernel.inputs:
            readers.setdefault(value, []).append(kernel)
    idle = [node for node, kernel in kernels.items() if not _is_worth_it(kernel, makers, readers, size_of)]
    return idle or _tails(kernels, readers)


def _tails(kernels: Mapping[ir.Node, Kernel], readers: Mapping[ir.Value, list[Kernel]]) -> list[ir.Node]:
    """Arithmetic after the last layer: it would round once more, and save next to nothing. Kernels come in the order of the graph."""
    leading: set[Kernel] = set()
    for kernel in reversed([*kernels.values()]):
        after = [reader for value in kernel.outputs for reader in readers.get(value, ())]
        if kernel.kind is Kind.LAYER or any(reader in leading for reader in after):
            leading.add(kernel)
    made = {value for kernel in kernels.values() for value in kernel.outputs}
    return [
        node
        for node, kernel in kernels.items()
        if kernel not in leading and (kernel.kind is Kind.ARITHMETIC or made.isdisjoint(kernel.inputs))
    ]


def _is_worth_it(
    kernel: Kernel, makers: Mapping[ir.Value, Kernel], readers: Mapping[ir.Value, list[Kernel]], size_of: Callable[[ir.Value], int]
) -> bool:
    is_read = any(value in readers for value in kernel.outputs)
    if kernel.kind is Kind.LAYER:
        is_fed = all(value in makers for value in kernel.inputs)
        # Quantized at each call, a linear layer is as fast, and its range fits better: only what stands within an island stays.
        return operator_of(kernel.node) == "Conv" or (is_fed and is_read)
    saved = 0
    for value in kernel.inputs:
        if value in makers:
            saved += size_of(value)
        elif value.const_value is None and readers[value] == [kernel]:
            saved -= size_of(value)
    for value in kernel.outputs:
        saved += size_of(value) if value in readers else 0
        saved -= size_of(value) if _has_other_uses(value, readers.get(value, ())) else 0
    return saved > 0 or (saved == 0 and kernel.kind is not Kind.ARITHMETIC)


def _has_other_uses(value: ir.Value, readers: Collection[Kernel]) -> bool:
    nodes = {kernel.node for kernel in readers}
    return value.is_graph_output() or any(use.node not in nodes for use in value.uses())


def _components(kernels: Iterable[Kernel]) -> Iterator[list[Kernel]]:
    union = Union()
    for kernel in kernels:
        values = (*kernel.inputs, *kernel.outputs)
        for value in values[1:]:
            union.join(values[0], value)
    islands: dict[ir.Value, list[Kernel]] = {}
    for kernel in kernels:
        islands.setdefault(union.root(kernel.outputs[0]), []).append(kernel)
    yield from islands.values()

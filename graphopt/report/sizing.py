"""What a model costs at the sizes that suit it best, where the caller leaves some open."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import onnx_ir as ir

from graphopt.errors import GraphoptError
from graphopt.graph.cost import Cost, cost_of
from graphopt.graph.edits import all_nodes
from graphopt.graph.shapes import dims
from graphopt.graph.shapes.inference import Dim, shapes_of
from graphopt.graph.signature import signature_of
from graphopt.runtime.session import Feed, SessionOptions
from graphopt.runtime.trace import ShapeTracer, trace_shapes
from graphopt.samples import Samples, plausible_shapes
from graphopt.samples.sizes import complete, open_axes


def sized_cost(model: ir.Model, given: Mapping[str, int]) -> tuple[dict[str, int], Cost]:
    """The lengths of all open dimensions, and the cost at them; of the plausible lengths those that suit the model best.

    Shapes are derived; where that does not suffice and the model runs, they are traced.

    Args:
        model: the model.
        given: lengths by name of a dimension, ``INPUT.axisN`` for one without a name; the others are made up.

    Raises:
        SamplesError: a name is no open dimension of the model.
    """
    complete(signature_of(model), given, model)
    first, *others = plausible_shapes(model)
    candidates = [_completed(model, made_up, given) for made_up in (*others, first)]  # the first alone has a batch of two
    symbolic = _symbolic(model)
    lengths, derived = min(((one, _bound(model, symbolic, one)) for one in candidates), key=lambda pair: _misfit(pair[1]))
    cost = cost_of(model, derived)
    if not cost.unknown:
        return lengths, cost
    try:
        feed = next(iter(Samples.synthetic(model, lengths, count=1)))
        return lengths, cost_of(model, derived | trace_shapes(model, feed))
    except GraphoptError:  # it does not run here, or not at these lengths: what is known is told
        return lengths, cost


def shapes_at(model: ir.Model, feeds: Sequence[Feed], options: SessionOptions | None = None) -> list[dict[str, tuple[int, ...]]]:
    """The shapes of all values of the main graph for each of some feeds: derived, or traced where that does not suffice.

    Raises:
        SessionError: the model has to be traced, and does not load or run.
    """
    symbolic = _symbolic(model)
    found = [_bound(model, symbolic, _lengths(model, feed)) for feed in feeds]
    made = {value.name for node in model.graph for value in node.outputs if value.name}
    fit = (shapes.get(name) == array.shape for shapes, feed in zip(found, feeds, strict=True) for name, array in feed.items())
    if all(made <= shapes.keys() for shapes in found) and all(fit):
        return found
    tracer = ShapeTracer(model, options)
    return [tracer.run(feed) for feed in feeds]


def _lengths(model: ir.Model, feed: Feed) -> dict[str, int]:
    return {axis.symbol: feed[axis.port.name].shape[axis.index] for axis in open_axes(signature_of(model))}


def _misfit(shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, int]:
    """How badly lengths suit a model, for the worse: how many values would have a negative length, and how many none at all."""
    shortest = [min(shape, default=1) for shape in shapes.values()]
    return sum(length < 0 for length in shortest), shortest.count(0)


def _completed(model: ir.Model, made_up: Mapping[str, int], given: Mapping[str, int]) -> dict[str, int]:
    simple = {name: length for name, length in made_up.items() if "+" not in name}  # sums follow from their terms
    return complete(signature_of(model), simple | dict(given), model)


def _symbolic(model: ir.Model) -> dict[str, tuple[Dim, ...]]:
    shapes = shapes_of(model)
    values = (value for node in all_nodes(model) for value in (*node.inputs, *node.outputs) if value is not None and value.name)
    found = {value.name or "": shapes.of(value) for value in (*model.graph.inputs, *values)}
    return {name: shape for name, shape in found.items() if shape is not None}


def _bound(model: ir.Model, symbolic: Mapping[str, tuple[Dim, ...]], lengths: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
    """The shapes in numbers, those left out whose lengths stay open."""
    symbols = dict(_symbols(model, symbolic, lengths))
    numbers = {dim: dims.evaluate(dim, symbols) for dim in {dim for shape in symbolic.values() for dim in shape}}
    bound = {name: tuple(number for dim in shape if (number := numbers[dim]) is not None) for name, shape in symbolic.items()}
    return {name: shape for name, shape in bound.items() if len(shape) == len(symbolic[name])}


def _symbols(model: ir.Model, symbolic: Mapping[str, tuple[Dim, ...]], lengths: Mapping[str, int]) -> Iterator[tuple[str, int]]:
    """Lengths by symbol of the derived shapes, in which dimensions without a name have symbols of their own."""
    for value in model.graph.inputs:
        for axis, (declared, dim) in enumerate(zip(value.shape or (), symbolic.get(value.name or "", ()), strict=False)):
            name = f"{value.name}.axis{axis}" if isinstance(declared, int) or not declared.value else declared.value
            if name in lengths:
                yield str(dim), lengths[name]

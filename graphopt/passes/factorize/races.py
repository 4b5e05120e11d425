"""Races between a layer and the two that it may become, as models of nothing but that."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphopt.graph.edits import Names
from graphopt.graph.layers import Layer
from graphopt.passes.base import Context
from graphopt.passes.factorize.forms import Form, Shapes
from graphopt.passes.racing import remembered, second_chance

_FASTER = 0.98
"""Two layers have to take this share of the time of one: the rest is noise."""
_IR_VERSION = 10


def slower(form: Form, rank: int, shapes: Shapes, context: Context) -> str:
    """Says that two layers of a rank take longer than the layer, with their times; empty where they do not.

    Args:
        form: of the layer.
        rank: of what it may become.
        shapes: of values, by name, on one sample.
        context: tells how to run; times are kept in it, for all layers like this one.
    """
    layer = form.layer
    data = shapes[layer.input.name or ""]
    settings = tuple((name, str(each.value)) for name, each in sorted(layer.node.attributes.items()))
    key = ("factorize", layer.node.op_type, settings, layer.stored_shape, layer.index, data, rank, context.options.threads)
    whole, split = remembered(context, key, lambda: _seconds(form, rank, shapes, context))
    if split <= _FASTER * whole:
        return ""
    return f"as {form} of rank {rank} it takes {split * 1e6:.1f} us, whole {whole * 1e6:.1f} us"


def _seconds(form: Form, rank: int, shapes: Shapes, context: Context) -> list[float]:
    shape, generator = shapes[form.layer.input.name or ""], np.random.default_rng(0)
    whole = _alone(form.layer, shape)
    split = whole.clone()
    twin = form.of(split.graph[-1])
    first, second = (generator.standard_normal(size, np.float32) for size in twin.sizes(rank))
    twin.put((first, second), Names(split))
    feed = {whole.graph.inputs[0].name or "": generator.standard_normal(shape, np.float32).astype(form.layer.weight().dtype)}
    return second_chance([whole, split], feed, context.options, _FASTER)


def _alone(layer: Layer, shape: tuple[int, ...]) -> ir.Model:
    """A model of nothing but a layer."""
    graph = ir.convenience.extract(layer.graph, [layer.input], [layer.node.outputs[0]])
    graph.inputs[0].shape = ir.Shape(shape)
    graph.inputs[0].type = ir.TensorType(ir.DataType.from_numpy(layer.weight().dtype))
    graph.outputs[0].shape = None
    return ir.Model(graph, ir_version=_IR_VERSION)

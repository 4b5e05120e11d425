"""A random model: steps of all kinds, some results of which become outputs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx
from hypothesis import strategies
from hypothesis.strategies import DrawFn
from onnx import helper

from tests.random_graphs.activations import STEPS_OF_ACTIVATIONS
from tests.random_graphs.algebra import STEPS_OF_ALGEBRA
from tests.random_graphs.attentions import STEPS_OF_ATTENTIONS
from tests.random_graphs.choices import Choices, Drawn, Seeded, Source
from tests.random_graphs.grower import DTYPES, Grower, Model
from tests.random_graphs.layers import STEPS_OF_LAYERS
from tests.random_graphs.lengths import STEPS_OF_LENGTHS
from tests.random_graphs.nested import STEPS_OF_SUBGRAPHS
from tests.random_graphs.networks import STEPS_OF_NETWORKS
from tests.random_graphs.norms import STEPS_OF_NORMS
from tests.random_graphs.operators import STEPS_OF_ONE, Step
from tests.random_graphs.rotary import STEPS_OF_ROTATIONS
from tests.random_graphs.selections import STEPS_OF_SELECTIONS
from tests.random_graphs.simple import STEPS_OF_SIMPLE
from tests.random_graphs.values import OTHER_SIZES, SYMBOLS, Value, is_static
from tests.random_graphs.views import STEPS_OF_VIEWS

Target = Literal["cpu", "portable"]
Feed = dict[str, np.ndarray]
_OPSETS = (18, 17, 13, 11, 14, 20, 21, 12, 15, 16, 19, 22, 23, 24, 18, 17, 13)
_KINDS = ("float32",) * 17 + ("float64", "float64", "float16")
_NOT_WHEN_EMPTY = ("Einsum", "MatMul", "Gemm", "Attention", "Cos", "Conv", "ConvTranspose", "AveragePool", "MaxPool", "Resize", "Reduce")
_FAMILIES: tuple[tuple[Step, ...], ...] = (
    STEPS_OF_SIMPLE, STEPS_OF_VIEWS, STEPS_OF_LENGTHS, STEPS_OF_LAYERS, STEPS_OF_ONE, STEPS_OF_NETWORKS, STEPS_OF_ACTIVATIONS,
    STEPS_OF_ACTIVATIONS, STEPS_OF_NORMS, STEPS_OF_ALGEBRA, STEPS_OF_ATTENTIONS, STEPS_OF_ATTENTIONS, STEPS_OF_ROTATIONS,
    STEPS_OF_SELECTIONS,
)  # fmt: skip
_NAMES = {size: name for name, size in SYMBOLS.items()}


@dataclass(frozen=True)
class Sample:
    """A random model with inputs for it.

    Attributes:
        proto: the model.
        feeds: inputs at two sizes of the dynamic lengths, at which it runs.
        others: inputs at sizes that it need not accept.
        tolerance: of rounding, relative to the largest magnitude or 1.
        target: what it is to be optimized for.
    """

    proto: onnx.ModelProto
    feeds: list[Feed]
    others: list[Feed]
    tolerance: float
    target: Target


def sample(source: Source) -> Sample:
    """Makes a model from decisions."""
    choices = Choices(source)
    target: Target = "portable" if choices.chance(30) else "cpu"
    newest = target == "portable" and choices.chance(60)  # where most of what is special to it is standard
    opset, kind = choices.one_of((23, 24) if newest else _OPSETS), choices.one_of(_KINDS)
    model = Model(choices, opset, kind, np.random.default_rng(choices.integer(0, 9999)))
    main = Grower(model)
    for _ in range(choices.integer(1, 8)):
        family = STEPS_OF_SUBGRAPHS if choices.chance(8) else choices.one_of(_FAMILIES)
        choices.one_of(family)(main)
    while not _results(main):
        main.exactly("Relu", main.float_value(1, 2))
    proto = _proto(main)
    tolerance = {"float16": 2e-2, "float32": 1e-4, "float64": 1e-4}[kind]
    may_be_empty = accepts_empty(proto.graph)
    others = [sizes for sizes in OTHER_SIZES if may_be_empty or (all(sizes.values()) and not shortens(proto.graph))]
    feeds = [_feed(model, {name: size[number] for name, size in SYMBOLS.items()}) for number in (0, 1)]
    return Sample(proto, feeds, [_feed(model, sizes) for sizes in others], tolerance, target)


def accepts_empty(graph: onnx.GraphProto) -> bool:
    """Whether a graph can be asked to run on empty tensors.

    Some operators end the runtime's process on them, its RotaryEmbedding (of Cos and more) takes no empty batch, and its optimizations
    change the shapes that reductions give. A length of
    zero in the computed target of a Reshape stands for the length of its input, so that what such a model does with an empty
    input is no part of what it means.
    """
    for node in graph.node:
        if node.op_type.startswith(_NOT_WHEN_EMPTY) or (node.op_type == "Reshape" and not node.input[1].startswith("c")):
            return False
        if not all(accepts_empty(attribute.g) for attribute in node.attribute):
            return False
    return True


def shortens(graph: onnx.GraphProto) -> bool:
    """Whether lengths of a graph may be zero where no length of an input is."""
    for node in graph.node:
        if node.op_type in ("Slice", "Range", "MaxPool", "AveragePool") or any(shortens(attribute.g) for attribute in node.attribute):
            return True
    return False


def seeded(seed: int) -> Sample:
    """The model of a seed."""
    return sample(Seeded(seed))


@strategies.composite
def samples(draw: DrawFn) -> Sample:
    """Models that hypothesis can shrink."""
    return sample(Drawn(draw))


def _results(main: Grower) -> list[Value]:
    made = {name for node in main.nodes for name in node.output}
    return [value for value in main.pool if value.name in made]


def _outputs(main: Grower) -> list[Value]:
    """Every value that nobody uses, and in some models others; a few are left unused."""
    used = {name for node in main.nodes for name in _used(node)}
    results = _results(main)
    ends = [value for value in results if value.name not in used]
    others = main.choices.one_of([0, 6, 15, 0])
    chosen = [value for value in results if main.choices.chance(92 if value in ends else others)]
    return chosen or ends[-1:] or results[-1:]


def _used(node: onnx.NodeProto) -> set[str]:
    names = set(node.input)
    for attribute in node.attribute:
        for inner in attribute.g.node:
            names |= _used(inner)
        names |= {value.name for value in attribute.g.output}
    return names


def _proto(main: Grower) -> onnx.ModelProto:
    model, choices = main.model, main.choices
    inputs = [_info(value, [_length(size) for size in value.shape]) for value in model.inputs] + model.defaults
    outputs = [
        _info(value, None if choices.chance(40) else [f"{value.name}_{axis}" for axis in range(value.rank)]) for value in _outputs(main)
    ]
    nodes = main.nodes
    if choices.chance(2) and not any(attribute.g.node for node in nodes for attribute in node.attribute):
        nodes = choices.shuffled(nodes)  # the runtime takes them in any order
    graph = helper.make_graph(nodes, "random", inputs, outputs, main.initializers)
    imports = [helper.make_opsetid(domain, 1 if domain else model.opset) for domain in sorted({"", *_domains(nodes)})]
    return helper.make_model(graph, opset_imports=imports, ir_version=choices.one_of([8, 10]), functions=model.functions)


def _domains(nodes: Iterable[onnx.NodeProto]) -> Iterator[str]:
    for node in nodes:
        yield node.domain
        for attribute in node.attribute:
            yield from _domains(attribute.g.node)


def _length(size: tuple[int, int]) -> int | str:
    return size[0] if is_static(size) else _NAMES[size]


def _info(value: Value, shape: list[int | str] | list[str] | None) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(value.name, DTYPES[value.dtype], shape)


def _feed(model: Model, sizes: dict[str, int]) -> Feed:
    feed: Feed = {}
    for number, value in enumerate(model.inputs):
        shape = [sizes[_NAMES[size]] if not is_static(size) else size[0] for size in value.shape]
        generator = np.random.default_rng(number)
        if value.dtype == "bool":
            feed[value.name] = np.asarray(generator.integers(0, 2, shape), bool)
        elif value.is_float:
            feed[value.name] = np.asarray(np.clip(generator.normal(size=shape) * 1.5, -4, 4), value.dtype)
        else:
            feed[value.name] = np.asarray(generator.integers(-4, 5, shape), value.dtype)
    return feed

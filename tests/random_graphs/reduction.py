"""Makes a failing model small: drops outputs and nodes, one after the other, as long as it fails."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import onnx

Failing = Callable[[onnx.ModelProto], bool]


def reduced(proto: onnx.ModelProto, fails: Failing) -> onnx.ModelProto:
    """The smallest model that is found by taking away single things for which ``fails`` still holds."""
    while True:
        smaller = next((candidate for candidate in _candidates(proto) if fails(candidate)), None)
        if smaller is None:
            return proto
        proto = smaller


def _candidates(proto: onnx.ModelProto) -> Iterator[onnx.ModelProto]:
    """Models with one output less, one node bypassed, one node's result an output, or no result of other nodes needed."""
    graph = proto.graph
    if len(graph.output) > 1:
        for number in range(len(graph.output)):
            candidate = _copy(proto)
            del candidate.graph.output[number]
            yield _tidied(candidate)
    for number, node in enumerate(graph.node):
        for source in dict.fromkeys(name for name in node.input if name):
            candidate = _copy(proto)
            del candidate.graph.node[number]
            _rename(candidate.graph, node.output[0], source)
            yield _tidied(candidate)
    made = {name: node for node in graph.node for name in node.output}
    for output in graph.output:
        for name in made[output.name].input if output.name in made else ():
            if name in made:
                candidate = _copy(proto)
                for other in candidate.graph.output:
                    if other.name == output.name:
                        other.name = name
                        other.type.Clear()
                yield _tidied(candidate)


def _copy(proto: onnx.ModelProto) -> onnx.ModelProto:
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    return result


def _rename(graph: onnx.GraphProto, old: str, new: str) -> None:
    for node in graph.node:
        node.input[:] = [new if name == old else name for name in node.input]
        for attribute in node.attribute:
            _rename(attribute.g, old, new)
    for output in graph.output:
        if output.name == old:
            output.name = new


def _tidied(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Without nodes, inputs, constants and functions that nobody needs."""
    graph = proto.graph
    needed = {output.name for output in graph.output}
    kept = []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            kept.append(node)
            needed |= _used(node)
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in reversed(kept)]
    del graph.node[:]
    graph.node.extend(nodes)
    for number in reversed([n for n, value in enumerate(graph.input) if value.name not in needed]):
        del graph.input[number]
    for number in reversed([n for n, tensor in enumerate(graph.initializer) if tensor.name not in needed]):
        del graph.initializer[number]
    for number in reversed([n for n, f in enumerate(proto.functions) if all(f.name != node.op_type for node in nodes)]):
        del proto.functions[number]
    return proto


def _used(node: onnx.NodeProto) -> set[str]:
    names = set(node.input)
    for attribute in node.attribute:
        names |= {output.name for output in attribute.g.output}.union(*map(_used, attribute.g.node))
    return names

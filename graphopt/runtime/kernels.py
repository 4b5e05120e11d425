"""Which kernels the runtime executes: the nodes of its own optimized graph."""

from __future__ import annotations

import functools
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnx_ir as ir

from graphopt.runtime.session import SessionOptions, keep_optimized_graph, load_session, native_session_options


@dataclass(frozen=True)
class Kernel:
    """One node as the runtime executes it; the standard domain is the empty string."""

    domain: str
    op_type: str
    name: str


@dataclass(frozen=True)
class Kernels:
    """All nodes that the runtime executes, those of subgraphs included, each counted once."""

    nodes: tuple[Kernel, ...]

    @property
    def counts(self) -> Counter[tuple[str, str]]:
        """How many nodes there are of each (domain, operator)."""
        return Counter((node.domain, node.op_type) for node in self.nodes)

    @property
    def total(self) -> int:
        """The number of executed nodes."""
        return len(self.nodes)


def executed_kernels(model: ir.Model | Path, options: SessionOptions | None = None) -> Kernels:
    """The nodes left after all optimizations of the runtime, layout and quantization kernels included.

    The runtime writes its graph into a temporary folder, its weights aside, and only the graph is read back.

    Raises:
        SessionError: the runtime refused the model.
    """
    chosen = options or SessionOptions()
    with tempfile.TemporaryDirectory(prefix="graphopt-", ignore_cleanup_errors=True) as folder:
        path = Path(folder) / "optimized.onnx"
        native = native_session_options("all", chosen)
        keep_optimized_graph(native, path)
        # Prepacking changes no node.
        native.add_session_config_entry("session.disable_prepacking", "1")
        load_session(model, native, chosen)
        graph = onnx.load(str(path), load_external_data=False).graph
    return Kernels(tuple(_kernels(graph)))


_WITH_FLOAT_BIAS = """<ir_version: 8, opset_import: ["": 13]> g (uint8[1,4,4,4] x) => (uint8[1,4,4,4] y)
    <float scale = {1}, uint8 zero = {0}, int8 none = {0}, int8[4,4,1,1] w = {1,0,0,0,0,1,0,0,0,0,1,0,0,0,0,1}, float[4] b = {1,1,1,1}> {
    data = DequantizeLinear(x, scale, zero)
    weight = DequantizeLinear(w, scale, none)
    sum = Conv(data, weight, b)
    y = QuantizeLinear(sum, scale, zero) }"""


@functools.cache
def fuses_float_biases() -> bool:
    """Whether the runtime makes an integer kernel of a quantized convolution whose bias is float: 1.31 does, 1.20 does not.

    Raises:
        RuntimeUnavailableError: ONNX Runtime is not installed.
    """
    counts = executed_kernels(ir.from_onnx_text(_WITH_FLOAT_BIAS)).counts
    return any("QLinearConv" in operator for _, operator in counts)


def _kernels(graph: onnx.GraphProto) -> Iterator[Kernel]:
    for node in graph.node:
        yield Kernel("" if node.domain == "ai.onnx" else node.domain, node.op_type, node.name)
        for attribute in node.attribute:
            for subgraph in [attribute.g] if attribute.type == onnx.AttributeProto.GRAPH else attribute.graphs:
                yield from _kernels(subgraph)

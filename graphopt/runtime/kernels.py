"""Which kernels the runtime executes: the nodes of its own optimized graph."""

from __future__ import annotations

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


def _kernels(graph: onnx.GraphProto) -> Iterator[Kernel]:
    for node in graph.node:
        yield Kernel("" if node.domain == "ai.onnx" else node.domain, node.op_type, node.name)
        for attribute in node.attribute:
            for subgraph in [attribute.g] if attribute.type == onnx.AttributeProto.GRAPH else attribute.graphs:
                yield from _kernels(subgraph)

"""Constant folding: what depends on constants alone is computed once, where that does not make the model larger."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator

from graphopt.graph.view import Array, View
from graphopt.passes.rules import Change, Miss, rule

FOLDED = frozenset(
    """
    Abs Add And BatchNormalization Cast Ceil Clip Concat ConstantOfShape Cos CumSum Div Einsum Equal Erf Exp Expand EyeLike Flatten
    Floor Gather GatherElements GatherND Gemm Greater GreaterOrEqual Identity IsInf IsNaN LayerNormalization Less LessOrEqual Log MatMul
    Max Min Mod Mul Neg NonZero Not OneHot Or Pad Pow Range Reciprocal ReduceL1 ReduceL2 ReduceMax ReduceMean ReduceMin ReduceProd
    ReduceSum ReduceSumSquare Relu Reshape ScatterElements ScatterND Shape Sigmoid Sign Sin Size Slice Softplus Split Sqrt Squeeze Sub
    Sum Tanh Tile Transpose Trilu Unsqueeze Where Xor
    """.split()
)
"""Operators whose reference implementation gives what the runtime gives, up to rounding."""

_SINCE = {"BatchNormalization": 14}
"""Opsets before which the reference does something else."""

_SMALL = 1024
"""Bytes that a folded constant may always have: about what the nodes that it replaces took in the file."""

_MOST_NODES = 64
_MOST_BYTES = 1 << 26
"""Bounds of the work for one constant: nodes behind it, and bytes of each tensor on the way."""


def fold_constants(node: ir.Node, view: View) -> Change | Miss | None:
    """Replaces an operator on constants with its result.

    When the result takes at most 1 kB or no more than the initializers that go with it, and the operator is deterministic
    and no form of storage. Rounding-level; the nodes go.
    """
    region = _region_behind(node, view)
    if region is None or any(output.is_graph_output() for output in node.outputs):
        return None
    results = _evaluate(region, view)
    if results is None:
        return None
    arrays = [results[output] if output.uses() else None for output in node.outputs]
    size = sum(array.nbytes for array in arrays if array is not None)
    if size > max(_SMALL, _freed_bytes(region, view)):
        return Miss(f"the result takes {size} bytes, more than what goes with it")
    named = [(array, output.name or "") for array, output in zip(arrays, node.outputs, strict=True)]
    return Change(lambda op: [None if array is None else op.constant(array, name) for array, name in named])


def _region_behind(node: ir.Node, view: View) -> list[ir.Node] | None:
    """A node and all nodes before it, in order, where they depend on constants alone; a few at most.

    Results that are too large to keep may lead to small ones, so constants are not only looked for right at the node.
    """
    ordered: dict[ir.Node, None] = {}
    seen = {node}
    pending = [node]
    while pending:
        current = pending[-1]
        missing = [] if current in ordered else _producers(current, view)
        if missing is None or len(seen) > _MOST_NODES:
            return None
        fresh = [producer for producer in missing if producer not in seen]
        if fresh:
            seen.update(fresh)
            pending.extend(fresh)
        else:
            ordered[pending.pop()] = None
    return list(ordered)


def _producers(node: ir.Node, view: View) -> list[ir.Node] | None:
    """The nodes that make the inputs that are not constant; None where the node cannot be folded, or an input is no node's."""
    if node.op_type not in FOLDED or node.domain not in ("", "ai.onnx") or view.opset < _SINCE.get(node.op_type, 1):
        return None
    made = [value.producer() for value in node.inputs if value is not None and not view.is_constant(value)]
    producers = [producer for producer in made if producer is not None]
    return producers if len(producers) == len(made) and _is_bounded(node, view) else None


def _is_bounded(node: ir.Node, view: View) -> bool:
    """Whether the outputs that are used are known to be of moderate size; reads no data."""
    tensors = [ir.convenience.get_const_tensor(value) for value in node.inputs if value is not None]
    limit = max(_MOST_BYTES, sum(tensor.nbytes for tensor in tensors if tensor is not None))  # a transposed weight is no larger than it was
    for output in (output for output in node.outputs if output.uses()):
        shape, dtype = view.static_shape(output), view.dtype(output)
        if dtype is None or dtype.bitwidth < 8 or shape is None or np.prod(shape, dtype=float) * dtype.itemsize > limit:
            return False
    return True


def _evaluate(region: list[ir.Node], view: View) -> dict[ir.Value, Array] | None:
    """The results of nodes that stand in order; None where one of them cannot be evaluated."""
    known: dict[ir.Value, Array] = {}
    for node in region:
        inputs: list[Array | None] = []
        for value in node.inputs:
            array = None if value is None else known[value] if value in known else view.constant(value)
            if value is not None and array is None:
                return None
            inputs.append(array)
        outputs = evaluate_node(node, inputs, view.opset)
        if outputs is None:
            return None
        known.update(zip(node.outputs, outputs, strict=True))
    return known


def _freed_bytes(region: list[ir.Node], view: View) -> int:
    """Bytes of the constants that go with a region's last node: those that only nodes use which only it uses."""
    gone: set[ir.Node] = {region[-1]}
    for node in reversed(region[:-1]):
        if all(use.node in gone for output in node.outputs for use in output.uses()):
            gone.add(node)
    values = {value for node in gone for value in node.inputs if value is not None and view.is_constant(value)}
    freed = (value for value in values if not value.is_graph_output() and all(use.node in gone for use in value.uses()))
    return sum(tensor.nbytes for value in freed if (tensor := ir.convenience.get_const_tensor(value)) is not None)


def evaluate_node(node: ir.Node, inputs: list[Array | None], opset: int) -> list[Array] | None:
    """Runs one node of the standard domain with onnx's reference implementation.

    Args:
        node: the node, without subgraphs.
        inputs: one array per input, None where it is absent.
        opset: version of the standard domain.

    Returns:
        One array per output; None where the reference cannot do it or gives other types than the operator has.
    """
    names = ["" if array is None else f"i{index}" for index, array in enumerate(inputs)]
    proto = onnx.NodeProto(op_type=node.op_type, input=names, output=[f"o{index}" for index in range(len(node.outputs))])
    proto.attribute.extend(ir.to_proto(item) for item in node.attributes.values() if isinstance(item, ir.Attr))
    feed: dict[str, Any] = {name: array for name, array in zip(names, inputs, strict=True) if name}
    try:
        with np.errstate(all="ignore"):
            results = ReferenceEvaluator(proto, opsets={"": opset}).run(None, feed)
    except Exception:  # the reference raises whatever numpy raises; the node then stays
        return None
    arrays = [np.asarray(result) for result in results]
    return arrays if all(_agrees(array, output) for array, output in zip(arrays, node.outputs, strict=True)) else None


def _agrees(array: Array, value: ir.Value) -> bool:
    """Whether a result has the type that inference or the exporter gave the value."""
    return array.dtype != np.dtype(object) and (value.dtype is None or value.dtype.numpy() == array.dtype)


RULES = (rule(fold_constants, *sorted(FOLDED)),)
"""The table of this module."""

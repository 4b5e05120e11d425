"""Which operators and kernels the installed runtime has; the only user of its private registry."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import helper, numpy_helper

from graphopt.errors import RuntimeUnavailableError

Operator = tuple[str, str]
"""Domain and operator; the standard domain is the empty string."""


@functools.cache
def registered_operators() -> frozenset[Operator]:
    """Every operator that the runtime has a schema for, whatever its version.

    ``get_all_operator_schema`` is private to onnxruntime and present from 1.20 to 1.31.

    Raises:
        RuntimeUnavailableError: ONNX Runtime is not installed.
    """
    return frozenset((schema.domain, schema.name) for schema in _state().get_all_operator_schema())


@dataclass(frozen=True)
class KernelDefinition:
    """One kernel that the runtime registers.

    Attributes:
        first, last: versions of its domain that it serves.
        dtypes: element types per type variable of the operator's schema, as ``tensor(float)``.
    """

    first: int
    last: int
    dtypes: Mapping[str, frozenset[str]]


@functools.cache
def available_providers() -> tuple[str, ...]:
    """The execution providers that the installed runtime was built with.

    Raises:
        RuntimeUnavailableError: ONNX Runtime is not installed.
    """
    return tuple(_state().get_available_providers())


@functools.cache
def registered_kernels() -> Mapping[tuple[str, str, str], tuple[KernelDefinition, ...]]:
    """All kernels by (execution provider, domain, operator); a wheel lists the providers it was built with.

    ``get_all_opkernel_def`` is private to onnxruntime and present from 1.20 to 1.31.

    Raises:
        RuntimeUnavailableError: ONNX Runtime is not installed.
    """
    found: dict[tuple[str, str, str], list[KernelDefinition]] = {}
    for kernel in _state().get_all_opkernel_def():
        dtypes = {variable: frozenset(names) for variable, names in kernel.type_constraints.items()}
        first, last = kernel.version_range
        definition = KernelDefinition(first, last, dtypes)
        found.setdefault((kernel.provider, kernel.domain, kernel.op_name), []).append(definition)
    return {key: tuple(definitions) for key, definitions in found.items()}


def has_kernel(provider: str, operator: str, dtype: ir.DataType, opset: int) -> bool:
    """Whether a provider registers a kernel for an operator (``Conv`` or ``com.microsoft::Gelu``) and element type.

    Args:
        provider: such as ``CPUExecutionProvider``.
        operator: with its domain, where that is not the standard one.
        dtype: of the main input: the schema's type variable ``T`` (``T1``, ``T0``, …) must admit it.
        opset: version of the standard domain; other domains are asked at version 1.
    """
    domain, _, op_type = operator.rpartition("::")
    version = opset if not domain else 1
    wanted = f"tensor({dtype.name.lower()})"
    for definition in registered_kernels().get((provider, domain, op_type), ()):
        main = next((types for variable, types in definition.dtypes.items() if variable.startswith("T")), frozenset({wanted}))
        if definition.first <= version <= definition.last and wanted in main:
            return True
    return False


@functools.cache
def packed_bits() -> frozenset[int]:
    """The widths of weights that the CPU kernel of MatMulNBits takes: 4 alone in 1.20; all of 2, 4 and 8 in 1.31.

    The registry does not tell them apart, so that a product of each is loaded.

    Raises:
        RuntimeUnavailableError: ONNX Runtime is not installed.
    """
    return frozenset(bits for bits in (2, 4, 8) if _loads(_packed_product(bits)))


def _packed_product(bits: int) -> bytes:
    """A product with one block of 16 weights."""
    weights = numpy_helper.from_array(np.zeros((1, 1, 2 * bits), np.uint8), "w")
    scales = numpy_helper.from_array(np.ones(1, np.float32), "s")
    node = helper.make_node("MatMulNBits", ["x", "w", "s"], ["y"], domain="com.microsoft", K=16, N=1, bits=bits, block_size=16)
    x, y = (helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, width]) for name, width in (("x", 16), ("y", 1)))
    graph = helper.make_graph([node], "product", [x], [y], [weights, scales])
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    return bytes(helper.make_model(graph, opset_imports=imports, ir_version=8).SerializeToString())


def _loads(model: bytes) -> bool:
    state = _state()
    options = state.SessionOptions()
    options.log_severity_level = 4
    session = state.InferenceSession(options, model, False, False)
    try:
        session.initialize_session(["CPUExecutionProvider"], [{}], set())
    except Exception:  # of a class of its own for each kind of refusal
        return False
    return True


def _state() -> Any:
    try:
        return importlib.import_module("onnxruntime.capi.onnxruntime_pybind11_state")
    except ImportError as error:
        raise RuntimeUnavailableError(
            "ONNX Runtime is not installed; install it: pip install graphopt[cpu], or graphopt[gpu] for CUDA"
        ) from error

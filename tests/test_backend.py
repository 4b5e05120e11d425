"""The cases with which ONNX defines its operators: what the runtime computes right, it still computes right after the exact passes."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper
from onnx.backend.test.case.test_case import TestCase
from onnx.backend.test.loader import load_model_tests

from graphopt import files
from graphopt.errors import GraphoptError, SessionError
from graphopt.presets import preset
from graphopt.runtime.session import Optimizations, SessionOptions, open_session
from graphopt.stage import Stage

KINDS = ("node", "simple", "pytorch-converted", "pytorch-operator")
SHARDS = 8
LEVELS: tuple[Optimizations, ...] = ("none", "all")
LARGEST = 100e6
"""Bytes of the files of a case that is still run."""

UNREPEATABLE = ("bernoulli", "random", "training")
"""Parts of the names of cases whose outputs differ from run to run."""

Values = Sequence[Any]


@dataclass(frozen=True)
class Case:
    """A model with recorded inputs and outputs.

    Attributes:
        name: of the case and of the variant.
        proto: the model.
        data: inputs and outputs, in the order of the model's.
        tolerances: relative and absolute.
    """

    name: str
    proto: onnx.ModelProto
    data: Sequence[tuple[Values, Values]]
    tolerances: tuple[float, float]


@cache
def recorded_cases() -> list[Case]:
    """All cases that need no download, by name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the cases provoke overflow on purpose
        found = [case for kind in KINDS for case in load_model_tests(kind=kind)]
    wanted = [case for case in found if not any(part in case.name for part in UNREPEATABLE)]
    return [_read(case) for case in sorted(wanted, key=lambda case: (case.name, case.kind))]


def _read(case: TestCase) -> Case:
    folder = Path(case.model_dir) if case.model_dir else None
    proto = case.model if folder is None else onnx.load(folder / "model.onnx")
    assert proto is not None
    if folder is None:
        data = [(list(inputs), list(outputs)) for inputs, outputs in case.data_sets or ()]
    else:
        data = [
            (_tensors(one, "input", proto.graph.input), _tensors(one, "output", proto.graph.output))
            for one in folder.glob("test_data_set_*")
        ]
    return Case(case.name, proto, data, (case.rtol, case.atol))


def _tensors(folder: Path, kind: str, values: Sequence[onnx.ValueInfoProto]) -> list[Any]:
    read: dict[str, Any] = {
        "tensor_type": numpy_helper.to_array,
        "sequence_type": numpy_helper.to_list,
        "optional_type": numpy_helper.to_optional,
    }
    protos: dict[str, Any] = {"tensor_type": onnx.TensorProto, "sequence_type": onnx.SequenceProto, "optional_type": onnx.OptionalProto}
    found: list[Any] = []
    for index, path in enumerate(sorted(folder.glob(f"{kind}_*.pb"), key=lambda p: int(p.stem.split("_")[1]))):
        sort = str(values[index].type.WhichOneof("value"))
        proto = protos[sort]()
        proto.ParseFromString(path.read_bytes())
        found.append(read[sort](proto))
    return found


def frozen(case: Case, first: int) -> Case | None:
    """The case with its inputs from a position on as constants, so that rules about constants apply; None where that is no other model."""
    values, inputs = case.proto.graph.input[first:], [given[first:] for given, _ in case.data]
    plain = all(
        isinstance(value, np.ndarray) and value.dtype.kind in "bifu" and value.dtype.isbuiltin for given in inputs for value in given
    )
    if len(case.data) != 1 or not values or not plain or len(case.data[0][0]) != len(case.proto.graph.input) or case.proto.ir_version < 4:
        return None
    proto = onnx.ModelProto()
    proto.CopyFrom(case.proto)
    del proto.graph.input[first:]
    proto.graph.initializer.extend(numpy_helper.from_array(array, value.name) for array, value in zip(inputs[0], values, strict=True))
    if first == 0 and any(imported.domain in ("", "ai.onnx") for imported in proto.opset_import):
        _put_behind_identities(proto.graph)
    data = [(given[:first], expected) for given, expected in case.data]
    return Case(f"{case.name}, inputs from {first} on constant", proto, data, case.tolerances)


def _put_behind_identities(graph: onnx.GraphProto) -> None:
    """Lets outputs be copies of the results, so that these may be folded."""
    for value in graph.output:
        inner = f"{value.name}/inner"
        for node in graph.node:
            node.output[:] = [inner if name == value.name else name for name in node.output]
            node.input[:] = [inner if name == value.name else name for name in node.input]
        graph.node.append(onnx.helper.make_node("Identity", [inner], [value.name]))


def variants(case: Case) -> Iterator[Case]:
    """The case as it is, with all inputs but the first as constants, and with all as constants."""
    yield case
    for first in (1, 0):
        other = frozen(case, first)
        if other is not None:
            yield other


def problem_of(case: Case, level: Optimizations, model: ir.Model | None = None) -> str:
    """Why a model, or the case's own, does not pass the case; empty where it does."""
    try:
        session = open_session(ir.from_proto(case.proto) if model is None else model, level, SessionOptions(threads=1))
        for inputs, outputs in case.data:
            feed = dict(zip(session.input_names, inputs, strict=False))
            found = session.run({name: value for name, value in feed.items() if value is not None})
            for expected, value in zip(outputs, found.values(), strict=False):
                _compare(expected, value, case.tolerances)
    except (SessionError, AssertionError, TypeError, ValueError, AttributeError) as error:
        return " ".join(str(error).split())[:300] or type(error).__name__
    return ""


def _compare(expected: Any, found: Any, tolerances: tuple[float, float]) -> None:
    if isinstance(expected, list):
        assert len(expected) == len(found), "another number of elements"
        for one, other in zip(expected, found, strict=True):
            _compare(one, other, tolerances)
    elif expected is None:
        assert found is None, "not empty"
    else:
        reference, array = np.asarray(expected), np.asarray(found)
        assert reference.dtype == array.dtype, f"{reference.dtype} expected, found {array.dtype}"
        if reference.dtype.kind in "OSU":
            np.testing.assert_array_equal(array, reference)
        else:
            wide = reference.dtype if reference.dtype.kind in "biufc" and reference.dtype.isbuiltin else np.float32
            np.testing.assert_allclose(array.astype(wide), reference.astype(wide), rtol=tolerances[0], atol=tolerances[1])


def faults_of(cases: Sequence[Case]) -> tuple[list[str], int]:
    """What the exact passes break in some cases, and how many could be compared."""
    stage = Stage(tuple(preset("exact").build()))
    faults: list[str] = []
    compared = 0
    for case in (variant for one in cases for variant in variants(one)):
        levels = [level for level in LEVELS if not problem_of(case, level)]
        if not levels:
            continue
        try:
            model = files.from_proto(case.proto)
        except GraphoptError:
            continue  # refused with a message: the driver never gets to the passes
        attempt = stage.attempt(model, frozenset())
        rules = sorted({str(key) for key in attempt.recorder.allowed})
        problems = [attempt.failure, *([] if attempt.failure else [problem_of(case, level, attempt.model) for level in levels])]
        faults.extend(f"{case.name}: {problem}; rewrites: {rules}" for problem in problems if problem)
        compared += 1
    return faults, compared


def one_per_operator(cases: Sequence[Case]) -> list[Case]:
    """The first case of each operator and version of the standard domain's form."""
    chosen: dict[tuple[str, ...], Case] = {}
    for case in cases:
        if sum(tensor.ByteSize() for tensor in case.proto.graph.initializer) < LARGEST / 100:
            chosen.setdefault(tuple(sorted({node.op_type for node in case.proto.graph.node})), case)
    return list(chosen.values())


def test_one_case_per_operator() -> None:
    """The first case of each set of operators, as it is and with constant inputs."""
    faults, compared = faults_of(one_per_operator(recorded_cases()))
    assert not faults, "\n".join(faults)
    assert compared > 250  # all but what the runtime refuses, such as newer opsets


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("shard", range(SHARDS))
def test_all_cases(shard: int) -> None:
    """Every case, as it is and with constant inputs."""
    cases = recorded_cases()[shard::SHARDS]
    faults, compared = faults_of(cases)
    assert not faults, "\n".join(faults)
    assert compared > len(cases) // 2

"""Tests of what a saved model holds: the same outputs, weights and bytes, inside one file or beside it."""

from __future__ import annotations

import re
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from graphopt import files
from graphopt.errors import ModelFileError
from graphopt.files.weights import slots_of
from graphopt.graph.structure import verify_structure
from tests.model_files import WEIGHT, make, run, weight_of, write


@pytest.mark.parametrize("location", ["", "w.data", "sub/w.data"])
@pytest.mark.parametrize("external_data", [None, False, True])
def test_round_trip(tmp_path: Path, location: str, external_data: bool | None) -> None:
    """Loading and saving keeps outputs, whatever holds the weights before and after."""
    (tmp_path / "sub").mkdir()
    source = write(tmp_path / "in.onnx", make(), location)
    target = tmp_path / "out" / "out.onnx"
    target.parent.mkdir()
    model = files.load(source)
    verify_structure(model)
    written = files.save(model, target, external_data=external_data)
    is_external = bool(location) if external_data is None else external_data
    assert len(written) == (2 if is_external else 1)
    assert sorted(target.parent.iterdir()) == sorted(written)
    if is_external:
        assert re.fullmatch(r"out\.[0-9a-f]{8}\.data", written[1].name)
    np.testing.assert_array_equal(run(target), run(source))
    assert str(tmp_path).encode() not in target.read_bytes()
    assert files.total_bytes(target) == sum(path.stat().st_size for path in written)


@pytest.mark.parametrize("external_data", [False, True])
def test_same_model_gives_same_bytes(tmp_path: Path, external_data: bool) -> None:
    """Saved twice, and saved from its own copy, a model gives the same files; inline, those that protobuf gives."""
    model = files.load(write(tmp_path / "in.onnx", make()))
    target = tmp_path / "out.onnx"
    first = {path: path.read_bytes() for path in files.save(model, target, external_data=external_data)}
    assert {path: path.read_bytes() for path in files.save(model, target, external_data=external_data)} == first
    assert {path: path.read_bytes() for path in files.save(files.load(target), target, external_data=external_data)} == first
    if not external_data:
        assert onnx.load(target).SerializeToString(deterministic=True) == target.read_bytes()


def test_large_tensors_of_every_kind_are_streamed_as_protobuf_writes_them(tmp_path: Path) -> None:
    """Raw, typed, packed, string and annotated initializers come out as they went in."""
    typed = helper.make_tensor("typed", TensorProto.FLOAT, [600], np.arange(600, dtype=np.float32))
    half = helper.make_tensor("half", TensorProto.BFLOAT16, [900], np.arange(900).astype(ml_dtypes.bfloat16).tobytes(), raw=True)
    four = helper.make_tensor("four", TensorProto.INT4, [4001], bytes(range(256)) * 7 + bytes(209), raw=True)
    text = onnx.numpy_helper.from_array(np.array(["a" * 1000, "b" * 1000], object), "text")
    half.doc_string = "kept"
    half.metadata_props.add(key="k", value="v")
    proto = make(ir_version=13, opset=23, more=[typed, half, four, text])
    model = files.load(write(tmp_path / "in.onnx", proto))
    for external_data in (False, True):
        files.save(model, tmp_path / "out.onnx", external_data=external_data)
        found = {tensor.name: tensor for tensor in onnx.load(tmp_path / "out.onnx").graph.initializer}
        for tensor in proto.graph.initializer:
            assert onnx.numpy_helper.to_array(found[tensor.name]).tolist() == onnx.numpy_helper.to_array(tensor).tolist()
        assert (found["half"].doc_string, found["half"].metadata_props[0].value) == ("kept", "v")


def test_computed_tensors_are_written(tmp_path: Path) -> None:
    """A lazy tensor is computed once, when it is written; one that gives too little is an error and leaves nothing."""
    model = files.load(write(tmp_path / "in.onnx", make()))
    calls = []

    def compute() -> ir.TensorProtocol:
        calls.append(1)
        return ir.tensor(WEIGHT * 2)

    value = model.graph.initializers["w"]
    for external_data in (False, True):
        calls.clear()
        value.const_value = ir.LazyTensor(compute, dtype=ir.DataType.FLOAT, shape=ir.Shape([2, 600]), name="w")
        files.save(model, tmp_path / "out.onnx", external_data=external_data)
        assert len(calls) == 1
        np.testing.assert_array_equal(weight_of(tmp_path / "out.onnx"), WEIGHT * 2)
        assert isinstance(value.const_value, ir.LazyTensor)
        before = {path: path.read_bytes() for path in tmp_path.iterdir()}
        value.const_value = ir.LazyTensor(compute, dtype=ir.DataType.FLOAT, shape=ir.Shape([2, 700]), name="w")
        with pytest.raises(ModelFileError, match="instead of 5600"):
            files.save(model, tmp_path / "out.onnx", external_data=external_data)
        assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_tied_weights_are_written_once(tmp_path: Path) -> None:
    """Two initializers that share their data in the source share it in the result."""
    tied = helper.make_tensor("tied", TensorProto.FLOAT, [2, 600], WEIGHT.tobytes(), raw=True)
    source = write(tmp_path / "in.onnx", make(more=[tied]), "w.data")
    proto = onnx.load(source, load_external_data=False)
    by_name = {tensor.name: tensor for tensor in proto.graph.initializer}
    del by_name["tied"].external_data[:]
    by_name["tied"].external_data.extend(by_name["w"].external_data)
    source.write_bytes(proto.SerializeToString())
    _, data = files.save(files.load(source), tmp_path / "out.onnx")
    assert data.stat().st_size < 2 * WEIGHT.nbytes + 3 * 2400


def test_too_large_for_one_file(tmp_path: Path) -> None:
    """Weights beyond protobuf's limit go to external data, known before a byte is written; asked to be inside, they are refused."""

    def never() -> ir.TensorProtocol:
        raise AssertionError("no weight is read")

    value = ir.val("w", ir.DataType.FLOAT, [600_000_000])
    value.const_value = ir.LazyTensor(never, dtype=ir.DataType.FLOAT, shape=ir.Shape([600_000_000]), name="w")
    node = ir.node("Identity", [value])
    node.outputs[0].name = "y"
    model = ir.Model(ir.Graph([], node.outputs, nodes=[node], initializers=[value], opset_imports={"": 20}), ir_version=10)
    with pytest.raises(ModelFileError, match="external data"):
        files.save(model, tmp_path / "out.onnx", external_data=False)
    with pytest.raises(AssertionError, match="no weight is read"):
        files.save(model, tmp_path / "out.onnx")
    assert list(tmp_path.iterdir()) == []


def test_what_goes_without_saying_is_not_written(tmp_path: Path) -> None:
    """Some exporters leave out the name of the standard domain, as the format allows; the file does not grow by it."""
    path = tmp_path / "out.onnx"
    files.save(files.load(write(tmp_path / "in.onnx", make())), path)
    assert [field.name for field, _ in onnx.load(path).opset_import[0].ListFields()] == ["version"]
    np.testing.assert_array_equal(run(path), run(tmp_path / "in.onnx"))


def test_stamp_keeps_the_source(tmp_path: Path) -> None:
    """The producer becomes graphopt, the original stays among the metadata, and a second stamp changes nothing."""
    proto = make()
    proto.producer_version = "1.2"
    proto.metadata_props.add(key="author", value="someone")
    model = files.load(write(tmp_path / "in.onnx", proto))
    for _ in range(2):
        files.stamp(model)
        assert model.producer_name == "graphopt"
        assert model.metadata_props == {"author": "someone", "graphopt.source_producer": "maker 1.2"}


@pytest.mark.parametrize("folder", ["zoo", "arch"], ids=["GRAPHOPT_ZOO", "GRAPHOPT_ARCH"])
def test_real_models(tmp_path: Path, request: pytest.FixtureRequest, folder: str) -> None:
    """Every real model loads, verifies, and comes back with the same weights and the same bytes when saved again."""
    paths = sorted(request.getfixturevalue(folder).glob("*/*.onnx"))
    assert paths
    for path in paths:
        model = files.load(path)
        verify_structure(model)
        assert files.non_finite_weights(model) == []
        target = tmp_path / "out.onnx"
        content = [file.read_bytes() for file in files.save(model, target)]
        again = files.load(target)
        verify_structure(again)
        for ours, theirs in zip(slots_of(model), slots_of(again), strict=True):
            assert ours.tensor.dtype == ir.DataType.STRING or ours.tensor.tobytes() == theirs.tensor.tobytes()
        assert [file.read_bytes() for file in files.save(again, target)] == content

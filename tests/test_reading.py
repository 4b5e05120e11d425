"""Tests of reading models: the versions that load, and the files that are refused, each in one line."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from graphopt import files
from graphopt.errors import InvalidModelError, ModelFileError, UnsupportedModelError
from graphopt.graph.structure import verify_structure
from tests.model_files import make, message_of, write


@pytest.mark.parametrize("ir_version", range(3, 15))
def test_every_ir_version_loads(tmp_path: Path, ir_version: int) -> None:
    """IR versions 3 to 14 load, keep their version and are saved again."""
    path = write(tmp_path / "in.onnx", make(ir_version=ir_version, opset=11))
    model = files.load(path)
    verify_structure(model)
    files.save(model, tmp_path / "out.onnx")
    assert onnx.load(tmp_path / "out.onnx").ir_version == ir_version


@pytest.mark.parametrize("opset", range(7, 29))
def test_every_opset_loads(tmp_path: Path, opset: int) -> None:
    """Opsets 7 to 28 load and pass the verifier."""
    verify_structure(files.load(write(tmp_path / "in.onnx", make(opset=opset))))


@pytest.mark.parametrize(("ir_version", "opset"), [(2, 11), (15, 11), (8, 6), (8, 99)])
def test_other_versions_are_refused(tmp_path: Path, ir_version: int, opset: int) -> None:
    """What is too old or too new is refused with the range that is supported."""
    proto = make(opset=11)
    proto.ir_version = ir_version
    proto.opset_import[0].version = opset
    assert "are); export" in message_of(write(tmp_path / "in.onnx", proto))


def test_folders(tmp_path: Path) -> None:
    """A folder stands for its model.onnx, or its only model; else the message lists what is there."""
    assert "without a .onnx file; it holds nothing" in message_of(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    assert "it holds config.json" in message_of(tmp_path)
    write(tmp_path / "a.onnx", make())
    verify_structure(files.load(tmp_path))
    write(tmp_path / "b.onnx", make())
    assert "a.onnx, b.onnx" in message_of(tmp_path)
    write(tmp_path / "model.onnx", make())
    verify_structure(files.load(str(tmp_path)))
    assert "no such file" in message_of(tmp_path / "none.onnx")
    assert "not a plain file" in message_of("/dev/null")


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"", "empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "git lfs pull"),
        (b"PK\x03\x04 something else", "not an ONNX model"),
        (b"{}\n", "not an ONNX model"),
        (b"\x08\x08", "not an ONNX model"),
        (bytes(range(256)), "not an ONNX model"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: bytes, part: str) -> None:
    """What is no model is refused by name."""
    path = tmp_path / "in.onnx"
    path.write_bytes(content)
    assert part in message_of(path)
    assert str(path) in message_of(path)


def test_truncated_and_random_files_are_refused(tmp_path: Path) -> None:
    """A model cut at any of many places, and random bytes, are refused in one line."""
    content = make().SerializeToString()
    path = tmp_path / "in.onnx"
    for end in [*range(1, len(content), 997), len(content) - 1, len(content) - 4]:
        path.write_bytes(content[:end])
        message_of(path)
    generator = np.random.default_rng(0)
    for _ in range(50):
        path.write_bytes(generator.bytes(200))
        message_of(path)


def test_damaged_tensors_inside_the_file_are_refused(tmp_path: Path) -> None:
    """An initializer with too little data, none, or an unknown type is named."""
    proto = make()
    proto.graph.initializer[0].raw_data = b"1234"
    assert "'w' holds 4 where FLOAT[2, 600] needs 4800" in message_of(write(tmp_path / "a.onnx", proto))
    proto.graph.initializer[0].ClearField("raw_data")
    assert "'w' holds 0" in message_of(write(tmp_path / "a.onnx", proto))
    proto.graph.initializer[0].data_type = 99
    assert "unknown element type 99" in message_of(write(tmp_path / "a.onnx", proto))
    proto = make()
    proto.graph.node[0].attribute[0].t.raw_data = b"1234"
    assert "'k' holds 4" in message_of(write(tmp_path / "a.onnx", proto))
    proto = make()
    proto.graph.node[-1].attribute[0].g.initializer[0].raw_data = b"1234"
    assert "then_w" in message_of(write(tmp_path / "a.onnx", proto)) or "else_w" in message_of(tmp_path / "a.onnx")


def test_what_the_ir_would_drop_is_refused(tmp_path: Path) -> None:
    """Sparse, unnamed and doubled initializers and map types are refused, not lost."""
    proto = make()
    proto.graph.sparse_initializer.add().values.name = "sparse"
    assert "'sparse'" in message_of(write(tmp_path / "a.onnx", proto))
    proto = make(more=[helper.make_tensor("", TensorProto.FLOAT, [1], [1.0])])
    assert "has no name" in message_of(write(tmp_path / "a.onnx", proto))
    proto = make(more=[helper.make_tensor("b", TensorProto.FLOAT, [1], [1.0])])
    assert "'b' is given twice" in message_of(write(tmp_path / "a.onnx", proto))
    proto = make()
    proto.graph.output[0].type.map_type.key_type = TensorProto.INT64
    with pytest.raises(UnsupportedModelError, match="Map types"):
        files.load(write(tmp_path / "a.onnx", proto))


def test_from_proto_leaves_the_callers_model_alone() -> None:
    """Renaming in the IR renames nothing in the object that the model was made from."""
    proto = make()
    before = proto.SerializeToString()
    model = files.from_proto(proto)
    model.graph.initializers["w"].name = "renamed"
    ir.to_proto(model)
    assert proto.SerializeToString() == before
    assert model.graph.initializers["renamed"].const_value is not None


def test_from_proto_refuses_external_data(tmp_path: Path) -> None:
    """A model in memory whose weights are elsewhere is refused with the remedy."""
    proto = onnx.load(write(tmp_path / "in.onnx", make(), "w.data"), load_external_data=False)
    with pytest.raises(ModelFileError, match="path of the model file"):
        files.from_proto(proto)
    with pytest.raises(InvalidModelError, match="duplicate"):
        files.from_proto(make(more=[helper.make_tensor("b", TensorProto.FLOAT, [1], [1.0])]))


def test_non_finite_weights(tmp_path: Path) -> None:
    """NaN and stray infinities are found in every place and type; masks are not reported."""
    mask = np.triu(np.full((20, 20), -np.inf, np.float32), 1)
    bad = np.ones(5000, np.float32)
    bad[[1, 7, 4000]] = np.nan, np.inf, np.nan
    more = [
        onnx.numpy_helper.from_array(mask, "mask"),
        onnx.numpy_helper.from_array(np.array(-np.inf, np.float32), "fill"),
        onnx.numpy_helper.from_array(bad, "bad"),
        helper.make_tensor("half", TensorProto.BFLOAT16, [2], np.array([1, np.nan], ml_dtypes.bfloat16).tobytes(), raw=True),
        helper.make_tensor("empty", TensorProto.FLOAT, [0], []),
    ]
    proto = make(more=more)
    proto.graph.node[-1].attribute[1].g.initializer[0].raw_data = np.full(600, np.nan, np.float32).tobytes()
    expected = ["bad: 2 NaN, 1 infinite of 5000 values", "half: 1 NaN, 0 infinite of 2 values"]
    for location in ("", "w.data"):
        found = files.non_finite_weights(files.load(write(tmp_path / "in.onnx", proto, location)))
        assert found[:2] == expected
        assert len(found) == 3
        assert found[2].endswith("_w: 600 NaN, 0 infinite of 600 values")

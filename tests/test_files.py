"""Tests of reading, writing and copying model files."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from graphopt import files
from graphopt.errors import GraphoptError, InvalidModelError, ModelFileError, UnsupportedModelError
from graphopt.files.atomic import PendingFile
from graphopt.files.weights import slots_of
from graphopt.graph.structure import verify_structure

WEIGHT = np.arange(1200, dtype=np.float32).reshape(2, 600)
ROOT = Path(__file__).parents[1]


def make(ir_version: int = 10, opset: int = 20, seed: int = 0, **graph: list[onnx.TensorProto]) -> onnx.ModelProto:
    """A model with one large and one small initializer, a large Constant and a branch with a large initializer."""
    weight = helper.make_tensor("w", TensorProto.FLOAT, [2, 600], (WEIGHT + seed).tobytes(), raw=True)
    small = helper.make_tensor("s", TensorProto.FLOAT, [600], np.ones(600, np.float32)[:600].tobytes(), raw=True)
    tiny = helper.make_tensor("b", TensorProto.FLOAT, [1], [3.0])
    branches: dict[str, Any] = {}
    for kind in ("then", "else"):
        inner = helper.make_tensor(f"{kind}_w", TensorProto.FLOAT, [600], np.full(600, len(kind), np.float32).tobytes(), raw=True)
        node = helper.make_node("Mul", ["sum", f"{kind}_w"], [f"{kind}_y"])
        output = helper.make_tensor_value_info(f"{kind}_y", TensorProto.FLOAT, [1, 600])
        branches[f"{kind}_branch"] = helper.make_graph([node], kind, [], [output], [inner])
    nodes = [
        helper.make_node("Constant", [], ["k"], value=small),
        helper.make_node("MatMul", ["x", "w"], ["m"]),
        helper.make_node("Add", ["m", "k"], ["a"]),
        helper.make_node("Add", ["a", "b"], ["sum"], name="plus"),
        helper.make_node("If", ["c"], ["y"], **branches),
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2]), helper.make_tensor_value_info("c", TensorProto.BOOL, [])]
    if ir_version < 4:  # initializers had to be inputs
        inputs += [
            helper.make_tensor_value_info("w", TensorProto.FLOAT, [2, 600]),
            helper.make_tensor_value_info("b", TensorProto.FLOAT, [1]),
        ]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 600])]
    proto = helper.make_graph(nodes, "g", inputs, outputs, [weight, tiny, *graph.get("more", [])])
    return helper.make_model(proto, ir_version=ir_version, opset_imports=[helper.make_opsetid("", opset)], producer_name="maker")


def write(path: Path, proto: onnx.ModelProto, location: str = "") -> Path:
    """Writes a model with onnx's own functions; with a location, all weights are external data."""
    if location:
        onnx.save(proto, path, save_as_external_data=True, location=location, size_threshold=0, convert_attribute=True)
    else:
        path.write_bytes(proto.SerializeToString())
    return path


def run(path: Path) -> np.ndarray:
    """The model's output in ONNX Runtime."""
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    output: np.ndarray = session.run(None, {"x": np.ones((1, 2), np.float32), "c": np.array(True)})[0]
    return output


def weight_of(path: Path) -> np.ndarray:
    """The large initializer of a file."""
    tensor = files.load(path).graph.initializers["w"].const_value
    assert tensor is not None
    return tensor.numpy()


def temporaries(folder: Path) -> list[str]:
    """What was left of files that never became whole."""
    return [child.name for child in folder.rglob("*") if child.name.endswith(".tmp")]


def message_of(path: Path | str) -> str:
    """The one line with which a file is refused."""
    with pytest.raises(GraphoptError) as caught:
        verify_structure(files.load(path))
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 600
    return message


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


def set_external(tensor: onnx.TensorProto, **entries: str) -> None:
    """Changes what a tensor says about its data."""
    for entry in tensor.external_data:
        if entry.key in entries:
            entry.value = entries.pop(entry.key)
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)


def tensor_of(proto: onnx.ModelProto, place: str) -> onnx.TensorProto:
    """An external tensor of the model: an initializer, a constant, or one inside a branch."""
    if place == "initializer":
        return proto.graph.initializer[0]
    if place == "constant":
        return proto.graph.node[0].attribute[0].t
    return proto.graph.node[-1].attribute[0].g.initializer[0]


@pytest.mark.parametrize("place", ["initializer", "constant", "branch"])
@pytest.mark.parametrize(
    ("entries", "part"),
    [
        ({"location": "missing.data"}, "missing"),
        ({"location": "/etc/passwd"}, "not a path inside"),
        ({"location": "C:\\w.data"}, "not a path inside"),
        ({"location": "../model/w.data"}, "not a path inside"),
        ({"location": "sub\\..\\..\\w.data"}, "not a path inside"),
        ({"location": ""}, "not a path inside"),
        ({"location": "."}, "not a path inside"),
        ({"location": "sub"}, "no plain file"),
        ({"location": "link.data"}, "leaves the model's folder"),
        ({"location": "linked/w.data"}, "leaves the model's folder"),
        ({"location": "hard.data"}, "hard links"),
        ({"offset": "1000000"}, "truncated or belongs"),
        ({"offset": "-1"}, "in.onnx"),
        ({"offset": "many"}, "in.onnx"),
        ({"length": "4"}, "has 4 bytes"),
    ],
)
def test_bad_external_data_is_refused(tmp_path: Path, place: str, entries: dict[str, str], part: str) -> None:
    """Each way in which external data can be missing, outside or too short is one line, wherever the tensor stands."""
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "w.data").write_bytes(bytes(100_000))
    (folder / "link.data").symlink_to(tmp_path / "outside" / "w.data")
    (folder / "linked").symlink_to(tmp_path / "outside")
    (folder / "one.data").write_bytes(bytes(100_000))
    (folder / "hard.data").hardlink_to(folder / "one.data")
    path = write(folder / "in.onnx", make(), "w.data")
    proto = onnx.load(path, load_external_data=False)
    set_external(tensor_of(proto, place), **entries)
    path.write_bytes(proto.SerializeToString())
    assert part in message_of(path)


def test_truncated_external_data_is_refused(tmp_path: Path) -> None:
    """A data file that ends early is refused before anything is read."""
    path = write(tmp_path / "in.onnx", make(), "w.data")
    os.truncate(tmp_path / "w.data", (tmp_path / "w.data").stat().st_size - 1)
    assert "truncated or belongs to another model" in message_of(path)


def test_links_inside_the_folder_and_into_a_store_are_followed(tmp_path: Path) -> None:
    """Data behind a link in the folder loads; so does a model whose files are all links into one store of files."""
    folder, store = tmp_path / "snapshot", tmp_path / "blobs"
    folder.mkdir()
    store.mkdir()
    path = write(folder / "in.onnx", make(), "w.data")
    expected = run(path)
    (folder / "w.data").rename(folder / "real.data")
    (folder / "w.data").symlink_to("real.data")
    files.save(files.load(path), tmp_path / "out.onnx")
    np.testing.assert_array_equal(run(tmp_path / "out.onnx"), expected)
    (folder / "real.data").rename(store / "1a2b")
    (folder / "w.data").unlink()
    (folder / "w.data").symlink_to("../blobs/1a2b")
    path.rename(store / "3c4d")
    path.symlink_to("../blobs/3c4d")
    files.save(files.load(path), tmp_path / "out2.onnx")
    np.testing.assert_array_equal(run(tmp_path / "out2.onnx"), expected)
    files.copy_model(path, tmp_path / "copy.onnx")
    np.testing.assert_array_equal(run(tmp_path / "copy.onnx"), expected)


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


def test_saving_over_the_model_itself(tmp_path: Path) -> None:
    """A model saved over its own file, with its own data mapped, is whole, and stays readable in memory."""
    path = write(tmp_path / "model.onnx", make(), "w.data")
    expected = run(path)
    model = files.load(path)
    model.graph.initializers["w"].const_value.numpy()  # type: ignore[union-attr]
    _, data = files.save(model, path)
    np.testing.assert_array_equal(run(path), expected)
    np.testing.assert_array_equal(np.asarray(model.graph.initializers["w"].const_value), WEIGHT)
    assert (tmp_path / "w.data").exists(), "the model at hand still reads from it"
    model.graph.initializers["w"].const_value = ir.tensor(WEIGHT + 1, name="w")
    files.save(model, path)
    assert not data.exists(), "nothing needs it any more"
    verify_structure(files.load(path))


def test_old_data_goes_only_where_nothing_uses_it(tmp_path: Path) -> None:
    """The data of a replaced model is removed, unless another model of the folder names it."""
    first, second = files.from_proto(make()), files.from_proto(make(seed=1))
    target = tmp_path / "out.onnx"
    _, old = files.save(first, target, external_data=True)
    _, new = files.save(second, target, external_data=True)
    assert not old.exists()
    (tmp_path / "other.onnx").write_bytes(target.read_bytes())
    files.save(first, target, external_data=False)
    assert new.exists()
    assert sorted(child.name for child in tmp_path.iterdir()) == sorted(["other.onnx", "out.onnx", new.name])


def test_a_file_of_other_content_is_never_overwritten(tmp_path: Path) -> None:
    """Where the data file's name is taken by other content, a longer name is used."""
    model = files.from_proto(make())
    _, data = files.save(model, tmp_path / "out.onnx", external_data=True)
    (tmp_path / "out.onnx").unlink()
    data.write_bytes(b"something else")
    _, second = files.save(model, tmp_path / "out.onnx", external_data=True)
    assert data.read_bytes() == b"something else"
    assert re.fullmatch(r"out\.[0-9a-f]{16}\.data", second.name)


def test_impossible_targets(tmp_path: Path) -> None:
    """Folders, devices and missing folders are refused before anything is written."""
    model = files.from_proto(make())
    for target, part in ((tmp_path, "a folder"), (Path("/dev/null"), "not a plain file"), (tmp_path / "no" / "out.onnx", "does not exist")):
        with pytest.raises(ModelFileError, match=part):
            files.save(model, target)
    if os.geteuid() != 0:
        tmp_path.chmod(0o500)
        with pytest.raises(ModelFileError, match="Permission denied"):
            files.save(model, tmp_path / "out.onnx")
        tmp_path.chmod(0o700)


def test_permissions_follow_the_umask_and_an_older_file(tmp_path: Path) -> None:
    """A new file gets the usual permissions, a replaced one keeps its own."""
    model = files.from_proto(make())
    (tmp_path / "plain").touch()
    target = tmp_path / "out.onnx"
    files.save(model, target)
    assert target.stat().st_mode == (tmp_path / "plain").stat().st_mode
    target.chmod(0o640)
    files.save(model, target)
    assert target.stat().st_mode & 0o777 == 0o640


def stopped_save(model: ir.Model, target: Path, external_data: bool, mode: str, step: int) -> int:
    """Saves in a process of its own that stops at a step: before or after it writes, syncs or renames anything.

    Returns:
        0: the save came to its end first; 3 or 130: it ended with the error that ``mode`` asks for; 4: it passed the error by;
        -9: it was killed.
    """
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        return os.waitstatus_to_exitcode(status)
    count = 0

    def stop() -> None:
        nonlocal count
        count += 1
        if count == step:
            if mode == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            raise KeyboardInterrupt if mode == "interrupt" else OSError(28, "No space left on device")

    def counted(call: Callable[..., object]) -> Callable[..., object]:
        def wrapper(*args: object, **kwargs: object) -> object:
            stop()
            result = call(*args, **kwargs)
            stop()
            return result

        return wrapper

    code = 1
    try:
        for holder, name in ((os, "fsync"), (Path, "replace"), (PendingFile, "write"), (shutil, "copymode")):
            setattr(holder, name, counted(getattr(holder, name)))
        files.save(model, target, external_data=external_data)
        code = 0 if count < step else 4
    except ModelFileError as error:
        code = 3 if str(error) == f"{target}: cannot be written: No space left on device" else 1
    except KeyboardInterrupt:
        code = 130
    finally:
        os._exit(code)


@pytest.mark.parametrize("external_data", [False, True])
@pytest.mark.parametrize("mode", ["kill", "interrupt", "full"])
def test_stopped_at_every_step(tmp_path: Path, mode: str, external_data: bool) -> None:
    """Killed, interrupted or out of space before or after any step, the old model or the new one is there, and whole."""
    old, new = files.from_proto(make()), files.from_proto(make(seed=1))
    expected = {"kill": {-9}, "interrupt": {130}, "full": {3, 4}}[mode]
    steps = 0
    for step in range(1, 200):
        folder = tmp_path / str(step)
        folder.mkdir()
        before = files.save(old, folder / "out.onnx", external_data=external_data)
        code = stopped_save(new, folder / "out.onnx", external_data, mode, step)
        verify_structure(files.load(folder / "out.onnx"))
        left = temporaries(folder)
        assert len(left) <= (mode == "kill"), (step, left)
        names = {path.name for path in folder.iterdir()} - set(left)
        is_new = weight_of(folder / "out.onnx")[0, 0] == 1
        if not is_new:
            assert code in expected - {4}
            assert all(path.exists() for path in before)
        # Data of the model that did not make it, or of the one that was replaced, may be left by a kill or a late stop.
        spare = 1 if external_data and (mode == "kill" or (is_new and code in (3, 130))) else 0
        assert len(names) <= 1 + external_data + spare, (step, names)
        if code == 0:
            assert is_new
            break
        assert code in expected, (step, code)
        steps = step
    assert 8 < steps < 199


def test_a_file_size_limit_leaves_the_old_model(tmp_path: Path) -> None:
    """A real limit of the system, hit while writing, is one line and leaves no trace."""
    target = tmp_path / "out.onnx"
    files.save(files.from_proto(make()), target)
    before = target.read_bytes()
    code = f"""
        import resource
        from graphopt import files
        model = files.load({str(target)!r})
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))
        for external_data in (False, True):
            try:
                files.save(model, {str(target)!r}, external_data=external_data)
            except Exception as error:
                print(type(error).__name__, error)
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [f"ModelFileError {target}: cannot be written: File too large"] * 2
    assert target.read_bytes() == before
    assert list(tmp_path.iterdir()) == [target]


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


def test_pending_file_vanishes_with_its_context(tmp_path: Path) -> None:
    """A file that is not committed leaves nothing, and one that is committed replaces what was there."""
    with PendingFile(tmp_path, "a") as file:
        file.write(b"1")
        assert len(temporaries(tmp_path)) == 1
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "a").write_bytes(b"old")
    with PendingFile(tmp_path, "a") as file:
        file.write(b"new")
        file.commit(tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == b"new"


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


def test_copy_model_is_a_copy(tmp_path: Path) -> None:
    """A copy has the same bytes, in its own folder, and copying again or onto itself is harmless."""
    folder = tmp_path / "in"
    (folder / "sub").mkdir(parents=True)
    source = write(folder / "in.onnx", make(), "sub/w.data")
    target = tmp_path / "out" / "model.onnx"
    target.parent.mkdir()
    for _ in range(2):
        copies = files.copy_model(folder, target)
        assert copies == [target, tmp_path / "out" / "sub" / "w.data"]
        assert target.read_bytes() == source.read_bytes()
        assert copies[1].read_bytes() == (folder / "sub" / "w.data").read_bytes()
    assert files.copy_model(target, target) == copies
    np.testing.assert_array_equal(run(target), run(source))
    assert files.total_bytes(tmp_path / "out") == files.total_bytes(source)
    assert temporaries(tmp_path) == []


def test_copy_model_overwrites_no_other_data(tmp_path: Path) -> None:
    """A data file of the same name and other content is refused, and the target stays as it was."""
    source = write(tmp_path / "in.onnx", make(), "w.data")
    out = tmp_path / "out"
    out.mkdir()
    (out / "w.data").write_bytes(b"other")
    with pytest.raises(ModelFileError, match="another model's data"):
        files.copy_model(source, out / "model.onnx")
    assert [path.name for path in out.iterdir()] == ["w.data"]
    assert (out / "w.data").read_bytes() == b"other"


def test_copy_model_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the disk is full after the data was copied, the data is gone again."""
    source = write(tmp_path / "in.onnx", make(), "w.data")
    out = tmp_path / "out"
    out.mkdir()
    commit = PendingFile.commit

    def failing(file: PendingFile, target: Path) -> None:
        if target.suffix == ".onnx":
            raise OSError(28, "No space left on device")
        commit(file, target)

    monkeypatch.setattr(PendingFile, "commit", failing)
    with pytest.raises(ModelFileError, match="No space left"):
        files.copy_model(source, out / "model.onnx")
    assert list(out.iterdir()) == []


def test_companions(tmp_path: Path) -> None:
    """What lies beside a model is copied: not the model, its data, hidden files or the target itself."""
    source = tmp_path / "in"
    (source / "adapters").mkdir(parents=True)
    model = write(source / "model.onnx", make(), "model.onnx.data")
    write(source / "tokenizer.onnx", make())
    (source / "genai_config.json").write_text('{"model": {"decoder": {"filename": "model.onnx"}}}')
    (source / "adapters" / "a.bin").write_bytes(b"a")
    (source / ".cache").mkdir()
    (source / ".cache" / "x").write_bytes(b"x")
    for target in (tmp_path / "out", source / "out"):
        for _ in range(2):
            copies = files.copy_companions(source, target, model)
            names = {"adapters/a.bin", "genai_config.json", "tokenizer.onnx"}
            assert {path.relative_to(target).as_posix() for path in copies} - {"out/" + name for name in names} == names
        assert (target / "genai_config.json").read_text() == (source / "genai_config.json").read_text()
        assert not (target / "model.onnx").exists()
        assert temporaries(tmp_path) == []
    assert files.copy_companions(source, source, model) == []


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


@pytest.mark.parametrize("variable", ["GRAPHOPT_ZOO", "GRAPHOPT_ARCH"])
def test_real_models(tmp_path: Path, variable: str) -> None:
    """Every model of the zoo loads, verifies, and comes back with the same weights and the same bytes when saved again."""
    if variable not in os.environ:
        pytest.skip(f"{variable} is not set")
    paths = sorted(Path(os.environ[variable]).glob("*/*.onnx"))
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

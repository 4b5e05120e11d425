"""Tests of the compact store: the same bytes come back, and what is stored is close to the entropy of the symbols."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

import graphopt
from graphopt import files
from graphopt.cli import main
from graphopt.container import blocks, coders, open_container, pack, symbols, unpack
from graphopt.container.blocks import Run
from graphopt.container.cursor import Cursor
from graphopt.container.entropy import Bytes, histogram, symbol_bits
from graphopt.container.kinds import KINDS
from graphopt.container.tensors import Region, runs_of
from graphopt.errors import GraphoptError, ModelFileError

SYMBOLS = 1 << 18
GENERATOR = np.random.default_rng(0)
NORMAL = GENERATOR.standard_normal(SYMBOLS)
FLAGS = GENERATOR.random(SYMBOLS)


def quantized(spread: float, bits: int = 8) -> Bytes:
    """Normally distributed weights as signed integers, a byte each; the spread is in steps of the grid."""
    most = (1 << (bits - 1)) - 1
    return np.clip(np.round(NORMAL * spread), -most - 1, most).astype(np.int8).view(np.uint8)


def packed_nibbles(values: Bytes) -> Bytes:
    """Two 4-bit symbols to a byte, as ONNX packs them."""
    return np.asarray((values[::2] & 15) | (values[1::2] << 4), np.uint8)


STREAMS: dict[str, tuple[Bytes, int]] = {
    "8 bits": (quantized(30), 8),
    "8 bits, few used": (quantized(1.35), 8),
    "8 bits, mostly zero": (quantized(0.5), 8),
    "8 bits, half of them pruned": (np.where(FLAGS < 0.5, 0, quantized(25)).astype(np.uint8), 8),
    "8 bits, most of them pruned": (np.where(FLAGS < 0.9, 0, quantized(25)).astype(np.uint8), 8),
    "4 bits in a byte": (quantized(2.6, bits=4) + np.uint8(8), 8),
    "4 bits, packed": (packed_nibbles(quantized(2.6, bits=4)), 4),
    "4 bits, packed, half of them pruned": (packed_nibbles(np.where(FLAGS < 0.5, 0, quantized(2.6, bits=4)).astype(np.uint8)), 4),
    "2 bits, packed": (np.packbits(np.stack([NORMAL > 1, FLAGS < 0.7], axis=1)), 2),
    "2 bits in a byte": (quantized(0.9, bits=2) + np.uint8(2), 8),
    "three values": (np.sign(np.where(FLAGS < 0.9, 0, NORMAL)).astype(np.int8).view(np.uint8), 8),
    "flags": (np.packbits(FLAGS < 0.3), 1),
    "rare flags": (np.packbits(FLAGS < 0.01), 1),
    "exponents": (np.frexp(NORMAL * 0.02)[1].astype(np.int8).view(np.uint8), 8),
    "noise": (GENERATOR.integers(0, 256, SYMBOLS, np.uint8), 8),
}


@pytest.mark.parametrize("name", STREAMS)
def test_coded_size_is_close_to_the_entropy(name: str) -> None:
    """Each kind of stream that models hold comes back, from at most 5 % more than the order-0 entropy of its symbols."""
    data, bits = STREAMS[name]
    coded = coders.encode(data)
    cursor = Cursor(coded)
    assert np.array_equal(coders.decode(cursor, data.size), data)
    assert len(cursor.rest()) == 0
    assert 8 * len(coded) <= 1.05 * symbol_bits(histogram(data), bits) + 8 * 64


@given(st.binary(max_size=300), st.integers(1, 60))
def test_any_stream_comes_back(piece: bytes, times: int) -> None:
    """Streams of any length and content come back, and none becomes larger by more than a byte."""
    data = np.frombuffer(piece * times, np.uint8)
    coded = coders.encode(data)
    assert coders.decode(Cursor(coded), data.size).tobytes() == data.tobytes()
    assert len(coded) <= data.size + 1


def test_grouping_is_bounded() -> None:
    """A stream of rare exceptions is grouped again and again, as often as a reader allows."""
    data = np.zeros(1 << 20, np.uint8)
    data[:: 1 << 12] = 7
    data[5 :: 1 << 13] = 9
    coded = coders.encode(np.random.default_rng(0).permutation(data))
    assert len(coded) < 1000
    assert np.count_nonzero(coders.decode(Cursor(coded), data.size)) == 384


def restored(data: bytes, kind: int) -> bytes:
    """A stream of elements, split and joined."""
    way, parts = symbols.split(np.frombuffer(data, np.uint8), KINDS[kind])
    left = [part.data for part in parts]

    def take(length: int) -> Bytes:
        assert left[0].size == length
        return left.pop(0)

    return symbols.join(way, len(data), KINDS[kind], take).tobytes()


@given(st.sampled_from(sorted(KINDS)), st.binary(max_size=40), st.integers(1, 40), st.integers(0, 200))
def test_any_elements_come_back(kind: int, piece: bytes, times: int, zeros: int) -> None:
    """Elements of any type and bit pattern, with zeros or few values, come back, also where the length is no multiple."""
    data = piece * times + bytes(zeros)
    assert restored(data, kind) == data


@pytest.mark.parametrize("kind", [1, 10, 11, 16])
def test_floats_of_every_pattern_come_back(kind: int) -> None:
    """Signs of zeros, infinities and the bits of NaNs survive."""
    data = np.random.default_rng(kind).integers(0, 1 << 16, 4096, np.uint16).tobytes()
    special = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 5e-324], np.float64).tobytes()
    assert restored(data + special * 8, kind) == data + special * 8


def ways_of(values: np.ndarray[Any, Any]) -> int:
    """The number of the way that float32 values are split."""
    return symbols.split(values.astype(np.float32).view(np.uint8), KINDS[1]).way


def test_splits_follow_the_content() -> None:
    """Dense floats go by planes, pruned ones by the places of their zeros, clustered ones by a codebook, sparse or not."""
    clustered = np.round(NORMAL * 3)
    assert ways_of(NORMAL) == symbols.split(NORMAL.astype(np.float16).view(np.uint8), KINDS[10]).way == 1
    assert ways_of(np.where(FLAGS < 0.5, 0, NORMAL)) == 2
    assert ways_of(clustered) == ways_of(np.where(FLAGS < 0.5, 0, clustered)) == 3


def test_rows_with_values_of_their_own_make_a_codebook() -> None:
    """Values that only a late part of a tensor has are found; more than a codebook holds are none."""
    rows = np.arange(200).repeat(4096)
    assert ways_of(rows) == 3
    assert ways_of(np.arange(300).repeat(4096)) != 3


@given(st.lists(st.tuples(st.integers(0, 40_000_000), st.integers(0, 20_000_000)), max_size=8), st.integers(0, 50_000_000))
def test_blocks_cover_a_file(places: list[tuple[int, int]], size: int) -> None:
    """Regions of tensors in any order, overlapping or beyond the end, cut a file into blocks of bounded size that cover it."""
    regions = [Region(start, start + length, 1) for start, length in places]
    cuts = list(blocks.cut(runs_of(size, regions)))
    assert sum(run.length for cut in cuts for run in cut) == size
    assert all(0 < sum(run.length for run in cut) <= blocks.LARGEST for cut in cuts)


def test_short_runs_share_a_stream() -> None:
    """Biases of one type are coded together, so that each need not bring a table of its own."""
    biases = (NORMAL[:8192] * 0.02).astype(np.float32).tobytes()
    runs = [run for _ in range(64) for run in (Run(0, 10), Run(1, 512))]
    data = b"".join(b"name%06d" % i + biases[512 * i : 512 * (i + 1)] for i in range(64))
    coded, streams = blocks.encode(data, runs)
    assert [(stream.kind, stream.length) for stream in streams] == [(0, 640), (1, 32768)]
    assert len(coded) < 0.92 * len(data)
    assert blocks.decode(coded, len(data)) == data


def random_weights(shape: tuple[int, ...], dtype: Any = np.float32, seed: int = 0) -> np.ndarray[Any, Any]:
    """Weights as training leaves them, roughly."""
    return (np.random.default_rng(seed).standard_normal(shape) * 0.05).astype(dtype)


def make(**more: Any) -> onnx.ModelProto:
    """A model with tensors where a model can have them: initializers, a Constant, a branch, and typed fields."""
    weight = numpy_helper.from_array(random_weights((64, 300)), "w")
    typed = helper.make_tensor("t", TensorProto.FLOAT, [300], random_weights((300,), seed=1).tolist())
    constant = numpy_helper.from_array(random_weights((300,), seed=2), "k")
    branches: dict[str, Any] = {}
    for seed, kind in enumerate(("then", "else")):
        inner = numpy_helper.from_array(random_weights((300,), seed=seed), f"{kind}_w")
        node = helper.make_node("Mul", ["sum", f"{kind}_w"], [f"{kind}_y"])
        output = helper.make_tensor_value_info(f"{kind}_y", TensorProto.FLOAT, [None, 300])
        branches[f"{kind}_branch"] = helper.make_graph([node], kind, [], [output], [inner])
    nodes = [
        helper.make_node("Constant", [], ["c"], value=constant),
        helper.make_node("MatMul", ["x", "w"], ["m"]),
        helper.make_node("Add", ["m", "c"], ["a"]),
        helper.make_node("Add", ["a", "t"], ["sum"]),
        helper.make_node("If", ["b"], ["y"], **branches),
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 64]), helper.make_tensor_value_info("b", TensorProto.BOOL, [])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, 300])]
    graph = helper.make_graph(nodes, "g", inputs, outputs, [weight, typed])
    return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)], **more)


def save_apart(folder: Path, location: str = "model.data") -> Path:
    """The same model with its initializers in a data file, with a gap and a tail that belong to no tensor."""
    model = make()
    data = bytearray(b"head")
    for tensor in model.graph.initializer:
        content = numpy_helper.to_array(tensor).tobytes()
        data += bytes(-len(data) % 64)
        tensor.ClearField("raw_data")
        tensor.ClearField("float_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", location), ("offset", len(data)), ("length", len(content))):
            tensor.external_data.add(key=key, value=str(value))
        data += content
    path = folder / "model.onnx"
    (folder / location).parent.mkdir(parents=True, exist_ok=True)
    (folder / location).write_bytes(data + b"tail" * 100)
    path.write_bytes(model.SerializeToString())
    return path


def assert_comes_back(path: Path, folder: Path) -> None:
    """Packs and unpacks a model, and compares all files byte for byte."""
    folder.mkdir()
    pack(path, folder / "a.gopt")
    copies = unpack(folder / "a.gopt", folder / "b.onnx")
    assert copies[0].read_bytes() == path.read_bytes()
    for copy in copies[1:]:
        assert copy.read_bytes() == (path.parent / copy.relative_to(folder)).read_bytes()


def test_tensors_are_found_everywhere(tmp_path: Path) -> None:
    """Data of initializers, attributes, branches and typed fields is coded as what it is."""
    path = tmp_path / "model.onnx"
    path.write_bytes(make().SerializeToString())
    packed = pack(path)
    assert packed.path == tmp_path / "model.gopt"
    assert packed.kinds["float32"].original == 4 * (64 * 300 + 4 * 300)
    assert packed.tensors.above_ideal < 0.05
    assert_comes_back(path, tmp_path / "copy")


@pytest.mark.parametrize("location", ["model.data", "deep/er/weights", "./dotted.bin"])
def test_data_files_come_back(tmp_path: Path, location: str) -> None:
    """External data comes back under its name, with the bytes that belong to no tensor."""
    (tmp_path / "original").mkdir()
    path = save_apart(tmp_path / "original", location)
    assert_comes_back(path, tmp_path / "copy")
    assert pack(path).kinds["float32"].original == 4 * (64 * 300 + 4 * 300)


UNUSUAL: dict[str, Callable[[bytes], bytes]] = {
    "two messages in one": lambda content: make(producer_name="other").SerializeToString() + content,
    "an unknown field": lambda content: content + b"\xfa\x3f\x04junk",
    "nonsense behind the model": lambda content: content + b"\xff" * 40,
    "a tensor that is no message": lambda content: content + b"\x3a\x42\x2a\x40" + b"\xff" * 64,
    "numbers longer than needed": lambda content: content + b"\x08\x88\x80\x00",
}


@pytest.mark.parametrize("what", UNUSUAL)
def test_unusual_files_come_back(tmp_path: Path, what: str) -> None:
    """What is not understood is kept as it is."""
    path = tmp_path / "model.onnx"
    path.write_bytes(UNUSUAL[what](make().SerializeToString()))
    assert_comes_back(path, tmp_path / "copy")


def test_packing_is_repeatable(tmp_path: Path, digits: Path) -> None:
    """The same model gives the same container, which holds no path and no time."""
    for name in ("a", "b"):
        pack(digits / "conv.onnx", tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_zeros_stay_within_what_a_reader_believes(tmp_path: Path) -> None:
    """A model of nothing but zeros, which could be packed to next to nothing, is packed to no less than a reader accepts."""
    zeros = TensorProto(name="w", data_type=1, dims=[5, 1 << 20], raw_data=bytes(5 << 22))
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [value], [value], [zeros])
    path = tmp_path / "model.onnx"
    path.write_bytes(helper.make_model(graph).SerializeToString())
    assert pack(path).packed_bytes < path.stat().st_size / 1000
    assert_comes_back(path, tmp_path / "copy")


def test_every_type_comes_back(tmp_path: Path) -> None:
    """Initializers of all types, those of less than a byte too."""
    tensors = []
    for number, kind in KINDS.items():
        if number:
            raw = np.random.default_rng(number).integers(0, 16, 40_000, np.uint8).tobytes()
            tensors.append(TensorProto(name=f"w{number}", data_type=number, dims=[40_000 * 8 // kind.bits], raw_data=raw))
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [value], [value], tensors)
    path = tmp_path / "model.onnx"
    path.write_bytes(helper.make_model(graph).SerializeToString())
    assert set(pack(path).kinds) == {kind.name for number, kind in KINDS.items() if number}
    assert_comes_back(path, tmp_path / "copy")


def test_sessions_need_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A packed model, with or without data files, answers as the original does, and nothing is written meanwhile."""
    import onnxruntime

    takes_data = hasattr(onnxruntime.SessionOptions(), "add_external_initializers_from_files_in_memory")
    feed = {"x": random_weights((3, 64), seed=5), "b": np.array(True)}
    for name in ("inside", "apart") if takes_data else ("inside",):
        folder = tmp_path / name
        folder.mkdir()
        path = save_apart(folder, "sub/model.data") if name == "apart" else folder / "model.onnx"
        if name == "inside":
            path.write_bytes(make().SerializeToString())
        expected = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, feed)[0]
        pack(path, tmp_path / f"{name}.gopt")
        for file in (path, *folder.glob("sub/*")):
            file.unlink()
        before = sorted(tmp_path.rglob("*"))
        monkeypatch.setenv("TMPDIR", str(tmp_path))
        session = graphopt.load_packed(tmp_path / f"{name}.gopt", providers=["CPUExecutionProvider"])
        assert np.array_equal(session.run(None, feed)[0], expected)
        assert sorted(tmp_path.rglob("*")) == before


def test_sessions_take_options(tmp_path: Path) -> None:
    """Options go to the runtime; a model that it refuses is one line."""
    import onnxruntime

    path = tmp_path / "model.onnx"
    path.write_bytes(make().SerializeToString())
    pack(path)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = graphopt.load_packed(tmp_path / "model.gopt", options, providers=["CPUExecutionProvider"])
    assert session.get_session_options().intra_op_num_threads == 1
    path.write_bytes(helper.make_model(helper.make_graph([helper.make_node("Nothing", ["x"], ["y"])], "g", [], [])).SerializeToString())
    pack(path)
    with pytest.raises(GraphoptError, match="does not load"):
        graphopt.load_packed(tmp_path / "model.gopt")


def test_old_runtimes_are_named(tmp_path: Path) -> None:
    """A runtime that takes no data files from memory is told in one line what to do."""
    pack(save_apart(tmp_path))
    with pytest.raises(GraphoptError, match="unpack"):
        graphopt.load_packed(tmp_path / "model.gopt", object())


def test_unpacking_replaces_what_pack_read(tmp_path: Path) -> None:
    """Unpacking beside the original changes nothing; data that only a replaced model used goes."""
    path = save_apart(tmp_path)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    pack(path)
    unpack(tmp_path / "model.gopt")
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir() if file.suffix != ".gopt"} == before
    path.write_bytes(make().SerializeToString())
    (tmp_path / "model.data").unlink()
    inline = pack(path, tmp_path / "inline.gopt").path
    unpack(tmp_path / "model.gopt")
    unpack(inline, path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["inline.gopt", "model.gopt", "model.onnx"]


def test_other_files_are_never_replaced(tmp_path: Path) -> None:
    """A file of other content under a data file's name, and a model or container given as its own output, are refused."""
    path = save_apart(tmp_path)
    container = pack(path).path
    (tmp_path / "model.data").write_bytes(b"mine")
    with pytest.raises(ModelFileError, match="another file has the name"):
        unpack(container, tmp_path / "new.onnx")
    with pytest.raises(ModelFileError, match="another file has the name"):
        unpack(container, tmp_path / "model.data")
    with pytest.raises(GraphoptError, match="the container itself"):
        unpack(container, container)
    for itself in ("model.onnx", "model.data"):
        with pytest.raises(GraphoptError, match="the model itself"):
            pack(path, tmp_path / itself)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.data", "model.gopt", "model.onnx"]
    assert (tmp_path / "model.data").read_bytes() == b"mine"


@pytest.mark.parametrize("content", [b"", b"\xff" * 100, b"not a model"])
def test_only_models_are_packed(tmp_path: Path, content: bytes) -> None:
    """Anything else is refused, and so is a model whose data is missing."""
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelFileError):
        pack(path)
    save_apart(tmp_path)
    (tmp_path / "model.data").unlink()
    with pytest.raises(ModelFileError, match="missing"):
        pack(path)
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]


def test_commands(tmp_path: Path, digits: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """``pack`` shows sizes by type beside the ideal ones, or as JSON; ``unpack`` says in one line what it wrote."""
    source, container, model = digits / "conv.onnx", tmp_path / "m.gopt", tmp_path / "m.onnx"
    assert main(["pack", str(source), "-o", str(container), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["version"] == 1
    assert found["original_bytes"] == source.stat().st_size
    assert found["packed_bytes"] == container.stat().st_size < source.stat().st_size
    assert set(found["kinds"]["float32"]) == {"original_bytes", "packed_bytes", "ideal_bytes"}
    assert main(["pack", str(source), "-o", str(container)]) == 0
    assert "above ideal" in capsys.readouterr().out
    assert main(["unpack", str(container)]) == 0
    assert capsys.readouterr().out == f"wrote {model}\n"
    assert model.read_bytes() == source.read_bytes()


def test_memory_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither packing nor unpacking holds more than a few blocks of a model that has many."""
    import tracemalloc

    weights = [numpy_helper.from_array(random_weights((512, 512), seed=seed), f"w{seed}") for seed in range(20)]
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [value], [value], weights)
    path = tmp_path / "model.onnx"
    path.write_bytes(helper.make_model(graph).SerializeToString())
    monkeypatch.setattr(blocks, "LARGEST", 1 << 21)
    del weights, graph
    tracemalloc.start()
    try:
        pack(path)
        unpack(tmp_path / "model.gopt", tmp_path / "copy.onnx")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert path.stat().st_size >= 10 * blocks.LARGEST
    assert peak < 6 * blocks.LARGEST


@pytest.mark.parametrize("name", ["conv.onnx", "conv_torchscript.onnx", "attention.onnx"])
def test_example_models_come_back(tmp_path: Path, digits: Path, name: str) -> None:
    """Exporters' files come back byte for byte."""
    assert_comes_back(digits / name, tmp_path / "copy")


@pytest.mark.slow
def test_real_models_come_back(tmp_path: Path, zoo: Path) -> None:
    """So do all trained models, from at most 5 % more than the entropy of their symbols; with external data too."""
    for path in sorted(zoo.glob("*/model.onnx")):
        packed = pack(path, tmp_path / "packed.gopt")
        assert packed.tensors.above_ideal < 0.05, path
        (copy,) = unpack(packed.path, tmp_path / "copy.onnx")
        assert copy.read_bytes() == path.read_bytes(), path
        apart = files.save(files.load(path), tmp_path / "apart.onnx", external_data=True)
        with open_container(pack(apart[0]).path) as container:
            for (entry, pieces), file in zip(container.contents(), apart, strict=True):
                assert b"".join(pieces) == file.read_bytes(), entry.location or path

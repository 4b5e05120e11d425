"""Tests of packing models: all files come back byte for byte, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, numpy_helper

from graphopt import files
from graphopt.container import blocks, open_container, pack, unpack
from graphopt.container.kinds import KINDS
from graphopt.errors import ModelFileError
from tests.model_files import write
from tests.packable import assert_comes_back, holding, make, random_weights, save_apart


def test_tensors_are_found_everywhere(tmp_path: Path) -> None:
    """Data of initializers, attributes, branches and typed fields is coded as what it is."""
    path = write(tmp_path / "model.onnx", make())
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
    path = write(tmp_path / "model.onnx", holding([zeros]))
    assert pack(path).packed_bytes < path.stat().st_size / 1000
    assert_comes_back(path, tmp_path / "copy")


def test_every_type_comes_back(tmp_path: Path) -> None:
    """Initializers of all types, those of less than a byte too."""
    tensors = []
    for number, kind in KINDS.items():
        if number:
            raw = np.random.default_rng(number).integers(0, 16, 40_000, np.uint8).tobytes()
            tensors.append(TensorProto(name=f"w{number}", data_type=number, dims=[40_000 * 8 // kind.bits], raw_data=raw))
    path = write(tmp_path / "model.onnx", holding(tensors))
    assert set(pack(path).kinds) == {kind.name for number, kind in KINDS.items() if number}
    assert_comes_back(path, tmp_path / "copy")


def test_memory_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither packing nor unpacking holds more than a few blocks of a model that has many."""
    import tracemalloc

    weights = [numpy_helper.from_array(random_weights((512, 512), seed=seed), f"w{seed}") for seed in range(20)]
    path = write(tmp_path / "model.onnx", holding(weights))
    monkeypatch.setattr(blocks, "LARGEST", 1 << 21)
    del weights
    tracemalloc.start()
    try:
        pack(path)
        unpack(tmp_path / "model.gopt", tmp_path / "copy.onnx")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert path.stat().st_size >= 10 * blocks.LARGEST
    assert peak < 6 * blocks.LARGEST


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

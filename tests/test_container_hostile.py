"""Tests of what becomes of containers that are cut off, damaged or made to do harm: one line, little memory, nothing written."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import textwrap
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard

from graphopt.cli import main
from graphopt.container import blocks, coders, form, open_container, pack, unpack
from graphopt.container.blocks import Run
from graphopt.container.cursor import varint
from graphopt.container.entropy import Bytes
from graphopt.container.form import Entry
from graphopt.errors import ContainerError

RAW, ZSTD, HUFFMAN, GROUPED = b"\0", b"\1", b"\2", b"\3"
WHOLE, PLANES, SPARSE, CODEBOOK = b"\0", b"\1", b"\2", b"\3"
ROOT = Path(__file__).parents[1]


def layout(*runs: tuple[int, int]) -> bytes:
    """The start of a block: its runs as kinds and lengths."""
    text = b"".join(bytes([kind]) + varint(length) for kind, length in runs)
    return varint(len(text)) + RAW + text


def framed(coded: bytes, length: int, content: bytes = b"") -> bytes:
    """A block that says to be so long."""
    return form.FRAME.pack(length, len(coded), zlib.crc32(content)) + coded


def container(*framed_blocks: bytes, size: int, name: str = "", padding: int = 0) -> bytes:
    """A container of one model of so many bytes, and one empty data file where a name is given; check sums of its frame are right."""
    entries = [Entry("", size)] + ([Entry(name, 0)] if name else [])
    return form.encode_header(entries) + b"".join(framed_blocks) + bytes(padding)


def header(body: bytes) -> bytes:
    """A header of any content."""
    return form.PREFIX.pack(form.MAGIC, form.VERSION, len(body), zlib.crc32(body)) + body


def zstd_bomb(size: int) -> bytes:
    """Very few bytes that become very many."""
    coder = zstandard.ZstdCompressor().compressobj()
    return b"".join(coder.compress(bytes(1 << 20)) for _ in range(size >> 20)) + coder.flush()


def zlib_bomb(size: int) -> bytes:
    """Few bytes that become many."""
    coder = zlib.compressobj(9, zlib.DEFLATED, -15)
    return b"".join(coder.compress(bytes(1 << 20)) for _ in range(size >> 20)) + coder.flush()


def promising(size: int) -> bytes:
    """A zstd frame of three bytes that promises a size."""
    frame = bytearray(zstandard.ZstdCompressor(write_content_size=True).compress(bytes(1_000_000)))
    assert zstandard.get_frame_parameters(bytes(frame)).content_size == 1_000_000
    place = bytes(frame).index((1_000_000).to_bytes(4, "little"))
    return bytes(frame[:place]) + size.to_bytes(4, "little") + bytes(frame[place + 4 :])


def sized(payload: bytes) -> bytes:
    """A payload with its length before it."""
    return varint(len(payload)) + payload


def streamed(stream: bytes, length: int, kind: int = 0) -> bytes:
    """A container whose only block is one stream."""
    coded = layout((kind, length)) + stream
    return container(framed(coded, length), size=length, padding=1 << 16)


BLOCK = blocks.LARGEST
HOSTILE: dict[str, Callable[[], bytes]] = {
    "nothing": lambda: b"",
    "another file": lambda: b"\x08\x08\x12\x07pytorch",
    "magic alone": lambda: form.MAGIC,
    "mangled line ends": lambda: container(size=0).replace(b"\r\n", b"\n"),
    "a later version": lambda: form.PREFIX.pack(form.MAGIC, 2, 0, 0),
    "a huge header": lambda: form.PREFIX.pack(form.MAGIC, form.VERSION, 0xFFFFFFFF, 0),
    "no files": lambda: header(varint(0)),
    "a named model": lambda: header(varint(1) + varint(1) + b"x" + varint(0)),
    "more files than bytes": lambda: header(varint(1 << 60)),
    "many files": lambda: header(varint(60_000) + b"\0\0" * 10),
    "an endless number": lambda: header(b"\xff" * 100),
    "a name that is no text": lambda: header(varint(2) + b"\0\0" + b"\2\xff\xfe\0"),
    "a huge model": lambda: container(size=1 << 47),
    "more than it can hold": lambda: container(size=1 << 20),
    "sizes that overflow": lambda: header(varint(2) + b"\0" + varint((1 << 64) - 1) + b"\1x" + varint(2)),
    "an absolute name": lambda: container(size=0, name="/evil"),
    "a name that climbs": lambda: container(size=0, name="../evil"),
    "a name that climbs later": lambda: container(size=0, name="a/../../evil"),
    "a name of another system": lambda: container(size=0, name="..\\evil"),
    "a drive": lambda: container(size=0, name="C:\\evil"),
    "a name with a zero": lambda: container(size=0, name="a\0b"),
    "a name that is the folder": lambda: container(size=0, name="."),
    "a name too long": lambda: container(size=0, name="a" * 5000) + hashlib.sha256().digest() * 2,
    "no digest": lambda: container(size=0),
    "a wrong digest": lambda: container(size=0) + bytes(32),
    "something behind": lambda: container(size=0) + hashlib.sha256().digest() + b"x",
    "a huge block": lambda: container(form.FRAME.pack(0xFFFFFFFF, 0xFFFFFFFF, 0), size=1 << 20, padding=1 << 12),
    "a block of nothing": lambda: container(form.FRAME.pack(0, 0, 0) * 1000, size=1 << 20, padding=1 << 12),
    "a block beyond the file": lambda: container(framed(layout((0, 9)) + WHOLE + RAW + b"123456789", 9), size=8, padding=99),
    "an empty layout": lambda: container(framed(varint(0) + RAW, 5), size=5),
    "a run of nothing": lambda: container(framed(layout((0, 0), (0, 0), (0, 5)), 5), size=5),
    "an unknown kind": lambda: container(framed(layout((99, 5)) + WHOLE + RAW + b"12345", 5), size=5),
    "runs beyond the block": lambda: container(framed(layout((0, 6)), 5), size=5),
    "a layout of a million runs": lambda: container(
        framed(varint(2_000_000) + ZSTD + sized(zstandard.compress(b"\0\1" * 1_000_000)), 1_000_000), size=1_000_000, padding=1 << 10
    ),
    "a long layout": lambda: container(framed(layout((0, 1), (0, 1)) + WHOLE + RAW, 1), size=1),
    "a false check sum": lambda: container(framed(layout((0, 5)) + WHOLE + RAW + b"12345", 5), size=5),
    "an unknown way": lambda: streamed(b"\x09" + RAW, 8, kind=1),
    "a way for other elements": lambda: streamed(PLANES + RAW, 8, kind=3),
    "elements cut in two": lambda: streamed(PLANES + RAW, 7, kind=1),
    "an index without a value": lambda: streamed(CODEBOOK + RAW + b"\0" + RAW + bytes(4) + RAW + b"\0\1", 8, kind=1),
    "an unknown coder": lambda: streamed(WHOLE + b"\x09", 8),
    "a coded length beyond the block": lambda: streamed(WHOLE + ZSTD + varint(1 << 40), BLOCK),
    "a zstd frame that is none": lambda: streamed(WHOLE + ZSTD + sized(b"junkjunk"), 100),
    "a zstd frame that promises much": lambda: streamed(WHOLE + ZSTD + sized(promising(0xFFFFFFFF)), BLOCK),
    "a zstd frame that promises right and gives more": lambda: streamed(WHOLE + ZSTD + sized(promising(BLOCK)), BLOCK),
    "a zstd bomb": lambda: streamed(WHOLE + ZSTD + sized(zstd_bomb(1 << 26)), BLOCK),
    "a zstd frame that gives less": lambda: streamed(WHOLE + ZSTD + sized(zstd_bomb(1 << 20)), BLOCK),
    "two zstd frames": lambda: streamed(
        WHOLE + ZSTD + sized(zstandard.ZstdCompressor(write_content_size=False).compress(bytes(50)) * 2), 100
    ),
    "a deflate bomb": lambda: streamed(WHOLE + HUFFMAN + sized(zlib_bomb(1 << 25)), BLOCK),
    "a deflate stream that gives less": lambda: streamed(WHOLE + HUFFMAN + sized(zlib_bomb(1 << 20)), BLOCK),
    "a deflate stream that is none": lambda: streamed(WHOLE + HUFFMAN + sized(b"\xff" * 50), 100),
    "a stream grouped for ever": lambda: streamed(WHOLE + (GROUPED + b"\2\1\0") * 1000, BLOCK),
    "an alphabet of no size": lambda: streamed(WHOLE + GROUPED + b"\0\0", 100),
    "a table larger than its alphabet": lambda: streamed(WHOLE + GROUPED + b"\2\3\0\1\2" + RAW, 8),
    "a group without meaning": lambda: streamed(WHOLE + GROUPED + b"\3\3\0\1\2" + RAW + b"\xff" + RAW, 5),
    "a coded stream of nothing": lambda: streamed(WHOLE + GROUPED + b"\2\1\0" + RAW + b"\0" + ZSTD + sized(b""), 8),
    "more than its streams": lambda: container(framed(layout((0, 2)) + WHOLE + RAW + b"12x", 2, b"12"), size=2),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_containers_are_refused(what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line that names the file, exit status 1, nothing left beside it or above."""
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    path = folder / "x.gopt"
    path.write_bytes(HOSTILE[what]())
    before = sorted(tmp_path.rglob("*"))
    assert main(["unpack", str(path)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("graphopt: ")
    assert error.count("\n") == 1
    assert str(folder) in error
    assert sorted(tmp_path.rglob("*")) == before


def test_hostile_containers_get_little_memory(tmp_path: Path) -> None:
    """Each is refused for what it is by a process that could not reserve what it promises."""
    for what, build in HOSTILE.items():
        (tmp_path / what).write_bytes(build())
    code = """
        import resource, sys
        from pathlib import Path
        from graphopt.container import open_container
        from graphopt.errors import ContainerError

        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + (96 << 20),) * 2)
        for path in sorted(Path(sys.argv[1]).iterdir()):
            try:
                with open_container(path) as container:
                    for _, pieces in container.contents():
                        sum(map(len, pieces))
            except ContainerError:
                continue
            print("accepted", path.name)
    """
    if not Path("/proc/self/statm").exists():
        pytest.skip("needs a system that tells and limits a process's memory")
    command = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert (done.stdout, done.returncode) == ("accepted a name too long\n", 0), done.stderr  # which only the disk minds


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, bytes]:
    """A small model, and its container, in which every coder and way of splitting occurs."""
    generator = np.random.default_rng(0)
    floats = (generator.standard_normal(3000) * 0.05).astype(np.float32)
    pruned = np.where(generator.random(3000) < 0.8, 0, floats).astype(np.float32)
    clustered = np.round(floats * 40).astype(np.float32)
    few = generator.binomial(8, 0.2, 6000).astype(np.uint8)
    streams = [(0, b"name" * 50), (1, floats.tobytes()), (3, few.tobytes()), (1, pruned.tobytes()), (1, clustered.tobytes())]
    pieces = [(blocks.encode(data, [Run(kind, len(data))])[0], data) for kind, data in streams]
    content = b"".join(data for _, data in pieces)
    packed = form.encode_header([Entry("", len(content))]) + b"".join(form.frame(data, coded) for coded, data in pieces)
    return content, packed + hashlib.sha256(content).digest()


def read(path: Path) -> bytes:
    """The content of a container of one file."""
    with open_container(path) as opened:
        return b"".join(b"".join(pieces) for _, pieces in opened.contents())


def test_good_container_is_read(good: tuple[bytes, bytes], tmp_path: Path) -> None:
    """What the next tests damage is whole before."""
    content, packed = good
    path = tmp_path / "good.gopt"
    path.write_bytes(packed)
    assert read(path) == content


def test_truncated_containers_are_refused(good: tuple[bytes, bytes], tmp_path: Path) -> None:
    """However much is missing."""
    _, packed = good
    path = tmp_path / "cut.gopt"
    for length in [*range(64), *range(64, len(packed), 97), *range(len(packed) - 40, len(packed))]:
        path.write_bytes(packed[:length])
        with pytest.raises(ContainerError):
            read(path)


def damages(packed: bytes) -> Iterator[bytes]:
    """The container with a bit turned, with several bytes replaced, and with some missing, in many places."""
    generator = np.random.default_rng(0)
    for place in [*range(128), *generator.integers(0, len(packed), 150)]:
        damaged = bytearray(packed)
        damaged[place] ^= 1 << int(generator.integers(8))
        yield bytes(damaged)
        for other in generator.integers(0, len(packed), 8):
            damaged[other] = int(generator.integers(256))
        yield bytes(damaged)
        yield packed[:place] + packed[place + int(generator.integers(1, 40)) :]


def test_damaged_containers_give_nothing_wrong(good: tuple[bytes, bytes], tmp_path: Path) -> None:
    """Damage is refused, or lies where no content does."""
    content, packed = good
    path = tmp_path / "damaged.gopt"
    refused = 0
    for damaged in damages(packed):
        path.write_bytes(damaged)
        try:
            assert read(path) == content
        except ContainerError:
            refused += 1
    assert refused > 750


def test_damage_is_never_half_unpacked(tmp_path: Path, digits: Path) -> None:
    """An older output stays as it is when the last bytes of a container are wrong."""
    packed = pack(digits / "conv.onnx", tmp_path / "model.gopt").path
    content = bytearray(packed.read_bytes())
    content[-1] ^= 1
    packed.write_bytes(content)
    (tmp_path / "model.onnx").write_bytes(b"older")
    with pytest.raises(ContainerError, match="digest"):
        unpack(packed)
    assert {file.name for file in tmp_path.iterdir()} == {"model.gopt", "model.onnx"}
    assert (tmp_path / "model.onnx").read_bytes() == b"older"


def test_links_do_not_lead_outside(tmp_path: Path) -> None:
    """A data file does not pass through a link in the output's folder."""
    folder, outside = tmp_path / "folder", tmp_path / "outside"
    folder.mkdir()
    outside.mkdir()
    (folder / "sub").symlink_to(outside)
    path = folder / "x.gopt"
    path.write_bytes(container(size=0, name="sub/evil") + hashlib.sha256().digest() * 2)
    with pytest.raises(ContainerError, match="leads out"):
        unpack(path)
    assert not list(outside.iterdir())
    assert sorted(file.name for file in folder.iterdir()) == ["sub", "x.gopt"]


def test_all_coders_occur(good: tuple[bytes, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The container that is damaged has all forms of streams, so that damage meets each decoder."""
    met = set()
    decoders = coders._DECODERS

    class Watched(tuple[Callable[..., Bytes], ...]):
        __slots__ = ()

        def __getitem__(self, number: Any) -> Any:
            met.add(number)
            return super().__getitem__(number)

    monkeypatch.setattr(coders, "_DECODERS", Watched(decoders))
    path = tmp_path / "good.gopt"
    path.write_bytes(good[1])
    read(path)
    assert met == set(range(len(decoders)))

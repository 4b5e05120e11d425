"""Tests of what the command line makes of bad input: one clear line, the right exit status, nothing half done."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from graphopt.cli import main
from graphopt.runtime.session import open_session, runtime_limits

GOOD = """<ir_version: 8, opset_import: ["": 18]> g (float[n,4] x) => (float[n,4] y) <float[4] w = {1, 2, 3, 4}> {
    [twice] i = Identity(x) [add] a = Add(i, w) [relu] y = Relu(a) }"""


def save(text: str, path: Path) -> Path:
    """Writes a model given as text, sound or not."""
    onnx.save(onnx.parser.parse_model(text), path)
    return path


@pytest.fixture
def good(tmp_path: Path) -> Path:
    """A small sound model with something to improve."""
    return save(GOOD, tmp_path / "good.onnx")


class Desk:
    """Runs the command line in a folder and looks at what it left there."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self._capsys = folder, capsys
        self.output = folder / "out.onnx"

    def content(self) -> dict[str, bytes]:
        """All files by name; links are not followed."""
        return {path.name: path.read_bytes() for path in self.folder.iterdir() if path.is_file() and not path.is_symlink()}

    def optimize(self, model: Path, *options: str) -> tuple[str, str]:
        """Runs ``optimize`` without timing, which must succeed; gives back what it printed."""
        status = main(["optimize", str(model), "-o", str(self.output), "--verify", "outputs", *options])
        printed = self._capsys.readouterr()
        assert status == 0, printed.err
        return printed.out, printed.err

    def refuse(self, *arguments: str | Path, status: int = 1) -> str:
        """Runs a command that must fail with one line and leave the folder as it was; gives back that line."""
        before = self.content()
        assert main([str(argument) for argument in arguments]) == status
        assert self.content() == before
        printed = self._capsys.readouterr()
        lines = [line for line in printed.err.splitlines() if not line.endswith(" s)")]  # progress ends with the seconds
        assert printed.out == ""
        if status == 1:
            assert len(lines) == 1, printed.err
            assert lines[0].startswith("graphopt: ")
        assert "Traceback" not in printed.err
        return "\n".join(lines)

    def refuse_model(self, model: Path, *options: str) -> str:
        """Optimizing must fail."""
        return self.refuse("optimize", model, "-o", self.output, *options)


@pytest.fixture
def desk(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Desk:
    """The command line in a temporary folder."""
    return Desk(tmp_path, capsys)


# Files that are no models.


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"", "the file is empty"),
        (bytes(range(256)) * 8, "not an ONNX model"),
        (b"<html>404</html>" * 50, "not an ONNX model"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "git lfs pull"),
    ],
    ids=["empty", "random", "text", "pointer"],
)
def test_other_files(desk: Desk, content: bytes, part: str) -> None:
    """What is no model is refused with the file's name and the reason, by every command that reads one."""
    model = desk.folder / "model.onnx"
    model.write_bytes(content)
    for command in (("optimize", "-o", desk.output), ("inspect",), ("verify",), ("compare", model)):
        message = desk.refuse(*command, model)
        assert part in message
        assert str(model) in message


def test_truncated(desk: Desk, digits: Path) -> None:
    """A file that ends early is refused wherever it ends."""
    whole = (digits / "conv.onnx").read_bytes()
    for share in (0.001, 0.1, 0.5, 0.9, 0.999):
        model = desk.folder / "model.onnx"
        model.write_bytes(whole[: int(len(whole) * share)])
        assert str(model) in desk.refuse_model(model)


def test_missing_and_unclear_paths(desk: Desk) -> None:
    """No file, a folder without a model and one with several are told apart."""
    assert "no such file" in desk.refuse_model(desk.folder / "nothing.onnx")
    assert "without a .onnx file" in desk.refuse_model(desk.folder)
    for name in ("a.onnx", "b.onnx"):
        save(GOOD, desk.folder / name)
    assert "a.onnx, b.onnx" in desk.refuse_model(desk.folder)


# Graphs that are wrong.


@pytest.mark.parametrize(
    ("nodes", "part"),
    [
        ("a = Add(x, b)  b = Relu(a)  y = Relu(b)", "cycle"),
        ("a = Relu(x)  a = Relu(x)  y = Relu(a)", "duplicate name"),
        ("y = Add(x, w)", "'w'"),
        ("a = Convolve(x)  y = Relu(a)", "Convolve"),
        ("y = Gelu(x)", "opset 18 has no operator Gelu"),
        ("a = Relu(x)", "'y'"),
        ("y = other.Thing(x)", "'other'"),
    ],
    ids=["cycle", "duplicate", "missing", "unknown operator", "newer operator", "missing output", "unknown import"],
)
def test_wrong_graphs(desk: Desk, nodes: str, part: str) -> None:
    """A graph that breaks ONNX's rules is refused, and the node or value is named."""
    text = f'<ir_version: 8, opset_import: ["": 18]> g (float[4] x) => (float[4] y) {{ {nodes} }}'
    assert part in desk.refuse_model(save(text, desk.folder / "model.onnx"))


def test_a_graph_that_the_runtime_refuses(desk: Desk) -> None:
    """A model whose types cannot be is refused with the runtime's reason."""
    text = '<ir_version: 8, opset_import: ["": 18]> g (float[4,4] x) => (float[4,4] y) { [product] y = Gather(x, x) }'
    assert "product" in desk.refuse_model(save(text, desk.folder / "model.onnx"))


# External data.


def external(folder: Path, location: str, length: int = 16) -> Path:
    """A model whose weight is said to lie somewhere."""
    model = onnx.parser.parse_model(GOOD)
    weight = model.graph.initializer[0]
    weight.ClearField("float_data")
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", str(length))):
        entry = weight.external_data.add()
        entry.key, entry.value = key, value
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def test_external_data_that_is_not_there(desk: Desk) -> None:
    """Data that is missing or ends early is refused, and the tensor is named."""
    model = external(desk.folder, "weights.bin")
    assert "missing" in desk.refuse_model(model)
    (desk.folder / "weights.bin").write_bytes(b"1234")
    assert "'w'" in desk.refuse_model(model)


def test_external_data_outside_the_folder(desk: Desk, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Data outside the model's folder is never read: not by a relative, an absolute path or a link."""
    outside = tmp_path_factory.mktemp("outside") / "secret"
    outside.write_bytes(bytes(16))
    for location in (os.path.relpath(outside, desk.folder), str(outside)):
        assert "not a path inside the model's folder" in desk.refuse_model(external(desk.folder, location))
    (desk.folder / "link").symlink_to(outside)
    assert "leaves the model's folder" in desk.refuse_model(external(desk.folder, "link"))


def test_output_onto_the_weights(desk: Desk) -> None:
    """The file that holds the input's weights is no output."""
    model = external(desk.folder, "weights.bin")
    (desk.folder / "weights.bin").write_bytes(np.arange(4, dtype=np.float32).tobytes())
    assert "holds the input's weights" in desk.refuse("optimize", model, "-o", desk.folder / "weights.bin")
    desk.optimize(model)
    assert (desk.folder / "weights.bin").read_bytes() == np.arange(4, dtype=np.float32).tobytes()


# Outputs that cannot be written.


def test_output_that_is_the_input(desk: Desk, good: Path) -> None:
    """The input is overwritten on demand only, whatever path leads to it."""
    (desk.folder / "link.onnx").symlink_to(good)
    for output in (good, desk.folder / "." / "good.onnx", desk.folder / "link.onnx"):
        assert "--in-place" in desk.refuse("optimize", good, "-o", output)
    assert "not both" in desk.refuse("optimize", good, "-o", desk.output, "--in-place")


def test_outputs_that_cannot_be(desk: Desk, good: Path) -> None:
    """A folder that does not exist, a file in the place of a folder, a device."""
    assert "does not exist" in desk.refuse("optimize", good, "-o", desk.folder / "none" / "out.onnx")
    assert "good.onnx" in desk.refuse("optimize", good, "-o", good / "out.onnx")
    assert "not a plain file" in desk.refuse("optimize", good, "-o", "/dev/null")


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is a folder that nobody can write to")
def test_a_folder_that_cannot_be_written(desk: Desk, good: Path) -> None:
    """A folder without leave to write is named."""
    assert "/proc" in desk.refuse("optimize", good, "-o", "/proc/out.onnx")


@pytest.mark.parametrize("in_place", [False, True])
def test_a_full_disk(desk: Desk, good: Path, monkeypatch: pytest.MonkeyPatch, in_place: bool) -> None:
    """Where the disk is full, wherever that shows first, the error says so, and files are as before."""
    synced = os.fsync
    calls = 0

    def full_at(number: int) -> Callable[[int], None]:
        def sync(handle: int) -> None:
            nonlocal calls
            calls += stat.S_ISREG(os.fstat(handle).st_mode)
            if calls == number:
                raise OSError(errno.ENOSPC, "No space left on device")
            synced(handle)

        return sync

    where = ["--in-place"] if in_place else ["-o", str(desk.output)]
    for number in range(1, 5):  # the model, the model with its ledger in it, the recipe, the ledger
        calls = 0
        monkeypatch.setattr(os, "fsync", full_at(number))
        assert "No space left on device" in desk.refuse("optimize", good, *where, "--verify", "outputs")


LIMITED = """
import resource, signal, sys
from graphopt.cli import main
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), -1))
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no file size limits")
@pytest.mark.parametrize("options", [("--verify", "outputs"), ("--time-limit", "0.1")], ids=["outputs", "full"])
def test_a_limit_on_file_sizes(good: Path, options: tuple[str, ...]) -> None:
    """A process that may write 100 bytes ends with one line, and leaves no file behind."""
    command = [sys.executable, "-c", LIMITED, "100", "optimize", str(good), "-o", str(good.with_name("out.onnx")), "-q", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert done.stderr.count("\n") == 1
    assert "File too large" in done.stderr
    assert [path.name for path in good.parent.iterdir()] == ["good.onnx"]


# Interruption.


def started(good: Path, *options: str) -> subprocess.Popen[str]:
    """The command line as a process of its own group, with the first progress line already read."""
    command = [sys.executable, "-m", "graphopt", "optimize", str(good), *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stderr is not None
    assert process.stderr.readline().startswith("load")
    return process


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_interrupted(digits: Path, tmp_path: Path) -> None:
    """Ctrl-C, which reaches the timing process too, ends with status 130 and one word, and takes the temporary files away."""
    model = tmp_path / "good.onnx"
    shutil.copy(digits / "conv.onnx", model)
    process = started(model, "-o", str(tmp_path / "out.onnx"), "--time-limit", "60")
    assert process.stderr is not None
    while not process.stderr.readline().startswith("rewrite"):
        pass  # what follows is the timing, which takes seconds for a result that is as fast as its original
    time.sleep(0.5)
    os.killpg(process.pid, signal.SIGINT)
    _, error = process.communicate(timeout=30)
    assert process.returncode == 130
    assert [line for line in error.splitlines() if not line.endswith(" s)")] == ["graphopt: interrupted"]
    assert [path.name for path in tmp_path.iterdir()] == ["good.onnx"]


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
@pytest.mark.parametrize("delay", [0.0, 0.05, 0.15])
@pytest.mark.parametrize("in_place", [False, True])
def test_killed(good: Path, delay: float, in_place: bool) -> None:
    """Killed at any time, the input is whole, the output is whole or absent, and at worst one temporary folder is left."""
    before, output = good.read_bytes(), good.with_name("out.onnx")
    process = started(good, *(["--in-place"] if in_place else ["-o", str(output)]), "--verify", "outputs")
    time.sleep(delay)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=30)
    left = {path.name for path in good.parent.iterdir()}
    assert len([name for name in left if name.startswith(".")]) <= 1
    assert {name for name in left if not name.startswith(".")} <= {
        *("good.onnx", "good.onnx.ledger.json", "good.onnx.recipe.yaml"),
        *("out.onnx", "out.onnx.ledger.json", "out.onnx.recipe.yaml"),
    }
    for model in good.parent.glob("*.onnx"):
        open_session(model).run({"x": np.ones((2, 4), np.float32)})
    assert in_place or good.read_bytes() == before


def test_in_place(desk: Desk, good: Path) -> None:
    """On demand the input is replaced; its permissions stay, and nothing temporary is left."""
    good.chmod(0o640)
    before = good.read_bytes()
    assert main(["optimize", str(good), "--in-place", "--verify", "outputs", "-q"]) == 0
    assert good.read_bytes() != before
    assert good.stat().st_mode & 0o777 == 0o640
    assert set(desk.content()) == {"good.onnx", "good.onnx.ledger.json", "good.onnx.recipe.yaml"}
    assert not any(path.is_dir() for path in desk.folder.iterdir())


# Models that are unusual, and fine.


CUSTOM = """<ir_version: 8, opset_import: ["": 18, "acme": 1]> g (float[2,4] x) => (float[2,4] y)
    <float[4] w = {1, 2, 3, 4}, float[2,4] start> {
    [far] i0 = Identity(x) [before] a = Add(i0, w) [near] i1 = Identity(a) [strange] c = acme.Blend(i1)
    [behind] i2 = Identity(c) [after] r = Relu(i2) [end] n = Neg(r) [last] i3 = Identity(n) [out] y = Abs(i3) }"""


def test_unknown_domain(desk: Desk) -> None:
    """Nodes of an unknown domain and their neighbours are left alone, the rest is optimized and verified, and a note says so."""
    text = CUSTOM.replace(", float[2,4] start", "")
    model = onnx.parser.parse_model(text)
    model.graph.value_info.append(helper.make_tensor_value_info("c", TensorProto.FLOAT, [2, 4]))
    path = desk.folder / "model.onnx"
    onnx.save(model, path)
    printed, _ = desk.optimize(path, "--json")
    result = json.loads(printed)
    assert any("acme::Blend" in note and "verified by regions" in note for note in result["notes"])
    assert not result["dropped"]
    names = [node.op_type for node in ir.load(desk.output).graph]
    assert names == ["Add", "Identity", "Blend", "Identity", "Relu", "Neg", "Abs"]
    assert result["figures"]["inferences"] > 0


def test_unknown_domain_without_a_way_to_verify(desk: Desk) -> None:
    """Where nothing around an unknown operator can be run, nothing is changed, and a warning says why."""
    text = """<ir_version: 8, opset_import: ["": 18, "acme": 1]> g (float[2,4] x) => (float[2,4] y) {
        s = acme.Sequence(x) [a] l = SequenceLength(s) i = Identity(l) f = Cast<to=1>(i) y = Add(x, f) }"""
    path = save(text, desk.folder / "model.onnx")
    printed, _ = desk.optimize(path, "--json")
    result = json.loads(printed)
    assert not result["changed"]
    assert desk.output.read_bytes() == path.read_bytes()
    assert any(note.startswith("warning: the regions around unknown operators do not run") for note in result["notes"])
    assert "unknown operators do not run" in desk.refuse_model(path, "--strict")
    printed, _ = desk.optimize(path, "--json", "--verify", "structure")
    assert json.loads(printed)["changed"]


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_weights_that_are_no_numbers(desk: Desk, value: str) -> None:
    """NaN and infinite weights are a warning that names the first."""
    model = onnx.parser.parse_model(GOOD)
    weight = np.array([1, float(value), 3, 4], np.float32)
    model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(weight, "w"))
    path = desk.folder / "model.onnx"
    onnx.save(model, path)
    printed, _ = desk.optimize(path, "--json")
    result = json.loads(printed)
    assert any(note.startswith("warning: 1 weights hold NaN or infinite values, first w") for note in result["notes"])
    assert result["changed"]


def test_half_precision(desk: Desk) -> None:
    """A float16 model goes through."""
    text = """<ir_version: 8, opset_import: ["": 18]> g (float16[2,4] x) => (float16[2,4] y) {
        i = Identity(x) a = Neg(i) b = Neg(a) y = Relu(b) }"""
    printed, _ = desk.optimize(save(text, desk.folder / "model.onnx"), "--json")
    assert json.loads(printed)["changed"]


def test_versions_that_are_too_new(desk: Desk) -> None:
    """A model of a newer opset or IR version than the runtime loads is lowered, with a note; what cannot be is refused."""
    limits = runtime_limits()
    newest = onnx.defs.onnx_opset_version()
    if newest <= limits.opset or limits.ir_version >= onnx.IR_VERSION:
        pytest.skip("the installed runtime loads all that the installed onnx can say")
    for opset, ir_version in ((newest, onnx.IR_VERSION), (18, onnx.IR_VERSION), (newest, limits.ir_version)):
        path = save(
            f'<ir_version: {ir_version}, opset_import: ["": {opset}]> g (float[4] x) => (float[4] y) {{ y = Relu(x) }}',
            desk.folder / "model.onnx",
        )
        printed, _ = desk.optimize(path, "--json")
        result = json.loads(printed)
        assert result["changed"]
        assert any(note.startswith(f"lowered from opset {opset}, IR version {ir_version}") for note in result["notes"])
        open_session(desk.output).run({"x": np.ones(4, np.float32)})
    text = f'<ir_version: {onnx.IR_VERSION + 1}, opset_import: ["": 18]> g (float[4] x) => (float[4] y) {{ y = Relu(x) }}'
    assert "is not supported" in desk.refuse_model(save(text, desk.folder / "model.onnx"))


@pytest.mark.parametrize("verify", ["full", "outputs", "structure"])
def test_nothing_to_improve(desk: Desk, verify: str) -> None:
    """A model that is as good as it gets comes out byte for byte, with a line that says so."""
    text = '<ir_version: 8, opset_import: ["": 18]> g (float[4] x) => (float[4] y) { [only] y = Relu(x) }'
    path = save(text, desk.folder / "model.onnx")
    printed, _ = desk.optimize(path, "--verify", verify)
    assert sum("nothing to improve: the output equals the input" in line for line in printed.splitlines()) == 1
    assert desk.output.read_bytes() == path.read_bytes()


# Samples that do not fit.


@pytest.mark.parametrize(
    ("arrays", "part"),
    [
        ({"z": np.zeros((3, 4), np.float32)}, "has z"),
        ({"x": np.zeros((3, 4), np.float64)}, "float64"),
        ({"x": np.zeros((3, 5), np.float32)}, "[1, 5]"),
        ({"x": np.zeros((3, 1, 2, 4), np.float32)}, "[3, 1, 2, 4]"),
        ({"x": np.zeros((0, 4), np.float32)}, "no samples"),
    ],
    ids=["name", "type", "length", "rank", "none"],
)
def test_samples_that_do_not_fit(desk: Desk, good: Path, arrays: dict[str, Any], part: str) -> None:
    """Wrong samples are refused, and the message shows what the model wants."""
    np.savez(desk.folder / "data.npz", **arrays)
    message = desk.refuse_model(good, "--data", str(desk.folder / "data.npz"))
    assert part in message
    assert "no samples" in message or "the model wants x: float[n, 4]" in message


def test_samples_that_are_not_there(desk: Desk, good: Path) -> None:
    """A missing file, a function that cannot be imported, and a length that the model has not."""
    assert "nothing.npz" in desk.refuse_model(good, "--data", "nothing.npz")
    assert "no_such_module" in desk.refuse_model(good, "--data", "no_such_module:samples")
    assert "length" in desk.refuse_model(good, "--shape", "length=3")


# Wrong usage.


@pytest.mark.parametrize(
    "arguments",
    [
        ("optimize",),
        ("optimize", "MODEL"),
        ("optimize", "MODEL", "-o", "OUT", "--verify", "sometimes"),
        ("optimize", "MODEL", "-o", "OUT", "--unknown"),
        ("optimize", "MODEL", "-o", "OUT", "--unknown", "3"),
        ("optimize", "MODEL", "-o", "OUT", "extra"),
        ("optimize", "MODEL", "-o", "OUT", "--threads", "-1"),
        ("optimize", "MODEL", "-o", "OUT", "--shape", "n"),
        ("optimize", "MODEL", "-o", "OUT", "--recipe", "r.yaml", "--pass", "simplify"),
        ("optimize", "MODEL", "-o", "OUT", "--pass", "simplify", "--amount", "3"),
        ("inspect",),
        ("inspect", "MODEL", "MODEL"),
        ("compare", "MODEL"),
        ("verify", "MODEL", "--tolerance", "much"),
        ("nonsense",),
    ],
    ids=" ".join,
)
def test_wrong_usage(desk: Desk, good: Path, arguments: tuple[str, ...]) -> None:
    """Wrong usage ends with status 2 and a message, and does nothing."""
    places = {"MODEL": str(good), "OUT": str(desk.output)}
    assert desk.refuse(*(places.get(word, word) for word in arguments), status=2)


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (("--preset", "exakt"), "exact"),
        (("--pass", "simplifi"), "simplify"),
        (("--pass", "simplify(deep=true)"), "deep"),
        (("--pass", "simplify("), "name(option=value"),
        (("--skip", "drop-identitty"), "drop-identity"),
        (("--time-limit", "0"), "time_limit"),
        (("--recipe", "nothing.yaml"), "nothing.yaml"),
        (("--custom-ops", "nothing.so"), "nothing.so"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_choices_that_do_not_exist(desk: Desk, good: Path, options: tuple[str, ...], part: str) -> None:
    """A name that means nothing is refused with the nearest one."""
    assert part in desk.refuse_model(good, *options)

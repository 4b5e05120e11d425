"""Comparison: two models side by side."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from rich.console import Console

from graphopt import files
from graphopt.errors import GraphoptError, SamplesError, VerificationError
from graphopt.report import compare as comparing
from graphopt.report.compare import Comparison, compare
from graphopt.runtime.session import SessionOptions
from graphopt.runtime.timing import Interval, Load, Speed

MODEL = """<ir_version: 10, opset_import: ["" : 20]>
g (float[n, 4] x) => (float[n, 3] y, int64[n] best) <float[4, 3] w = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}> {
    y = MatMul(x, w)
    best = ArgMax<axis = 1, keepdims = 0>(y)
}"""


SPEED = Speed(Interval(2.0, 1.9, 2.1), Interval(1.0, 0.9, 1.1), 3, 0.002, 0.001, Load(0.1, 50.0), Load(0.2, None))


@pytest.fixture
def untimed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spares the processes that a timing takes, where it does not matter."""
    monkeypatch.setattr(comparing, "compare_speed", lambda *_, **__: SPEED)


@pytest.fixture
def write(tmp_path: Path) -> Any:
    """A function that writes a model from text and returns its file."""

    def written(name: str, text: str) -> Path:
        path = tmp_path / f"{name}.onnx"
        files.save(ir.from_onnx_text(text), path)
        return path

    return written


def compared(a: Path, b: Path, data: Any = None, **more: Any) -> Comparison:
    """A comparison that takes little time."""
    return compare(a, b, data, options=SessionOptions(threads=1), time_limit_s=0.2, **more)


def text_of(comparison: Comparison) -> str:
    """What a wide terminal shows."""
    file = io.StringIO()
    Console(file=file, width=200).print(comparison)
    return file.getvalue()


@pytest.mark.usefixtures("untimed")
def test_equal_models_agree(write: Any) -> None:
    """A model and its copy agree, on made-up samples that are marked as such."""
    found = compared(write("a", MODEL), write("b", MODEL))
    assert found.agrees(1e-9)
    assert found.synthetic
    assert found.a.bytes == found.a.path.stat().st_size
    assert (found.a.nodes, found.b.kernels) == (2, 2)
    shown = text_of(found)
    assert "synthetic inputs" in shown
    assert "made up" in shown
    assert "identical" in shown
    assert "2.000 [1.900, 2.100] times as fast" in shown


@pytest.mark.usefixtures("untimed")
def test_differences_are_measured(write: Any) -> None:
    """How far outputs are apart is told for each output, over all samples."""
    other = MODEL.replace("11, 12}", "11, 12.5}")
    data = [{"x": np.eye(4, dtype=np.float32)}, {"x": np.ones((2, 4), np.float32)}]
    found = compared(write("a", MODEL), write("b", other), data)
    assert found.outputs["y"].max_abs == 0.5
    assert found.outputs["y"].elements == 18
    assert not found.agrees(1e-3)
    assert found.agrees(0.5)
    assert (found.samples, found.synthetic) == (2, False)
    assert "synthetic" not in text_of(found)


@pytest.mark.usefixtures("untimed")
def test_different_integers_never_agree(write: Any) -> None:
    """Integer outputs agree only where they are equal."""
    other = MODEL.replace("best = ArgMax<axis = 1, keepdims = 0>(y)", "m = ArgMin<axis = 1, keepdims = 0>(y) best = Identity(m)")
    found = compared(write("a", MODEL), write("b", other), [{"x": np.ones((1, 4), np.float32)}])
    assert not found.agrees(0.9)
    assert "1 of 1 differ" in text_of(found)


@pytest.mark.usefixtures("untimed")
def test_missing_output(write: Any) -> None:
    """An output that the other model lacks is told, and the models do not agree."""
    found = compared(write("a", MODEL), write("b", MODEL.replace(", int64[n] best)", ")")))
    assert not found.agrees(0.9)
    assert found.to_json()["outputs"][1]["problem"] == "missing"
    assert "missing" in text_of(found)


@pytest.mark.usefixtures("untimed")
def test_json(write: Any) -> None:
    """Plain data is valid JSON with a version, also where a figure is infinite."""
    other = MODEL.replace("12}>", "12}, float[1] zero = {0}>").replace("y = MatMul(x, w)", "h = MatMul(x, w) y = Div(h, zero)")
    found = compared(write("a", MODEL), write("b", other), [{"x": np.ones((1, 4), np.float32)}])
    data = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert data["version"] == 1
    assert data["outputs"][0]["max_abs"] is None
    assert data["samples"] == {"count": 1, "source": found.source, "synthetic": False}
    assert data["speed"]["speedup"].keys() == {"ratio", "low", "high"}
    assert data["a"]["path"].endswith("a.onnx")


@pytest.mark.usefixtures("untimed")
def test_other_inputs_are_refused(write: Any) -> None:
    """Models that are not fed alike cannot be compared; the message names the input and both files."""
    other = MODEL.replace("float[n, 4] x", "float[n, 4] z").replace("(x, w)", "(z, w)")
    with pytest.raises(VerificationError, match=r"a\.onnx wants 'x', .*b\.onnx does not"):
        compared(write("a", MODEL), write("b", other))


@pytest.mark.usefixtures("untimed")
def test_errors_are_those_of_the_parts(write: Any, tmp_path: Path) -> None:
    """A missing file and samples that do not fit are one-line errors."""
    a = write("a", MODEL)
    with pytest.raises(GraphoptError, match=r"no\.onnx"):
        compared(a, tmp_path / "no.onnx")
    with pytest.raises(SamplesError):
        compared(a, a, [{"z": np.ones(3)}])
    with pytest.raises(SamplesError, match="'m'"):
        compared(a, a, shapes={"m": 3})


def test_digits(digits: Path) -> None:
    """Two exports of one network agree on real samples."""
    found = compared(digits / "conv.onnx", digits / "conv_torchscript.onnx", digits / "eval.npz")
    assert found.agrees(1e-4)
    assert found.speed.runs >= 3
    assert all(fidelity.top1 == 1.0 for fidelity in found.outputs.values())

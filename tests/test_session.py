"""Tests of graphopt.runtime.session."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from graphopt.errors import RuntimeUnavailableError, SessionError
from graphopt.runtime import serialize
from graphopt.runtime.session import SessionOptions, open_session, runtime_limits, shorten

LINEAR = '<ir_version: 8, opset_import: ["" : 17]> g (float[N, 3] x) => (float[N, 3] y) { [product] y = MatMul(x, w) }'


def text_model(text: str) -> ir.Model:
    """A model in ONNX's text format."""
    return ir.from_onnx_text(text)


def linear_model(folder: Path) -> ir.Model:
    """A doubling of x, its weight mapped from a file in `folder`."""
    model = text_model(LINEAR.replace("(float[N, 3] y) {", "(float[N, 3] y) <float[3, 3] w = {2,0,0, 0,2,0, 0,0,2}> {"))
    ir.save(model, folder / "linear.onnx", external_data="linear.data", size_threshold_bytes=0)
    return ir.load(folder / "linear.onnx")


@pytest.mark.parametrize("in_memory_bytes", [0, 2**20])
def test_model_in_flight_runs_and_stays_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_memory_bytes: int) -> None:
    """A model with mapped weights runs by way of bytes and by way of files, and its weights stay mapped."""
    monkeypatch.setattr(serialize, "IN_MEMORY_BYTES", in_memory_bytes)
    model = linear_model(tmp_path)
    session = open_session(model, "none", SessionOptions(threads=1))
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    np.testing.assert_array_equal(session.run({"x": x})["y"], 2 * x)
    assert session.input_names == ("x",)
    assert isinstance(model.graph.initializers["w"].const_value, ir.ExternalTensor)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["linear.data", "linear.onnx"]


def test_large_weights_that_nobody_uses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Large weights are handed over beside the model; one that no node reads any more does not keep it from loading."""
    monkeypatch.setattr(serialize, "IN_MEMORY_BYTES", 0)
    model = text_model(LINEAR.replace("(float[N, 3] y) {", "(float[N, 3] y) <float[3, 3] w = {2,0,0, 0,2,0, 0,0,2}> {"))
    for name in ("unused", "used"):
        model.graph.register_initializer(ir.val(name, const_value=ir.tensor(np.ones((3, 400), np.float32), name=name)))
    model.graph[0].replace_input_with(1, model.graph.initializers["used"])
    model.graph.outputs[0].shape = ir.Shape(["N", 400])
    found = open_session(model, "all").run({"x": np.ones((2, 3), np.float32)})
    np.testing.assert_array_equal(found["y"], np.full((2, 400), 3, np.float32))


def test_weights_of_subgraphs_are_embedded(tmp_path: Path) -> None:
    """Weights inside the branches of an If travel with the bytes too."""
    model = text_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (bool c, float[2] x) => (float[2] y) { y = If(c) <'
        "then_branch = a () => (float[2] p) <float[2] v = {1, 2}> { p = Add(x, v) },"
        "else_branch = b () => (float[2] q) <float[2] u = {3, 4}> { q = Add(x, u) }> }"
    )
    ir.save(model, tmp_path / "m.onnx", external_data="m.data", size_threshold_bytes=0)
    session = open_session(ir.load(tmp_path / "m.onnx"))
    x = np.zeros(2, np.float32)
    assert session.run({"c": np.array(True), "x": x})["y"].tolist() == [1, 2]
    assert session.run({"c": np.array(False), "x": x})["y"].tolist() == [3, 4]


def test_errors_are_one_line_and_name_the_node(tmp_path: Path) -> None:
    """What the runtime refuses, at load and at run, is a SessionError of one line with the node's name."""
    bad = text_model('<ir_version: 8, opset_import: ["" : 17]> g (float[2, 3] x) => (float[N, M] y) { [product] y = MatMul(x, x) }')
    open_shape = text_model('<ir_version: 8, opset_import: ["" : 17]> g (float[N, 3] x) => (float[N, M] y) { [product] y = MatMul(x, x) }')
    with pytest.raises(SessionError, match="product") as load_error:
        open_session(bad)
    with pytest.raises(SessionError, match="product") as run_error:
        open_session(open_shape).run({"x": np.zeros((2, 3), np.float32)})
    with pytest.raises(SessionError, match=r"nothing\.onnx"):
        open_session(tmp_path / "nothing.onnx")
    for error in (load_error, run_error):
        assert "\n" not in str(error.value)
        assert "onnxruntime_src" not in str(error.value)


def test_long_messages_are_cut() -> None:
    """A message of the runtime is at most 300 characters long."""
    assert len(shorten("[ONNXRuntimeError] : 1 : FAIL : " + "x" * 1000)) == 300


def test_provider_that_is_missing_is_refused() -> None:
    """An execution provider that is not installed is an error, not a silent fall back to the CPU."""
    with pytest.raises(RuntimeUnavailableError, match=r"graphopt\[gpu\]"):
        open_session(text_model(LINEAR.replace("MatMul(x, w)", "Neg(x)")), "all", SessionOptions(providers=("NoSuchProvider",)))


def test_bfloat16_passes_through() -> None:
    """Types that NumPy lacks go in and come out as those of ml_dtypes."""
    bfloat16 = ir.DataType.BFLOAT16.numpy()
    model = text_model('<ir_version: 10, opset_import: ["" : 21]> g (bfloat16[N] x) => (bfloat16[N] y) { y = Identity(x) }')
    found = open_session(model).run({"x": np.array([1, -2], bfloat16)})["y"]
    assert found.dtype == bfloat16
    assert found.tolist() == [1, -2]


def test_limits_are_probed() -> None:
    """The newest versions are at least those of the oldest supported runtime."""
    limits = runtime_limits()
    assert limits.opset >= 21
    assert limits.ir_version >= 10

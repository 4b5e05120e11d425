"""Tests of models that are unusual, and fine: unknown operators, odd numbers, new versions, nothing to improve."""

from __future__ import annotations

import json

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from graphopt.runtime.session import open_session, runtime_limits
from tests.desk import GOOD, Desk, desk_in, save

desk = pytest.fixture(desk_in)
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

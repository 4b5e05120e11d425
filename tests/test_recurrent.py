"""Recurrent layers in integers: every form of LSTM stays close; what has no kernel stays as it is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from graphopt import ledger
from graphopt.graph.edits import name_nodes
from graphopt.graph.signature import signature_of
from graphopt.graph.structure import verify_structure
from graphopt.graph.view import View
from graphopt.passes.base import Context
from graphopt.passes.quantize import recurrent
from graphopt.passes.quantize.recurrent import Recurrent
from graphopt.runtime.kernels import executed_kernels
from graphopt.runtime.session import open_session
from graphopt.samples import Samples
from tests.helpers import operators, random_feeds
from tests.weighted import weighted

WEIGHTS = {"w": (1, 64, 24), "r": (1, 64, 16), "b": (1, 128), "p": (1, 48)}
BOTH = {"w": (2, 64, 24), "r": (2, 64, 16), "b": (2, 128), "p": (2, 48)}


def run(model: ir.Model, chosen: Recurrent | None = None, target: str = "cpu") -> ledger.Recorder:
    """Runs the pass and tells what it recorded."""
    samples = Samples.open([random_feeds(model)], signature_of(model))
    with ledger.recording(ledger.Recorder()) as recorder:
        (chosen or Recurrent(min_size=0)).run(model, Context(samples, target, measures=False))
    verify_structure(model)
    return recorder


@pytest.mark.parametrize(
    ("attributes", "inputs", "weights"),
    [
        ("", "w, r", WEIGHTS),
        ("", "w, r, b", WEIGHTS),
        ("", "w, r, b, , h, c", WEIGHTS),
        ("", "w, r, b, , , , p", WEIGHTS),
        (', direction = "reverse"', "w, r, b", WEIGHTS),
        (', direction = "bidirectional"', "w, r, b", BOTH),
        (", clip = 0.5, input_forget = 1", "w, r, b", WEIGHTS),
        (', activations = ["Relu", "Tanh", "Tanh"]', "w, r", WEIGHTS),
    ],
)
def test_every_form_of_lstm(attributes: str, inputs: str, weights: dict[str, tuple[int, ...]]) -> None:
    """Data, directions, states, peepholes, clipping and activations: all three outputs within 30 dB, in the integer kernel."""
    directions = weights["w"][0]
    state = f"float[{directions},2,16]"
    used = {name: shape for name, shape in weights.items() if name in inputs.replace(",", "").split()}
    text = f"""(float[5,2,24] x, {state} h, {state} c) => (float[5,{directions},2,16] y, {state} hn, {state} cn) {{
        y, hn, cn = LSTM<hidden_size = 16{attributes}>(x, {inputs})
    }}"""
    before, after = weighted(text, used), weighted(text, used)
    for model in (before, after):
        for value in model.graph.initializers.values():
            assert value.const_value is not None
            value.const_value = ir.tensor(value.const_value.numpy() * np.float32(0.2), name=value.name)
    recorder = run(after)
    assert [rewrite.kernels for rewrite in recorder.rewrites] == [("com.microsoft::DynamicQuantizeLSTM",)]
    assert executed_kernels(after).counts["com.microsoft", "DynamicQuantizeLSTM"] == 1
    for output in after.graph[0].outputs:
        output.shape = None
    assert [View(after).shape(output) for output in after.graph[0].outputs] == [(5, directions, 2, 16), *[(directions, 2, 16)] * 2]
    feeds = random_feeds(before)
    expected = open_session(before).run(feeds)
    for name, found in open_session(after).run(feeds).items():
        assert np.square(found - expected[name]).sum() < 1e-3 * np.square(expected[name]).sum()


def test_what_has_no_kernel_stays() -> None:
    """GRUs, weights that are computed, and targets without the kernel are left alone, with the reason."""
    gru = weighted("(float[5,2,24] x) => (float[5,1,2,16] y) { y = GRU<hidden_size=16>(x, w, r) }", {"w": (1, 48, 24), "r": (1, 48, 16)})
    assert list(run(gru).misses.values()) == ["the runtime has no integer kernel for GRU"]
    text = "(float[5,2,24] x, float[1,64,24] w) => (float[5,1,2,16] y) { y = LSTM<hidden_size=16>(x, w, r) }"
    fed = weighted(text, {"r": (1, 64, 16)})
    assert list(run(fed).misses.values()) == ["its weights are not constant"]
    lstm = weighted(text.replace(", float[1,64,24] w", ""), {"w": (1, 64, 24), "r": (1, 64, 16)})
    assert run(lstm, target="portable").notes == ["recurrent: the target portable has no kernel for com.microsoft::DynamicQuantizeLSTM"]
    assert not run(lstm, Recurrent(min_size=0, exclude=("w", "r"))).rewrites
    assert operators(lstm) == ["LSTM"]


def test_what_does_not_pay_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer that is slower in integers on this machine stays in float, and the ledger has both times."""
    text = "(float[5,2,24] x) => (float[5,1,2,16] y) { y = LSTM<hidden_size=16>(x, w, r) }"
    for times, declined in (([1e-3, 2e-3], ["2 ms instead of 1 ms in float"]), ([1e-3, 1e-3], [])):
        model = weighted(text, {"w": (1, 64, 24), "r": (1, 64, 16)})
        monkeypatch.setattr(recurrent, "seconds_of", lambda models, feed, options, times=times: times)
        with ledger.recording(ledger.Recorder()) as recorder:
            Recurrent(min_size=0).run(model, Context(Samples.synthetic(model), "cpu"))
        assert [drop.reason for drop in recorder.declined] == declined
        assert len(recorder.rewrites) == 1 - len(declined)


def test_real_measurements_decide() -> None:
    """A large layer is timed on this machine, with a result or a reason."""
    model = weighted(
        "(float[4,2,64] x) => (float[4,1,2,128] y) { y = LSTM<hidden_size=128>(x, w, r) }", {"w": (1, 512, 64), "r": (1, 512, 128)}
    )
    with ledger.recording(ledger.Recorder()) as recorder:
        Recurrent().run(model, Context(Samples.synthetic(model), "cpu", shapes={"x": (4, 2, 64)}))
    assert len(recorder.rewrites) + len(recorder.declined) == 1


def test_a_speech_detector(zoo: Path) -> None:
    """A trained model with an LSTM over a sequence keeps its outputs within 30 dB."""
    before, after = (ir.load(zoo / "silero_vad_seq" / "model.onnx") for _ in range(2))
    name_nodes(after)
    samples = Samples.synthetic(after)
    assert Recurrent().run(after, Context(samples, "cpu", measures=False))
    for feed in samples:
        expected = open_session(before).run(feed)
        for name, found in open_session(after).run(feed).items():
            assert np.square(found - expected[name]).sum() < 1e-3 * np.square(expected[name]).sum()

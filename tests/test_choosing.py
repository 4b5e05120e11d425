"""Tests of what is left out so that a limit is kept, and of what is told where nothing keeps it."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
import pytest

from graphopt import driver
from graphopt.choosing.judge import Judge
from graphopt.choosing.metric import Metric
from graphopt.errors import LimitError
from graphopt.ledger import Key, Recorder
from graphopt.passes.base import Context
from graphopt.runtime.session import SessionOptions
from tests.noisy import LAYERS, NOISE, Nudge, chain_file, data, kept, recipe

model = pytest.fixture(chain_file)


@pytest.mark.parametrize(
    ("min_sqnr", "left_out"), [(20, []), (35, ["mm1"]), (45, ["mm1", "mm3"]), (65, ["mm1", "mm3", "mm4"]), (120, list(NOISE))], ids=str
)
def test_the_loudest_layers_are_left_out(model: Path, min_sqnr: float, left_out: list[str]) -> None:
    """Exactly those that have to go for the limit, with figures in the ledger; a replay measures nothing and comes to the same."""
    result = driver.optimize(model, model.with_name("out.onnx"), recipe=recipe(min_sqnr=min_sqnr), data=data())
    assert sorted(drop.key.anchor for drop in result.ledger.drops) == left_out
    assert all("dB of signal to noise" in drop.reason for drop in result.ledger.drops)
    assert kept(result) == [name for name in NOISE if name not in left_out]
    again = driver.optimize(model, model.with_name("again.onnx"), recipe=result.recipe, data=data())
    assert model.with_name("again.onnx").read_bytes() == model.with_name("out.onnx").read_bytes()
    assert again.figures.sessions <= result.figures.sessions


def test_preparation_without_approximation_is_nothing(model: Path) -> None:
    """Where the limit leaves no approximation, its preparation goes too; where it leaves some, the preparation stays."""
    result = driver.optimize(model, recipe=recipe("nudge", "disturb", min_sqnr=120), data=data())
    assert not result.changed
    result = driver.optimize(model, recipe=recipe("nudge", "disturb", min_sqnr=45), data=data())
    assert result.ledger.counts() == {"disturb": 4, "nudge": 1}


def test_a_preparation_is_worked_out_once(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many attempts the approximations after it take; a replay gives the same bytes."""
    runs, run = [], Nudge.run

    def counted(self: Nudge, held: ir.Model, context: Context) -> bool:
        runs.append(held)
        return run(self, held, context)

    monkeypatch.setattr(Nudge, "run", counted)
    result = driver.optimize(model, model.with_name("out.onnx"), recipe=recipe("nudge", "disturb", min_sqnr=45), data=data())
    assert len(runs) == 1
    driver.optimize(model, model.with_name("again.onnx"), recipe=result.recipe, data=data())
    assert model.with_name("again.onnx").read_bytes() == model.with_name("out.onnx").read_bytes()


def test_preparation_has_to_be_exact(model: Path) -> None:
    """A preparation that changes the function is dropped, however much an approximation may lose."""
    result = driver.optimize(model, recipe=recipe("nudge(factor=1.01)", "disturb", min_sqnr=20), data=data())
    assert [drop.key for drop in result.ledger.drops] == [Key("nudge", "", "mm0")]
    assert len(kept(result)) == LAYERS


def test_a_limit_that_nothing_keeps(model: Path) -> None:
    """Who insists on a limit hears what the nearest is, and nothing is written."""
    with pytest.raises(LimitError, match=r"keeps 120 dB .* nearest is [78]\d\.\d dB of signal to noise, with disturb at mm\d alone"):
        driver.optimize(model, model.with_name("out.onnx"), recipe=recipe(min_sqnr=120, insist=True), data=data())
    assert not model.with_name("out.onnx").exists()
    assert kept(driver.optimize(model, recipe=recipe(min_sqnr=45, insist=True), data=data()))


def test_time_that_is_up(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without time to measure, predicted errors choose; the ledger says so."""
    monkeypatch.setattr("graphopt.choosing.outcome._SECONDS", 0.0)
    result = driver.optimize(model, recipe=recipe(min_sqnr=45), data=data())
    assert sorted(drop.key.anchor for drop in result.ledger.drops) == ["mm1", "mm3"]
    assert any("6 of 6 rewrites were estimated" in note for note in result.ledger.notes)


def test_only_some_rewrites() -> None:
    """A recorder lets some rewrites of a pass happen alone, and all of other passes."""
    recorder = Recorder(only={"disturb": frozenset({Key("disturb", "", "mm1")})})
    assert not recorder.allow(Key("disturb", "", "mm2"))
    assert not recorder.denies(Key("disturb", "", "mm2"))
    assert all(recorder.allow(key) for key in (Key("disturb", "", "mm1"), Key("nudge", "", "mm2"), Key("disturb")))


def test_a_limit_is_never_told_by_an_empty_word() -> None:
    """0 dB is a limit where nothing else is, as with a budget that decides; beside a metric of one's own it says nothing."""
    own = Metric("mine", lambda run, path: 0.0, 0.5, SessionOptions(), Path("model.onnx"))
    assert Judge(None, 0.0).limit == "0 dB of signal to noise"
    assert Judge(None, 0.0, own).limit == "a drop of mine by 0.5 at most"

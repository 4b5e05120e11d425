"""Choosing what is approximated: sensitivity, budgets, one's own metric, selections, and what takes longer than before."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir
import pytest

from graphopt import driver, ledger
from graphopt.choosing import isa
from graphopt.choosing.budget import Trial, fewest_left_out
from graphopt.choosing.diagnosis import diagnose
from graphopt.choosing.pace import slow_layers
from graphopt.choosing.selection import unselected
from graphopt.choosing.sensitivity import Effect, Effects, decibels
from graphopt.cli import main
from graphopt.errors import LimitError, RecipeError
from graphopt.graph.edits import remove_dead
from graphopt.graph.layers import layers_of
from graphopt.graph.signature import signature_of
from graphopt.ledger import Key, Recorder
from graphopt.passes import PASSES
from graphopt.passes.base import Context, GuidedPass, Role
from graphopt.passes.quantize.dynamic import Dynamic
from graphopt.passes.quantize.saturation import PAIR_LIMIT, at_risk, largest_pair_sums
from graphopt.passes.quantize.static import Static
from graphopt.recipe import Recipe
from graphopt.result import Result
from graphopt.runtime.profile import NodeTime, profile
from graphopt.runtime.session import SessionOptions
from graphopt.samples import Samples
from graphopt.stage import Stage
from tests.helpers import parse

LAYERS = 6
ROOM = "_" * 200
"""At the end of the names of weights, so that what passes add does not make the model larger."""
NOISE = {"mm0": 1e-4, "mm1": 3e-2, "mm2": 1e-4, "mm3": 1e-2, "mm4": 1e-3, "mm5": 1e-4}
"""How much each layer's weight is disturbed below, relative to itself."""


def chain() -> ir.Model:
    """Six orthogonal layers in a row, ``MatMul`` with a weight of 16 by 16, the third twice as wide and back."""
    generator = np.random.default_rng(0)
    lines = " ".join(f"[mm{i}] v{i + 1} = MatMul(v{i}, w{i}{ROOM})" for i in range(LAYERS))
    model = parse(f"(float[n, 16] v0) => (float[n, 16] v{LAYERS}) {{ {lines} }}")
    for node in model.graph:
        value = node.inputs[1]
        assert value is not None
        value.const_value = ir.tensor(np.linalg.qr(generator.normal(size=(16, 16)))[0].astype(np.float32), name=value.name)
        model.graph.register_initializer(value)
    return model


@dataclass(frozen=True)
class Disturb(GuidedPass):
    """Adds noise to weights, as much as the table says."""

    name: ClassVar[str] = "disturb"
    role: ClassVar[Role] = "approximate"

    def run(self, model: ir.Model, context: Context) -> bool:
        """Asks the ledger for each layer."""
        changed = False
        for layer in layers_of(model):
            key = Key(self.name, "", layer.name)
            if not ledger.allow(key):
                continue
            weight = layer.weight()
            noise = np.random.default_rng(int(layer.name[-1])).normal(size=weight.shape)
            disturbed = weight + noise * (NOISE[layer.name] * np.linalg.norm(weight) / np.linalg.norm(noise))
            old, name = layer.value, f"d{layer.name[-1]}"
            value = ir.val(name, const_value=ir.tensor(np.ascontiguousarray(layer.restore(disturbed.astype(np.float32))), name=name))
            model.graph.register_initializer(value)
            layer.node.replace_input_with(layer.index, value)
            remove_dead([old])
            ledger.record(ledger.Rewrite(key, predicted_error=NOISE[layer.name]))
            changed = True
        return changed


@dataclass(frozen=True)
class Nudge(GuidedPass):
    """Renames nothing and keeps the function: stands for a preparation."""

    name: ClassVar[str] = "nudge"
    role: ClassVar[Role] = "prepare"

    factor: float = 1.0

    def run(self, model: ir.Model, context: Context) -> bool:
        """Multiplies the input of the first layer by one, or by what it is told."""
        key = Key(self.name, "", "mm0")
        if not ledger.allow(key):
            return False
        node = next(node for node in model.graph if node.name == "mm0")
        one = ir.val("one", const_value=ir.tensor(np.float32(self.factor), name="one"))
        model.graph.register_initializer(one)
        scaled = ir.node("Mul", [node.inputs[0], one], name="nudged")
        scaled.outputs[0].name = "nudged"
        node.replace_input_with(0, scaled.outputs[0])
        model.graph.insert_before(node, scaled)
        ledger.record(ledger.Rewrite(key, added=("nudged",)))
        return True


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The chain as a file; the passes above are registered."""
    path = tmp_path / "model.onnx"
    ir.save(chain(), path)
    for kind in (Disturb, Nudge):
        monkeypatch.setitem(PASSES, kind.name, f"{__name__}:{kind.__name__}")
    return path


def data() -> list[dict[str, Any]]:
    """Samples of the chain."""
    generator = np.random.default_rng(1)
    return [{"v0": generator.normal(size=(5, 16)).astype(np.float32)} for _ in range(3)]


def recipe(*passes: str, **fields: Any) -> Recipe:
    """Passes that are held to some limits; outputs are verified, nothing is timed."""
    return Recipe.of(*(passes or ("disturb",))).changed(verify="outputs", **fields)


def kept(result: Result) -> list[str]:
    """The layers that were disturbed."""
    return [rewrite.key.anchor for rewrite in result.ledger.rewrites if rewrite.key[0] == "disturb"]


# What is left out.


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


# Budgets, on numbers alone.


def effects(noise: Sequence[float], worth: Sequence[float], total: float | None = None) -> Effects:
    """Effects on one output."""
    each = tuple(Effect(Key("p", "", str(i)), np.array([n]), w, "alone") for i, (n, w) in enumerate(zip(noise, worth, strict=True)))
    return Effects(each, ((0, "y"),), np.zeros(1), np.array([sum(noise) if total is None else total]))


def additive(found: Effects, allowed: float, factor: float = 1.0) -> Callable[[Sequence[int]], Trial]:
    """Attempts whose noise adds up, times a factor."""

    def attempt(left_out: Sequence[int]) -> Trial:
        total = factor * sum(effect.noise for index, effect in enumerate(found.each) if index not in set(left_out))
        total = total + np.zeros(1)
        return Trial(bool((total <= allowed).all()), total)

    return attempt


def test_what_is_worth_little_goes_first() -> None:
    """Of equal noise the one that gives up less; noise per worth decides."""
    found = effects([1.0, 1.0, 0.1], [0.5, 0.1, 0.4])
    assert fewest_left_out(found, 1.2, additive(found, 1.2)) == [1]


@pytest.mark.parametrize("factor", [0.3, 1.0, 5.0])
def test_predictions_are_corrected(factor: float) -> None:
    """Where noise does not add up as predicted, no more is left out than has to be, and few attempts tell."""
    noise = [2.0**-i for i in range(40)]
    found = effects(noise, [1.0] * 40, factor * sum(noise))
    attempts: list[int] = []
    judge = additive(found, 0.01, factor)

    def attempt(left_out: Sequence[int]) -> Trial:
        attempts.append(len(left_out))
        return judge(left_out)

    left_out = fewest_left_out(found, 0.01, attempt)
    assert judge(left_out).kept_within
    assert not judge(left_out[:-1]).kept_within
    assert len(attempts) <= 12


def test_what_does_no_harm_comes_back() -> None:
    """Little ones that were expected to be enough, and were not, are not left out for nothing."""
    found = effects([1.0, 0.2, 0.2, 0.2], [1.0, 0.01, 0.01, 0.01], 1.2)

    def attempt(left_out: Sequence[int]) -> Trial:
        return Trial(0 in left_out, np.array([0.5 if 0 in left_out else 1.2]))

    assert fewest_left_out(found, 1.1, attempt) == [0]


def test_other_limits_than_noise() -> None:
    """Where something else than noise decides, the order is that of noise, and it is halved."""
    found = effects([4.0, 3.0, 2.0, 1.0], [1.0] * 4)
    assert fewest_left_out(found, 1e6, lambda left_out: Trial(len(left_out) >= 3, np.ones(1))) == [0, 1, 2]
    assert fewest_left_out(found, 1e6, lambda left_out: Trial(False, np.ones(1))) == [0, 1, 2, 3]


def test_decibels() -> None:
    """The loudest output counts; silence has a ceiling."""
    assert decibels(np.array([1e-2, 1e-3])) == pytest.approx(20)
    assert decibels(np.zeros(2)) == 200


def test_only_some_rewrites() -> None:
    """A recorder lets some rewrites of a pass happen alone, and all of other passes."""
    recorder = Recorder(only={"disturb": frozenset({Key("disturb", "", "mm1")})})
    assert not recorder.allow(Key("disturb", "", "mm2"))
    assert not recorder.denies(Key("disturb", "", "mm2"))
    assert all(recorder.allow(key) for key in (Key("disturb", "", "mm1"), Key("nudge", "", "mm2"), Key("disturb")))


# One's own metric.


def closeness(run: Callable[[Mapping[str, Any]], Mapping[str, Any]], path: Path) -> float:
    """One, less the mean error of the chain's outputs relative to their size; the chain's weights are orthogonal."""
    assert path.is_file()
    expected, x = data()[0]["v0"], data()[0]["v0"]
    for node in chain().graph:
        weight = node.inputs[1]
        assert weight is not None
        assert weight.const_value is not None
        expected = expected @ weight.const_value.numpy()
    return float(1 - np.linalg.norm(run({"v0": x})[f"v{LAYERS}"] - expected) / np.linalg.norm(expected))


def failing(run: object, path: Path) -> float:
    """Divides by zero."""
    return 1 / 0


def wordy(run: object, path: Path) -> str:
    """Gives no number."""
    return "good"


@pytest.mark.parametrize(("max_drop", "left_out"), [(0.1, []), (0.02, ["mm1"]), (0.003, ["mm1", "mm3"])], ids=str)
def test_a_metric_limits_what_is_lost(model: Path, max_drop: float, left_out: list[str]) -> None:
    """The metric alone decides; its numbers are in the figures."""
    chosen = Recipe.model_validate({"passes": ["disturb"], "verify": "outputs", "metric": "closeness", "max_drop": max_drop})
    assert chosen.min_sqnr == 0
    assert Recipe.parse(chosen.changed(min_sqnr=20).to_yaml()).min_sqnr == 20
    result = driver.optimize(model, recipe=chosen, data=data(), metric=closeness)
    assert sorted(drop.key.anchor for drop in result.ledger.drops) == left_out
    assert result.figures.metric is not None
    _, before, after = result.figures.metric
    assert 0 <= before - after <= max_drop


def test_a_metric_that_nothing_keeps(model: Path) -> None:
    """The nearest is told in the metric's own numbers."""
    chosen = recipe(metric="closeness", max_drop=1e-9, min_sqnr=0, insist=True)
    with pytest.raises(LimitError, match=r"nearest is closeness falls from 1 to 0\.9"):
        driver.optimize(model, recipe=chosen, data=data(), metric=closeness)


@pytest.mark.parametrize(
    ("function", "message"), [(failing, "failed: ZeroDivisionError: division by zero"), (wordy, "must return one number, not str")]
)
def test_metrics_that_fail(model: Path, function: Any, message: str) -> None:
    """What goes wrong in the user's function is one line."""
    with pytest.raises(RecipeError, match=message):
        driver.optimize(model, recipe=recipe(metric="mine", max_drop=0, min_sqnr=0), data=data(), metric=function)


def test_metrics_and_consent(model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A recipe may name a metric, which is imported by consent only; the flag is consent."""
    file = model.with_name("my.yaml")
    file.write_text(f"passes: [disturb]\nverify: outputs\nmetric: {__name__}:closeness\nmax_drop: 0.02\n")
    np.savez(model.with_name("data.npz"), v0=data()[0]["v0"])
    common = ["optimize", str(model), "-o", str(model.with_name("out.onnx")), "--data", str(model.with_name("data.npz")), "-q"]
    assert main([*common, "--recipe", str(file)]) == 1
    assert "--allow-imports" in capsys.readouterr().err
    assert main([*common, "--recipe", str(file), "--allow-imports"]) == 0
    flags = ["--verify", "outputs", "--metric", f"{__name__}:closeness", "--max-drop", "0.02"]
    assert main([*common, "--pass", "disturb", *flags]) == 0
    assert main([*common, "--pass", "disturb", "--metric", "nowhere:nothing", "--max-drop", "1"]) == 1
    assert "metric nowhere:nothing cannot be imported" in capsys.readouterr().err
    assert main([*common, "--pass", "disturb", "--max-drop", "0.02"]) == 1
    assert "go together" in capsys.readouterr().err
    assert main([*common, "--pass", "disturb", "--verify", "structure", "--metric", f"{__name__}:closeness", "--max-drop", "0"]) == 1


# Which layers.


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"exclude": ["mm1", "w3_*"]}, ["mm0", "mm2", "mm4", "mm5"]),
        ({"include": ["mm[0-2]"], "exclude": ["mm1"]}, ["mm0", "mm2"]),
        ({"exclude": ["MatMul"]}, []),
    ],
    ids=str,
)
def test_selections(model: Path, fields: dict[str, Any], expected: list[str]) -> None:
    """Types of operators, globs on names of nodes or weights; what is left out is neither dropped nor declined."""
    result = driver.optimize(model, recipe=recipe(min_sqnr=10, **fields), data=data())
    assert kept(result) == expected
    assert not result.ledger.drops
    assert result.recipe.resolved is not None
    assert not result.recipe.resolved.dropped


@pytest.mark.parametrize("option", ["include", "exclude"])
def test_a_pattern_that_matches_nothing(model: Path, option: str) -> None:
    """It is an error that names the pattern, what there is, and nothing is written."""
    with pytest.raises(RecipeError, match=rf"{option}: 'conv\*' matches no layer, neither its type \(MatMul\).*first of 6: mm0"):
        driver.optimize(model, recipe=recipe(**{option: ["mm0", "conv*"]}), data=data())
    with pytest.raises(RecipeError, match=f"{option}: no pass of this recipe approximates"):
        driver.optimize(model, recipe=recipe("simplify", **{option: ["mm0"]}))


def test_nothing_is_forbidden_without_patterns() -> None:
    """No pattern, no key; an excluded layer is forbidden to every pass."""
    assert not unselected(chain(), (), (), ("a", "b"))
    assert unselected(chain(), (), ("mm2",), ("a", "b")) == {Key("a", "", "mm2"), Key("b", "", "mm2")}


# Diagnosis.


def test_diagnosis(model: Path) -> None:
    """Each layer's error alone, and the error of all up to it, which only grows."""
    found = diagnose(model, data(), recipe(), options=SessionOptions(threads=1))
    assert [layer.name for layer in found.layers] == list(NOISE)
    for layer in found.layers:
        assert layer.alone_db == pytest.approx(-20 * np.log10(NOISE[layer.name]), abs=3)
        assert layer.source == "alone"
    accumulated = [layer.accumulated_db for layer in found.layers]
    assert all(after < before + 0.5 for before, after in itertools.pairwise(accumulated))
    with pytest.raises(RecipeError, match="approximates anything in this model"):
        diagnose(model, data(), recipe("storage(min_size=100000)"))


def test_causes(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Outlier channels, wide ranges, saturation and dead inputs are named, in the table and in JSON."""
    generator = np.random.default_rng(2)
    x = generator.normal(size=(256, 16)).astype(np.float32)
    x[:, 3] *= 40
    x[0, 5] = 2000
    np.savez(model.with_name("outlier.npz"), v0=x)
    arguments = ["sensitivity", str(model), "--pass", "disturb", "--quiet"]
    assert main([*arguments, "--data", str(model.with_name("outlier.npz")), "--isa", "avx2", "--json"]) == 0
    printed = capsys.readouterr().out
    assert '"version": 1' in printed
    assert "channel 5 of its input reaches" in printed
    assert '"kind": "range"' in printed
    np.savez(model.with_name("dead.npz"), v0=np.zeros((8, 16), np.float32))
    arguments.remove("--quiet")
    assert main([*arguments, "--data", str(model.with_name("dead.npz"))]) == 0
    assert "input is 0 on all" in " ".join(capsys.readouterr().out.split())


# Saturation.


def dense(weight: np.ndarray[Any, Any]) -> ir.Model:
    """One linear layer."""
    model = parse("(float[n, 4] x) => (float[n, 2] y) { [mm] y = MatMul(x, w) }")
    [value] = [value for value in model.graph[0].inputs if value is not None and value.name == "w"]
    value.const_value = ir.tensor(weight.astype(np.float32), name="w")
    model.graph.register_initializer(value)
    return model


def context_of(model: ir.Model, x: np.ndarray[Any, Any]) -> Context:
    """A context with one sample."""
    return Context(Samples.open([{"x": x.astype(np.float32)}], signature_of(model)), "cpu")


def pair_sum(x: np.ndarray[Any, Any], weight: np.ndarray[Any, Any]) -> int:
    """By hand, for data from 0 on: the largest sum of neighbouring products of codes."""
    data_codes = np.rint(x / (x.max() / 255)).astype(int)
    codes = np.rint(weight / (np.abs(weight).max(axis=0) / 127)).astype(int)
    products = data_codes[:, :, None] * codes
    return int(np.abs(products[:, 0::2] + products[:, 1::2]).max())


def test_pair_sums() -> None:
    """The largest sum of two neighbouring products is that of the codes by hand, whatever is saturated."""
    generator = np.random.default_rng(3)
    for _ in range(20):
        x, weight = generator.uniform(0, 1, size=(6, 4)), generator.normal(size=(4, 2))
        model = dense(weight)
        context = context_of(model, x)
        expected = pair_sum(x, weight)
        found = largest_pair_sums(model, list(layers_of(model)), context)["mm"]
        assert found == expected or max(found, expected) <= 255 * 127  # of opposite signs nobody needs to know exactly
        assert list(at_risk(model, list(layers_of(model)), context)) == (["mm"] if expected > PAIR_LIMIT else [])


def test_layers_at_risk_are_cured() -> None:
    """Layers at risk get weights of 7 bits; others stay as they are."""
    risky = dense(np.array([[1, 1], [1, 1], [0.1, 0.1], [0.1, 0.1]]))
    passes = (Static(), Dynamic(min_size=0))
    [stage] = isa.safe_from_saturation([Stage(passes, context_of(risky, np.ones((2, 4))))], risky)
    assert stage.passes == (Static(narrow=("mm",)), Dynamic(min_size=0, narrow=("mm",), forms=("channels",)))
    harmless = dense(np.array([[1, 1], [-1, -1], [0.1, 0.1], [0.1, 0.1]]))
    [stage] = isa.safe_from_saturation([Stage(passes, context_of(harmless, np.ones((2, 4))))], harmless)
    assert stage.passes == (Static(), Dynamic(min_size=0, forms=("channels",)))


# What takes longer.


def test_profile() -> None:
    """Every executed node with its time; feeds take turns."""
    found = profile(chain(), data(), SessionOptions(threads=1), seconds=0.01)
    assert [node.operator for node in found] == ["MatMul"] * LAYERS
    assert all(node.seconds >= 0 for node in found)
    assert found[0].inputs == ("v0", f"w0{ROOM}")


def test_slow_layers_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers that take longer with the conversions next to them are named with both times; the others are not."""

    def timed(model: ir.Model, feeds: object, options: object) -> Iterator[NodeTime]:
        is_result = any(node.op_type == "Identity" for node in model.graph)
        for node in model.graph:
            slow = is_result and node.name == "mm2"
            outputs = tuple(value.name or "" for value in node.outputs)
            yield NodeTime(f"{outputs[0]}_nchwc", "MatMul", 3e-3 if slow else 1e-3, tuple(v.name or "" for v in node.inputs if v), outputs)

    monkeypatch.setattr("graphopt.choosing.pace.profile", lambda *arguments: list(timed(*arguments)))
    before, after = chain(), chain()
    extra = ir.node("Identity", [after.graph.inputs[0]], name="extra")
    extra.outputs[0].name = "extra"
    after.graph.append(extra)
    rewrites = [ledger.Rewrite(Key("p", "", f"mm{i}")) for i in range(LAYERS)]
    [drop] = slow_layers(rewrites, before, after, data(), SessionOptions())
    assert drop.key.anchor == "mm2"
    assert drop.reason == "3 ms instead of 1 ms in float"

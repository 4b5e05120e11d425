"""Low-rank factorization: two layers in the place of one, at ranks that the outputs miss least, within the budget."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

import graphopt
from graphopt import files
from graphopt.cli import main
from graphopt.errors import LimitError, RecipeError
from graphopt.graph.edits import Names
from graphopt.graph.layers import layers_of
from graphopt.graph.structure import verify_structure
from graphopt.passes.factorize import low_rank
from graphopt.passes.factorize.forms import Form, form_of
from graphopt.presets import preset
from graphopt.recipe import Recipe
from graphopt.result import Result
from graphopt.runtime.session import SessionOptions, open_session
from graphopt.runtime.trace import trace_shapes
from graphopt.solve.metric import Metric
from tests.weighted import weighted

DIGITS = Path(__file__).parent.parent / "examples/digits"

with np.load(DIGITS / "calib.npz") as _archive:
    SAMPLES = [{name: _archive[name][row : row + 1] for name in _archive.files} for row in range(48)]

LAYERS: Mapping[str, tuple[str, tuple[int, ...], tuple[int, ...]]] = {
    "MatMul": ("y = MatMul(x, w)", (2, 3, 40), (40, 24)),
    "MatMul, weight on the left": ("y = MatMul(w, x)", (2, 40, 5), (24, 40)),
    "MatMul of a stack of one": ("y = MatMul(x, w)", (2, 3, 40), (1, 40, 24)),
    "Gemm": ("y = Gemm<alpha: float = 0.5, transB: int = 1>(x, w)", (7, 40), (24, 40)),
    "Gemm, both turned": ("y = Gemm<alpha: float = 0.5, transA: int = 1, transB: int = 1>(x, w)", (40, 7), (24, 40)),
    "Gemm, weight on the left": ("y = Gemm<transB: int = 1>(w, x)", (7, 40), (24, 40)),
    "FusedMatMul": ("y = com.microsoft.FusedMatMul<alpha: float = 0.5, transA: int = 1>(x, w)", (2, 40, 6), (40, 24)),
    "1 x 1, stride 2": ("y = Conv<strides: ints = [2, 2]>(x, w)", (2, 40, 7, 7), (24, 40, 1, 1)),
    "3 x 3": ("y = Conv<pads: ints = [1, 1, 1, 1]>(x, w)", (2, 40, 7, 9), (24, 40, 3, 3)),
    "5 x 3, uneven pads": ("y = Conv<pads: ints = [2, 1, 0, 1], strides: ints = [2, 1]>(x, w)", (1, 40, 9, 8), (24, 40, 5, 3)),
    "3 x 3, dilated": ("y = Conv<dilations: ints = [2, 1], strides: ints = [1, 2]>(x, w)", (1, 40, 9, 8), (24, 40, 3, 3)),
    "3 x 3, pads of the same size": (
        'y = Conv<auto_pad: string = "SAME_UPPER", strides: ints = [2, 2]>(x, w)',
        (1, 40, 8, 7),
        (24, 40, 3, 3),
    ),
    "1 x 3": ("y = Conv<pads: ints = [0, 1, 0, 1]>(x, w)", (1, 40, 6, 9), (24, 40, 1, 3)),
    "along one axis": ("y = Conv<pads: ints = [1, 1]>(x, w)", (1, 40, 9), (24, 40, 3)),
    "in three axes": ("y = Conv(x, w)", (1, 40, 4, 4, 4), (24, 40, 3, 3, 3)),
}


def _model(node: str, data: tuple[int, ...], weight: tuple[int, ...]) -> ir.Model:
    sizes = ",".join(map(str, data))
    return weighted(f"(float[{sizes}] x) => (float[] y) {{ {node} }}".replace("float[] y", "y"), {"w": weight})


def _form(model: ir.Model, feed: Mapping[str, np.ndarray]) -> Form:
    layer = next(layers_of(model))
    form = form_of(layer, trace_shapes(model, feed, SessionOptions()) | {"w": layer.stored_shape})
    assert isinstance(form, Form)
    return form


@pytest.mark.parametrize("kind", LAYERS)
def test_two_layers_do_what_one_of_that_rank_does(kind: str) -> None:
    """Wherever the weight stands, whatever strides, pads and dilations there are: the outputs are the same."""
    model = _model(*LAYERS[kind])
    feed = {"x": np.random.default_rng(1).normal(size=LAYERS[kind][1]).astype(np.float32)}
    form = _form(model, feed)
    rank = form.ranks[len(form.ranks) // 2]
    whole, amount = form.layer.size, form.amount(rank, "parameters")
    low = form.nearest(form.layer.weight(), Metric(None), rank)
    form.layer.assign(low, Names(model))
    expected = open_session(model).run(feed)
    added = low_rank.put(model, [form], {form.layer.name: rank})
    verify_structure(model)
    found = open_session(model).run(feed)
    assert sum(layer.size for layer in layers_of(model)) == amount < whole
    assert [node.name for node in model.graph][-2:] == [added[form.layer.name], form.layer.name]
    np.testing.assert_allclose(found["y"], expected["y"], rtol=1e-4, atol=1e-4 * np.abs(expected["y"]).max())


def test_work_is_what_the_two_layers_do() -> None:
    """With strides along one axis as well, in which the first of the two works at more places."""
    node, data, weight = LAYERS["3 x 3, dilated"]
    model = _model(node, data, weight)
    feed = {"x": np.zeros(data, np.float32)}
    form = _form(model, feed)
    amount = form.amount(4, "macs")
    low_rank.put(model, [form], {form.layer.name: 4})
    shapes = trace_shapes(model, feed, SessionOptions())
    places = [np.prod(shapes[node.outputs[0].name or ""]) for node in model.graph]
    assert amount == sum(place * layer.shape[2] for place, layer in zip(places, layers_of(model), strict=True))


def _optimized(model: str, options: str, **changes: object) -> Result:
    recipe = Recipe.of("cleanup", "shapes", "simplify", f"factorize({options})").changed(
        **{"verify": "outputs", "min_sqnr": 3.0, **changes}
    )
    return graphopt.optimize(DIGITS / f"{model}.onnx", recipe=recipe, data=SAMPLES)


@pytest.fixture
def _no_races(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers of the example take microseconds: what is faster would be chance."""
    monkeypatch.setattr(low_rank, "slower", lambda *_: "")


@pytest.mark.usefixtures("_no_races")
@pytest.mark.parametrize(("model", "options", "share"), [("attention", "parameters=0.8", 0.8), ("conv", "parameters=0.6", 0.6)])
def test_within_the_budget_and_nearly_the_same_answers(model: str, options: str, share: float) -> None:
    """The weights that stay are no more than were asked for, and the answers hardly change."""
    result, before = _optimized(model, options), files.load(DIGITS / f"{model}.onnx")
    assert sum(layer.size for layer in layers_of(result.model)) <= share * sum(layer.size for layer in layers_of(before))
    data = np.load(DIGITS / "eval.npz")
    sessions = [open_session(each) for each in (before, result.model)]
    expected, found = (next(iter(each.run({name: data[name] for name in each.input_names}).values())) for each in sessions)
    assert (expected.argmax(-1) == found.argmax(-1)).mean() > 0.95


@pytest.mark.usefixtures("_no_races")
def test_fitting_the_outputs_helps() -> None:
    """The same ranks without samples' fit lose more."""
    fitted = _optimized("conv", "parameters=0.6")
    model = files.load(DIGITS / "conv.onnx")
    ranks = {
        rewrite.key.anchor: int(rewrite.reason.split("rank ")[1].split(":")[0]) for rewrite in fitted.ledger.rewrites if rewrite.reason
    }
    data = np.load(DIGITS / "eval.npz")
    session = open_session(model)
    feed = {name: data[name] for name in session.input_names}
    shapes = trace_shapes(model, feed, SessionOptions())
    forms = [form_of(layer, shapes) for layer in layers_of(model)]
    low_rank.put(model, [form for form in forms if isinstance(form, Form)], ranks)
    expected, plain, best = (next(iter(open_session(each).run(feed).values())) for each in (DIGITS / "conv.onnx", model, fitted.model))
    assert np.square(best - expected).sum() < 0.3 * np.square(plain - expected).sum()


@pytest.mark.usefixtures("_no_races")
def test_replay_gives_the_same_bytes(tmp_path: Path) -> None:
    """Nothing of it depends on chance."""
    recipe = Recipe.of("cleanup", "factorize(parameters=0.7)").changed(verify="outputs", min_sqnr=3.0)
    first = graphopt.optimize(DIGITS / "conv.onnx", tmp_path / "a.onnx", recipe=recipe, data=SAMPLES)
    graphopt.optimize(DIGITS / "conv.onnx", tmp_path / "b.onnx", recipe=first.recipe, data=SAMPLES)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_what_is_slower_stays_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranks that lose the race are declined with their times, and others make up for them."""
    asked: list[str] = []

    def slower(form: Form, rank: int, *_: object) -> str:
        asked.append(form.layer.name)
        return "as two layers it takes 2.0 us, whole 1.0 us" if form.layer.name == asked[0] else ""

    monkeypatch.setattr(low_rank, "slower", slower)
    result = _optimized("conv", "parameters=0.8", verify="full", time_limit=0.1)
    anchors = {rewrite.key.anchor for rewrite in result.ledger.rewrites if rewrite.reason}
    assert anchors
    assert asked[0] not in anchors
    assert any(drop.key.anchor == asked[0] and "whole 1.0 us" in drop.reason for drop in result.ledger.declined)


def test_layers_that_stay_say_why() -> None:
    """Each layer that is not rewritten has its reason."""
    model = weighted(
        """(float[1,32,8,8] x) => (y)
        { a = Conv<group: int = 32>(x, d)  b = Conv(a, s)  c = Conv(b, s)  e = ConvTranspose(c, t)  y = Conv(e, n) }""",
        {"d": (32, 1, 3, 3), "s": (32, 32, 1, 1), "t": (32, 32, 2, 2), "n": (1, 32, 1, 1)},
    )
    recipe = Recipe.of("factorize(loss=0.1)").changed(verify="outputs")
    result = graphopt.optimize(model, recipe=recipe)
    reasons = [miss.reason for miss in result.ledger.misses]
    assert len(reasons) == 5
    for part in ("32 groups", "used elsewhere", "transposed", "too small"):
        assert any(part in reason for reason in reasons)


@pytest.mark.usefixtures("_no_races")
def test_a_loss_is_kept_within() -> None:
    """Less of it leaves more weights, and none leaves all."""
    sizes = [sum(layer.size for layer in layers_of(_optimized("conv", f"loss={loss}").model)) for loss in (0.3, 0.003, 1e-9)]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[2] == sum(layer.size for layer in layers_of(files.load(DIGITS / "conv.onnx")))


@pytest.mark.parametrize(
    ("options", "words"),
    [("", "none"), ("macs=0.5, loss=1.0", "macs and loss"), ("macs=1.5", "between 0 and 1, not 1.5"), ("loss=0.0", "above 0")],
)
def test_one_budget(options: str, words: str) -> None:
    """None or two of them, or one that is no share, is refused."""
    with pytest.raises(RecipeError, match=words):
        Recipe.of(f"factorize({options})").build()


def test_a_model_without_a_layer_to_split_meets_no_budget() -> None:
    """Nothing is written for a success, where nothing was reached."""
    model = weighted("(float[B,8] x) => (float[B,3] y) { y = MatMul(x, only) }", {"only": (8, 3)})
    feeds = [{"x": array} for array in np.random.default_rng(0).normal(size=(8, 4, 8)).astype(np.float32)]
    with pytest.raises(LimitError, match="none of 1 layers has a form of a lower rank"):
        graphopt.optimize(model, recipe=preset("low-rank", macs=0.7), data=feeds)
    assert (
        "factorize"
        not in graphopt.optimize(model, recipe=preset("low-rank", loss=0.1).changed(verify="outputs"), data=feeds).ledger.counts()
    )


@pytest.mark.usefixtures("_no_races")
def test_a_budget_that_cannot_be_met_names_the_nearest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In one line, and nothing is written."""
    out = tmp_path / "out.onnx"
    data = ["--data", str(DIGITS / "calib.npz")]
    assert main(["optimize", str(DIGITS / "conv.onnx"), "-o", str(out), "--preset", "low-rank", "--parameters", "0.01", *data]) == 1
    assert "the lowest ranks leave" in capsys.readouterr().err
    assert not out.exists()
    with pytest.raises(LimitError):
        _optimized("conv", "macs=0.01")
    with pytest.raises(RecipeError, match="matches"):
        _optimized("conv", "macs=0.5, include=['nothing*']")

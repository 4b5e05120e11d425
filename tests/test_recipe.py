"""Tests of recipes: what may stand in one, what messages say, and that a resolved one gives the same bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import onnx_ir as ir
import pytest

from graphopt import driver, proof
from graphopt.errors import RecipeError
from graphopt.ledger import Key
from graphopt.passes import PASSES
from graphopt.passes.base import Pass
from graphopt.passes.foreign import ForeignPass
from graphopt.passes.rules import Rule, RulePass, rule
from graphopt.presets import PRESETS, Preset, preset
from graphopt.recipe import Recipe
from graphopt.spec import PassSpec
from tests.layered import GOOD, layered
from tests.saboteurs import corrupt_weight


@dataclass(frozen=True)
class Options(Pass):
    """A pass with options of several kinds."""

    name: ClassVar[str] = "options"
    share: float = 0.5
    layers: tuple[str, ...] = ()
    mode: str = "fast"
    deep: bool = False

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Does nothing."""
        return ir.passes.PassResult(model, False)


@pytest.fixture(autouse=True)
def options_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """Registers the pass."""
    monkeypatch.setitem(PASSES, Options.name, f"{__name__}:Options")


def test_defaults() -> None:
    """A recipe needs passes and nothing else."""
    parsed = Recipe.parse("passes: [simplify]")
    assert parsed == Recipe(passes=[PassSpec(name="simplify")])
    assert (parsed.version, parsed.verify, parsed.tolerance, parsed.skip, parsed.resolved) == (1, "full", 1e-4, [], None)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("passes: [simplify", ["not valid YAML"]),
        ("- simplify", ["mapping", "passes"]),
        ("", ["mapping", "passes"]),
        ("verify: full", ["passes", "required"]),
        ("passes: simplify", ["passes", "list"]),
        ("passes: [3]", ["passes.0", "3"]),
        ("passes: [{simplify: 3}]", ["passes.0.options", "dictionary", "3"]),
        ("passes: [simplify(]", ["passes.0", "name(option=value"]),
        ("passes: ['simplify(3)']", ["passes.0", "option=value"]),
        ("passes: ['simplify(a=1+b)']", ["passes.0", "1 + b", "no value"]),
        ("passes: ['simplify(**a)']", ["passes.0", "option=value"]),
        ("passes: []\nverfy: full", ["verfy", "unknown key", "verify", "tolerance"]),
        ("passes: []\nverify: some", ["verify", "'full'", "'outputs'", "'structure'", "'some'"]),
        ("passes: []\nversion: 2", ["version", "1", "2"]),
        ("passes: []\ntolerance: 0", ["tolerance", "greater than 0"]),
        ("passes: []\ntime_limit: soon", ["time_limit", "number", "soon"]),
        ("passes: []\ntarget: tpu", ["target", "'cpu'", "'tpu'"]),
        ("passes: []\nshapes: {n: -1}", ["shapes.n", "greater than or equal to 0"]),
        ("passes: []\nsession: {thread: 1}", ["session.thread", "unknown key", "threads", "config"]),
        ("passes: []\nresolved: {dropped: [[a]]}", ["resolved.dropped.0"]),
        ("passes: []\nresolved: {made: {}}", ["resolved.made", "unknown key", "dropped", "made_with"]),
    ],
)
def test_messages(text: str, parts: list[str]) -> None:
    """A mistake is reported in one line that names the key, what is allowed, and the file."""
    with pytest.raises(RecipeError) as caught:
        Recipe.parse(text, "my.yaml")
    message = str(caught.value)
    assert message.startswith("my.yaml: ")
    assert "\n" not in message
    for part in parts:
        assert part in message


def test_files(tmp_path: Path) -> None:
    """A file that is missing, or no text, is named."""
    for content in (None, b"\xff\xfe\x00"):
        path = tmp_path / "r.yaml"
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(RecipeError, match=r"r\.yaml: cannot be read"):
            Recipe.load(path)


@pytest.mark.parametrize(
    ("spec", "options"),
    [
        ("options", {}),
        (" options ", {}),
        ("options()", {}),
        ("options(share=0.7)", {"share": 0.7}),
        ("options(mode=slow, deep=true)", {"mode": "slow", "deep": True}),
        ("options(mode='a, b(c)', layers=['x*', 'y'])", {"mode": "a, b(c)", "layers": ["x*", "y"]}),
        ("options(share=-1e-3, deep=False)", {"share": -0.001, "deep": False}),
    ],
)
def test_spec_strings(spec: str, options: Mapping[str, Any]) -> None:
    """A pass is written as a call with literals and plain words; the same as a mapping in YAML."""
    assert Recipe.of(spec).passes == [PassSpec(name="options", options=dict(options))]
    assert Recipe.model_validate({"passes": [{"options": options}]}).passes[0].options == options
    Recipe.of(spec).build()


@pytest.mark.parametrize(
    ("spec", "part"),
    [
        ("option", "did you mean options"),
        ("options(shares=1)", "did you mean 'share'"),
        ("simplify(x=1)", "its options are: none"),
        ("options(share=much)", "share"),
        ("options(deep=3)", "deep"),
        ("no.such:Pass", "--allow-imports"),
    ],
)
def test_passes_that_cannot_be_made(spec: str, part: str) -> None:
    """An unknown pass, an unknown option and a wrong value are refused with what there is."""
    with pytest.raises(RecipeError) as caught:
        Recipe.of(spec).build()
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_options_reach_the_pass() -> None:
    """What a recipe says is what the pass is made with."""
    [built] = Recipe.of("options(share=1, layers=['a'])").build()
    assert built == Options(share=1.0, layers=("a",))


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("no.such:Pass", "ModuleNotFoundError"),
        ("onnx_ir:NoSuchPass", "AttributeError"),
        ("onnx_ir:Model", "TypeError"),
        ("collections:Counter", "is not an onnx_ir pass"),
    ],
)
def test_imports_that_fail(name: str, part: str) -> None:
    """What cannot be imported or made, or is no pass, is refused in one line."""
    with pytest.raises(RecipeError) as caught:
        Recipe.of(name).build(allow_imports=True)
    assert part in str(caught.value)


def test_imports() -> None:
    """Anyone's pass is wrapped; one of our kind is taken as it is."""
    theirs, ours = Recipe.of("onnx_ir.passes.common:TopologicalSortPass", f"{__name__}:Options").build(allow_imports=True)
    assert isinstance(theirs, ForeignPass)
    assert ours == Options()


def test_skip() -> None:
    """A pass or rule of the recipe can be skipped; anything else is refused with the nearest name."""
    Recipe.of("simplify").changed(skip=["simplify", "drop-identity"]).build()
    for name, hint in (("drop-identitty", "did you mean 'drop-identity'?"), ("qqq", "`graphopt passes` lists them")):
        with pytest.raises(RecipeError) as caught:
            Recipe.of("simplify").changed(skip=[name]).build()
        assert hint in str(caught.value)


def test_presets() -> None:
    """Every preset builds and says what it is for; an unknown one or an unknown flag is refused with what there is."""
    for name, entry in PRESETS.items():
        assert entry.summary
        assert preset(name).build()
    with pytest.raises(RecipeError, match="exact"):
        preset("exakt")
    with pytest.raises(RecipeError, match="--amount: this preset's flags are: none"):
        preset("exact", amount=3)
    made = Preset("for a test", lambda share=0.5: Recipe.of(f"options(share={share})"), {"share": "how much"})
    assert made.recipe(share=0.7).passes[0].options == {"share": 0.7}
    with pytest.raises(RecipeError, match="--shar: this preset's flags are: --share"):
        made.recipe(shar=0.7)


def test_yaml_round_trip() -> None:
    """What is written is read back as the same recipe, and defaults are left out."""
    full = Recipe.of("simplify", "options(share=0.7, layers=['ä'])").changed(
        verify="outputs",
        skip=["affine"],
        shapes={"n": 3},
        session={"threads": 2, "config": {"a": "b"}},
        resolved={"dropped": [("a", "b", "c"), ("d", "", "")], "made_with": {"onnx": "1"}, "machine": "x"},
    )
    assert Recipe.parse(full.to_yaml()) == full
    assert Recipe.of("simplify").to_yaml() == "version: 1\npasses:\n- simplify\n"


def test_changed_is_checked() -> None:
    """A changed field is validated as one that is read."""
    with pytest.raises(RecipeError, match="verify"):
        Recipe.of("simplify").changed(verify="never")


# Replays.


@dataclass(frozen=True)
class Sabotage(RulePass):
    """Right but at one place."""

    name: ClassVar[str] = "sabotage"
    rules: ClassVar[tuple[Rule, ...]] = (GOOD, rule(corrupt_weight, "MatMul"))


def test_replay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A resolved recipe drops what the run that wrote it dropped, times nothing, and gives the same bytes."""
    monkeypatch.setitem(PASSES, "sabotage", f"{__name__}:Sabotage")
    path = tmp_path / "model.onnx"
    ir.save(layered(), path)
    chosen = Recipe.of("cleanup", "sabotage").changed(time_limit=0.1)
    first = driver.optimize(path, tmp_path / "first.onnx", recipe=chosen)
    assert [drop.key for drop in first.ledger.drops] == [Key("sabotage", "corrupt-weight", "mm3")]

    def timed(*_: Any, **__: Any) -> None:
        raise AssertionError("a replay times nothing")

    monkeypatch.setattr(proof, "compare_speed", timed)
    loaded = Recipe.load(tmp_path / "first.onnx.recipe.yaml")
    assert loaded == first.recipe
    second = driver.optimize(path, tmp_path / "second.onnx", recipe=loaded, strict=True)
    assert (tmp_path / "second.onnx").read_bytes() == (tmp_path / "first.onnx").read_bytes()
    assert [drop.key for drop in second.ledger.drops] == [Key("sabotage", "corrupt-weight", "mm3")]
    assert second.recipe == first.recipe

"""Tests of the promise "never wrong, never larger, never slower": passes that break it are named, dropped, and the rest is kept."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import onnx_ir as ir
import pytest

from graphopt import driver, ledger, proof
from graphopt.cli import main
from graphopt.errors import InvalidModelError, VerificationError
from graphopt.graph.view import View
from graphopt.ledger import Key
from graphopt.passes import find
from graphopt.passes.base import Context, GuidedPass, Pass
from graphopt.passes.rules import Change, Rule, RulePass, rule
from graphopt.recipe import Recipe
from graphopt.result import Result
from graphopt.runtime.session import open_session
from tests.helpers import random_feeds

LAYERS = 6
BAD = "mm3"
"""Where the rules below do harm; everywhere else they are right."""

RuleFunction = Callable[[ir.Node, View], Change | None]


# A model of six layers, each with two negations that a sound rule takes out.


def layered() -> ir.Model:
    """``MatMul, Neg, Neg, Relu``, six times, on 8 values; long names leave room for what rules add."""
    generator = np.random.default_rng(0)
    weights = [", ".join(f"{number:.3f}" for number in generator.normal(size=64)) for _ in range(LAYERS)]
    initializers = ", ".join(f"float[8,8] w{index} = {{{numbers}}}" for index, numbers in enumerate(weights))
    room = "_" * 400
    lines = "\n".join(
        f"[mm{i}] m{i} = MatMul(v{i}, w{i})  [a{i}{room}] n{i} = Neg(m{i})  [b{i}] p{i} = Neg(n{i})  [r{i}] v{i + 1} = Relu(p{i})"
        for i in range(LAYERS)
    )
    text = f"g (float[4,8] v0) => (float[4,8] v{LAYERS}) <{initializers}> {{ {lines} }}"
    return ir.from_onnx_text(f'<ir_version: 8, opset_import: ["": 18]> {text}')


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """The layered model as a file."""
    path = tmp_path / "model.onnx"
    ir.save(layered(), path)
    return path


def cancel_negations(node: ir.Node, view: View) -> Change | None:
    """Replaces the negation of a negation with what was negated."""
    inner = view.producer(node.inputs[0], "Neg")
    source = inner.inputs[0] if inner else None
    return Change(lambda build: source) if source is not None else None


GOOD = rule(cancel_negations, "Neg")


def is_place(node: ir.Node) -> bool:
    """Whether a node is one of the original's; those made by the rules below have a slash in their names."""
    return "/" not in (node.name or "")


def copied(node: ir.Node, view: View, **attributes: Any) -> Change | None:
    """A right rewrite: the same MatMul with a copy of its weight."""
    weight = view.constant(node.inputs[1])
    if not is_place(node) or weight is None:
        return None
    return Change(lambda build: build.op("MatMul", node.inputs[0], build.constant(weight.copy(), f"{node.name}c"), **attributes))


# The sabotage: each rule is right but at one place.


def corrupt_weight(node: ir.Node, view: View) -> Change | None:
    """Replaces a MatMul with a copy, whose weight is wrong at one place."""
    weight = view.constant(node.inputs[1])
    if node.name != BAD or weight is None:
        return copied(node, view)
    wrong = weight + np.eye(8, dtype=np.float32)
    return Change(lambda build: build.op("MatMul", node.inputs[0], build.constant(wrong)))


def give_unknown_attribute(node: ir.Node, view: View) -> Change | None:
    """Replaces a MatMul with a copy, which has an attribute that no MatMul has at one place."""
    return copied(node, view, mystery=1.0) if node.name == BAD else copied(node, view)


def give_wrong_type(node: ir.Node, view: View) -> Change | None:
    """Replaces a MatMul with a copy, which multiplies texts at one place."""
    if node.name != BAD:
        return copied(node, view)
    return Change(lambda build: build.op("MatMul", build.op("Cast", node.inputs[0], to=8), node.inputs[1]))


def give_unwritable_attribute(node: ir.Node, view: View) -> Change | None:
    """Replaces a MatMul with a copy, which has a number that no file can hold at one place."""
    if node.name != BAD:
        return copied(node, view)
    return Change(lambda build: build.op("MatMul", node.inputs[0], node.inputs[1], alpha=ir.AttrInt64("alpha", 2**70)))


def invent_operator(node: ir.Node, view: View) -> Change | None:
    """Replaces a MatMul with a copy, which is of an operator that does not exist at one place."""
    if node.name != BAD:
        return copied(node, view)
    return Change(lambda build: build.op("MatMulPlus", node.inputs[0], node.inputs[1]))


def use_unknown_value(node: ir.Node, view: View) -> Change | None:
    """Replaces a MatMul with a copy, which uses a value that nothing computes at one place."""
    if node.name != BAD:
        return copied(node, view)
    return Change(lambda build: build.op("MatMul", ir.val("nowhere", ir.DataType.FLOAT, [4, 8]), node.inputs[1]))


def fail_at_a_look(node: ir.Node, view: View) -> Change | None:
    """Replaces a MatMul with a copy, and raises when it looks at one place."""
    if node.name == BAD:
        raise KeyError("sabotage")
    return copied(node, view)


def fail_at_a_user_error(node: ir.Node, view: View) -> Change | None:
    """Replaces a MatMul with a copy, and raises one of graphopt's own errors at one place."""
    if node.name == BAD:
        raise InvalidModelError("sabotage")
    return copied(node, view)


def fail_while_building(node: ir.Node, view: View) -> Change | None:
    """Replaces a MatMul with a copy, and raises halfway through at one place."""

    def halfway(build: Any) -> ir.Value:
        build.op("Neg", node.inputs[0])
        return cast("ir.Value", 1 / 0)

    return Change(halfway) if node.name == BAD else copied(node, view)


WRONG: tuple[tuple[RuleFunction, str], ...] = (
    (corrupt_weight, "outputs differ"),
    (give_unknown_attribute, "mystery"),
    (give_wrong_type, "does not load"),
    (give_unwritable_attribute, "cannot be written"),
    (invent_operator, "MatMulPlus"),
    (use_unknown_value, "nowhere"),
    (fail_at_a_look, "KeyError"),
    (fail_at_a_user_error, "sabotage"),
    (fail_while_building, "ZeroDivisionError"),
)


def grow(node: ir.Node, view: View) -> Change | None:
    """Replaces a MatMul with a copy, to which 16 kB of zeros are added at one place."""
    if node.name != BAD:
        return copied(node, view)
    zeros = np.zeros((512, 8), np.float32)

    def built(build: Any) -> ir.Value:
        start, end = build.constant(np.array([0], np.int64)), build.constant(np.array([4], np.int64))
        return cast("ir.Value", build.op("Add", build.op("MatMul", *node.inputs), build.op("Slice", build.constant(zeros), start, end)))

    return Change(built)


def run_more_kernels(node: ir.Node, view: View) -> Change | None:
    """Replaces a MatMul with a copy, followed by fourteen reciprocals at one place."""
    if node.name != BAD:
        return copied(node, view)

    def turned(build: Any) -> ir.Value:
        value: ir.Value = build.op("MatMul", *node.inputs)
        for _ in range(7):
            value = build.op("Reciprocal", build.op("Reciprocal", value))
        return value

    return Change(turned)


COSTLY: tuple[tuple[RuleFunction, str], ...] = ((grow, "bytes instead of"), (run_more_kernels, "kernels run instead of"))


# Passes made of them.

Register = Callable[..., Recipe]


def table(name: str, *rules: Rule) -> type[RulePass]:
    """A pass of some rules."""
    return dataclass(frozen=True)(type(name, (RulePass,), {"name": name, "rules": rules}))


@pytest.fixture
def register(monkeypatch: pytest.MonkeyPatch) -> Register:
    """A function that makes a recipe of pass classes, and has recipes find them by name."""
    known: dict[str, type[Any]] = {}
    monkeypatch.setattr("graphopt.spec.find", lambda name: known.get(name) or find(name))

    def registered(*kinds: type[Any], verify: str = "outputs", **fields: Any) -> Recipe:
        known.update({kind.name: kind for kind in kinds})
        return Recipe.of(*(kind.name for kind in kinds)).changed(verify=verify, **fields)

    return registered


@dataclass(frozen=True)
class Rescale(GuidedPass):
    """Multiplies what goes into each Relu by one, and by three at one place."""

    name: ClassVar[str] = "rescale"

    def run(self, model: ir.Model, context: Context) -> bool:
        """Asks the ledger at each Relu."""
        assert len(context.samples) > 0
        changed = False
        for node in [node for node in model.graph if node.op_type == "Relu"]:
            key = Key(self.name, "scale", node.name or "")
            if not ledger.allow(key):
                continue
            scale = ir.val(f"{node.name}s", const_value=ir.tensor(np.float32(3 if node.name == "r2" else 1), name=f"{node.name}s"))
            model.graph.register_initializer(scale)
            scaled = ir.node("Mul", [node.inputs[0], scale], name=f"{node.name}/Mul")
            scaled.outputs[0].name = f"{node.name}/Mul"
            node.replace_input_with(0, scaled.outputs[0])
            model.graph.insert_before(node, scaled)
            ledger.record(ledger.Rewrite(key, added=(scaled.name or "",)))
            changed = True
        return changed


def assert_outputs_kept(path: Path, result: Result) -> None:
    """The result's outputs are the original's, with the runtime's optimizations on and off."""
    assert result.path is not None
    feed = random_feeds(layered())
    expected = open_session(path, "none").run(feed)[f"v{LAYERS}"]
    for level in ("all", "none"):
        np.testing.assert_allclose(open_session(result.path, level).run(feed)[f"v{LAYERS}"], expected, rtol=1e-4, atol=1e-4)


def dropped(result: Result) -> list[Key]:
    """What was dropped."""
    return [drop.key for drop in result.ledger.drops]


def name_of(function: RuleFunction) -> str:
    """A rule's name as the ledger has it."""
    return function.__name__.replace("_", "-")


def ids(cases: tuple[tuple[RuleFunction, str], ...]) -> list[str]:
    """Names of cases."""
    return [name_of(function) for function, _ in cases]


@pytest.mark.parametrize(("function", "reason"), WRONG, ids=ids(WRONG))
def test_one_wrong_rewrite_among_good_ones(model: Path, register: Register, function: RuleFunction, reason: str) -> None:
    """A rule that is wrong at one place is dropped there and nowhere else, and the ledger says why."""
    chosen = register(table("sabotage", GOOD, rule(function, "MatMul")))
    result = driver.optimize(model, model.with_name("out.onnx"), recipe=chosen)
    assert dropped(result) == [Key("sabotage", name_of(function), BAD)]
    assert reason in result.ledger.drops[0].reason
    assert "\n" not in result.ledger.drops[0].reason
    assert result.ledger.counts() == {"sabotage/cancel-negations": LAYERS, f"sabotage/{name_of(function)}": LAYERS - 1}
    assert_outputs_kept(model, result)
    beside = json.loads(model.with_name("out.onnx.ledger.json").read_text())
    assert beside["dropped"] == [["sabotage", name_of(function), BAD, result.ledger.drops[0].reason]]
    assert result.recipe.resolved is not None
    assert result.recipe.resolved.denied == {Key("sabotage", name_of(function), BAD)}


@pytest.mark.parametrize(("function", "reason"), COSTLY, ids=ids(COSTLY))
def test_one_costly_rewrite_among_good_ones(
    model: Path, register: Register, monkeypatch: pytest.MonkeyPatch, function: RuleFunction, reason: str
) -> None:
    """A right rewrite that makes the file larger or runs more kernels is dropped, alone."""
    monkeypatch.setattr(proof, "compare_speed", lambda *_, **__: Timing(slower=False))
    chosen = register(table("sabotage", GOOD, rule(function, "MatMul")), verify="full")
    result = driver.optimize(model, model.with_name("out.onnx"), recipe=chosen)
    assert dropped(result) == [Key("sabotage", name_of(function), BAD)]
    assert reason in result.ledger.drops[0].reason
    assert result.ledger.counts() == {"sabotage/cancel-negations": LAYERS, f"sabotage/{name_of(function)}": LAYERS - 1}
    assert result.figures.bytes_after <= result.figures.bytes_before
    assert_outputs_kept(model, result)


@pytest.mark.parametrize("function", [corrupt_weight, fail_while_building, grow])
def test_several_stages(model: Path, register: Register, function: RuleFunction) -> None:
    """In a recipe of several stages each culprit is found in its own stage, and the other stages stay whole."""
    chosen = register(table("first", GOOD), Rescale, table("last", rule(function, "MatMul")))
    result = driver.optimize(model, model.with_name("out.onnx"), recipe=chosen)
    assert set(dropped(result)) == {Key("rescale", "scale", "r2"), Key("last", name_of(function), BAD)}
    assert result.ledger.counts() == {
        "first/cancel-negations": LAYERS,
        "rescale/scale": LAYERS - 1,
        f"last/{name_of(function)}": LAYERS - 1,
    }
    assert_outputs_kept(model, result)


def test_strict_writes_nothing(model: Path, register: Register, capsys: pytest.CaptureFixture[str]) -> None:
    """With --strict a dropped rewrite is an error in one line that names it, and no file appears; without, a success."""
    register(table("sabotage", GOOD, rule(corrupt_weight, "MatMul")))
    command = ["optimize", str(model), "-o", str(model.with_name("out.onnx")), "--pass", "sabotage", "--verify", "outputs", "-q"]
    assert main([*command, "--strict"]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"sabotage/corrupt-weight at {BAD}" in error
    assert [path.name for path in model.parent.iterdir()] == ["model.onnx"]
    assert main(command) == 0


def test_a_rule_that_is_wrong_everywhere(model: Path, register: Register) -> None:
    """After two places the rule itself is dropped, since one place after the other would take a run each."""

    def negate(node: ir.Node, view: View) -> Change | None:
        """Replaces a MatMul with its negative."""
        return Change(lambda build: build.op("Neg", build.op("MatMul", *node.inputs))) if is_place(node) else None

    result = driver.optimize(model, model.with_name("out.onnx"), recipe=register(table("sabotage", rule(negate, "MatMul"), GOOD)))
    assert dropped(result)[-1] == Key("sabotage", "negate")
    assert len(dropped(result)) == 3
    assert result.ledger.counts() == {"sabotage/cancel-negations": LAYERS}


def test_rules_that_undo_each_other(model: Path, register: Register) -> None:
    """A table that never comes to an end is stopped, and one of its rules is dropped."""

    def forth(node: ir.Node, view: View) -> Change | None:
        """Replaces Relu with Abs."""
        return Change(lambda build: build.op("Abs", node.inputs[0]))

    def back(node: ir.Node, view: View) -> Change | None:
        """Replaces Abs with Relu."""
        return Change(lambda build: build.op("Relu", node.inputs[0]))

    result = driver.optimize(
        model, model.with_name("out.onnx"), recipe=register(table("sabotage", GOOD, rule(forth, "Relu"), rule(back, "Abs")))
    )
    assert "does not come to an end" in result.ledger.drops[0].reason
    assert result.ledger.counts() == {"sabotage/cancel-negations": LAYERS}
    assert_outputs_kept(model, result)


# Passes that are no tables of rules.


def whole(name: str, harm: Callable[[ir.Model], None], *, tells: bool = True) -> type[Pass]:
    """A pass that does harm as one rewrite, or without telling the ledger."""

    class Whole(Pass):
        """Does harm."""

        def call(self, model: ir.Model) -> ir.passes.PassResult:
            """Asks once for leave."""
            key = Key(name, "harm")
            if tells and not ledger.allow(key):
                return ir.passes.PassResult(model, False)
            harm(model)
            if tells:
                ledger.record(ledger.Rewrite(key))
            return ir.passes.PassResult(model, True)

    Whole.name = name
    return Whole


def remove_a_producer(model: ir.Model) -> None:
    """Takes a node away whose output others use."""
    model.graph.remove(next(node for node in model.graph if node.name == BAD))


def rename_the_output(model: ir.Model) -> None:
    """Gives the model's output another name."""
    model.graph.outputs[0].name = "renamed"


def add_an_input(model: ir.Model) -> None:
    """Gives the model one more input."""
    model.graph.inputs.append(ir.val("more", ir.DataType.FLOAT, [1]))


def change_the_output_shape(model: ir.Model) -> None:
    """Says another shape of the output."""
    model.graph.outputs[0].shape = ir.Shape([8, 8])


def tear_the_graph(model: ir.Model) -> None:
    """Leaves something that is no graph."""
    model.graph.outputs.append(cast("ir.Value", None))


def give_a_name_twice(model: ir.Model) -> None:
    """Gives two values one name."""
    for node in model.graph:
        node.outputs[0].name = "same" if node.op_type == "MatMul" else node.outputs[0].name


def raise_halfway(model: ir.Model) -> None:
    """Raises after a change."""
    rename_the_output(model)
    raise RuntimeError("first line\nsecond line")


def zero_a_weight(model: ir.Model) -> None:
    """Puts a weight of zeros in place of one."""
    model.graph.initializers["w2"].const_value = ir.tensor(np.zeros((8, 8), np.float32), name="w2")


def zero_a_weight_in_place(model: ir.Model) -> None:
    """Writes into the memory of a weight, which all copies of the model share."""
    tensor = model.graph.initializers["w2"].const_value
    assert tensor is not None
    tensor.numpy()[:] = 0


HARM = (
    remove_a_producer,
    rename_the_output,
    add_an_input,
    change_the_output_shape,
    tear_the_graph,
    give_a_name_twice,
    raise_halfway,
    zero_a_weight,
    zero_a_weight_in_place,
)


@pytest.mark.parametrize("harm", HARM)
@pytest.mark.parametrize("tells", [True, False], ids=["tells", "hides"])
def test_a_harmful_pass_among_good_ones(model: Path, register: Register, harm: Callable[[ir.Model], None], tells: bool) -> None:
    """A pass that breaks the model is dropped, whether or not it tells the ledger what it does; its neighbours are kept."""
    chosen = register(table("good", GOOD), whole("harmful", harm, tells=tells), table("after", rule(copied, "MatMul")))
    result = driver.optimize(model, model.with_name("out.onnx"), recipe=chosen)
    assert {key.pass_name for key in dropped(result)} == {"harmful"}
    assert result.ledger.counts() == {"good/cancel-negations": LAYERS, "after/copied": LAYERS}
    assert all("\n" not in drop.reason for drop in result.ledger.drops)
    assert_outputs_kept(model, result)


def test_a_pass_that_hides_what_it_does_and_lies_about_it(model: Path, register: Register) -> None:
    """Changes that no rewrite stands for never reach the output, not even where nothing else is done."""

    class Liar(Pass):
        """Changes a weight and denies it."""

        name: ClassVar[str] = "liar"

        def call(self, model: ir.Model) -> ir.passes.PassResult:
            """Says that nothing was done."""
            zero_a_weight(model)
            return ir.passes.PassResult(model, False)

    result = driver.optimize(model, recipe=register(Liar))
    assert not result.changed
    weight = result.model.graph.initializers["w2"].const_value
    assert weight is not None
    assert np.any(weight.numpy())
    mixed = driver.optimize(model, model.with_name("out.onnx"), recipe=register(Liar, table("good", GOOD)))
    assert mixed.ledger.drops
    assert_outputs_kept(model, mixed)


class Zeroing(ir.passes.InPlacePass):
    """Anyone's pass of onnx_ir: zeroes a weight."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Knows no ledger."""
        zero_a_weight(model)
        return ir.passes.PassResult(model, True)


class Renaming(ir.passes.FunctionalPass):
    """Anyone's functional pass: gives back another model, with a comment."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Knows no ledger."""
        copy = model.clone()
        changed = copy.graph.doc_string != "hello"
        copy.graph.doc_string = "hello"
        return ir.passes.PassResult(copy, changed)


def test_foreign_passes(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Anyone's onnx_ir pass runs under its import name where imports are allowed, is one rewrite, and is dropped where it is wrong."""
    wrong, right = f"{__name__}:Zeroing", f"{__name__}:Renaming"
    chosen = Recipe.of(wrong, "simplify", right).changed(verify="outputs")
    result = driver.optimize(model, model.with_name("out.onnx"), recipe=chosen, allow_imports=True)
    assert dropped(result) == [Key(wrong)]
    assert result.ledger.counts()[right] == 1
    assert result.model.graph.doc_string == "hello"
    assert_outputs_kept(model, result)
    assert main(["optimize", str(model), "-o", str(model.with_name("no.onnx")), "--pass", wrong]) == 1
    assert "--allow-imports" in capsys.readouterr().err


@dataclass(frozen=True)
class Imported(RulePass):
    """A pass of graphopt's own kind in somebody's module."""

    name: ClassVar[str] = "imported"
    rules: ClassVar[tuple[Rule, ...]] = (GOOD, rule(corrupt_weight, "MatMul"))


def test_an_imported_pass_of_our_kind_is_bisected(model: Path) -> None:
    """A pass named ``module:Class`` that speaks to the ledger is dropped at one place only, and counted once."""
    chosen = Recipe.of(f"{__name__}:Imported").changed(verify="outputs")
    result = driver.optimize(model, model.with_name("out.onnx"), recipe=chosen, allow_imports=True)
    assert dropped(result) == [Key("imported", "corrupt-weight", BAD)]
    assert result.ledger.counts() == {"imported/cancel-negations": LAYERS, "imported/corrupt-weight": LAYERS - 1}


# Kernels that were planned and do not run.


def two_products() -> ir.Model:
    """A product that runs in 8 bits, and one with a bias, which the runtime turns into a float Gemm."""
    return ir.from_onnx_text(
        """<ir_version: 8, opset_import: ["": 18]> g (float[16,32] x, float[16,32] z) => (float[16,32] y, float[16,32] u)
        <float[32,32] a = {0}, float[32,32] b = {0}, float[32] bias = {0}>
        { [plain] y = MatMul(x, a) [biased] p = MatMul(z, b) [add] u = Add(p, bias) }"""
    )


def quantize_product(node: ir.Node, view: View) -> Change | None:
    """Replaces a MatMul with its 8-bit form: DequantizeLinear on both sides, and QuantizeLinear behind where no bias follows."""
    weight = view.constant(node.inputs[1])
    if not is_place(node) or weight is None:
        return None

    def built(build: Any) -> ir.Value:
        def quantized(value: ir.Value | None, scale: float) -> ir.Value:
            step, zero = build.constant(np.float32(scale)), build.constant(np.uint8(128))
            return cast("ir.Value", build.op("DequantizeLinear", build.op("QuantizeLinear", value, step, zero), step, zero))

        scale = np.abs(weight).max() / 127
        integers = build.constant(np.round(weight / scale).astype(np.int8))
        product = build.op(
            "MatMul",
            quantized(node.inputs[0], 4 / 128),
            build.op("DequantizeLinear", integers, build.constant(np.float32(scale)), build.constant(np.int8(0))),
        )
        return quantized(product, 0.25) if node.name == "plain" else cast("ir.Value", product)

    return Change(built, kernels=("::QLinearMatMul", "::QuantizeLinear", "::DequantizeLinear"))


def test_a_planned_kernel_that_falls_back(tmp_path: Path, register: Register, monkeypatch: pytest.MonkeyPatch) -> None:
    """A form that was planned to run in 8 bits and runs in float is dropped; the one that runs as planned is kept."""
    monkeypatch.setattr(proof, "compare_speed", lambda *_, **__: Timing(slower=False))
    products, generator = two_products(), np.random.default_rng(1)
    for value in products.graph.initializers.values():
        assert value.shape is not None
        value.const_value = ir.tensor(generator.normal(size=value.shape.numpy()).astype(np.float32), name=value.name)
    path = tmp_path / "model.onnx"
    ir.save(products, path)
    chosen = register(table("quantize", rule(quantize_product, "MatMul")), verify="full", tolerance=0.5)
    result = driver.optimize(path, tmp_path / "out.onnx", recipe=chosen)
    assert dropped(result) == [Key("quantize", "quantize-product", "biased")]
    assert result.ledger.drops[0].reason.startswith("1 of 2 planned ::QLinearMatMul kernels run")
    assert [rewrite.key.anchor for rewrite in result.ledger.rewrites] == ["plain"]


# Time.


@dataclass(frozen=True)
class Timing:
    """What a measurement says, without measuring."""

    slower: bool

    @property
    def speedup(self) -> Any:
        """A ratio with its interval."""
        return Ratio(0.5 if self.slower else 1.0)

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {"slower": self.slower}


@dataclass(frozen=True)
class Ratio:
    """A ratio."""

    ratio: float


def detour(node: ir.Node, view: View) -> Change | None:
    """Replaces a Relu with itself plus zero times the product of two large matrices."""
    if not is_place(node) or node.name != "r4":
        return None

    def built(build: Any) -> ir.Value:
        one = build.op("Tanh", build.op("ReduceMax", node.inputs[0], keepdims=1))
        large = build.op("Expand", one, build.constant(np.array([400, 400], np.int64)))
        nothing = build.op("Mul", build.op("ReduceMax", build.op("MatMul", large, large), keepdims=1), build.constant(np.float32(0)))
        return cast("ir.Value", build.op("Add", build.op("Relu", node.inputs[0]), nothing))

    return Change(built)


def test_a_slow_rule_is_named(model: Path, register: Register) -> None:
    """A right rewrite that takes longer is found by measuring, and the rest is kept; real clocks."""
    chosen = register(table("sabotage", GOOD, rule(detour, "Relu")), verify="full", time_limit=0.2, session={"threads": 1})
    result = driver.optimize(model, model.with_name("out.onnx"), recipe=chosen)
    assert dropped(result) == [Key("sabotage", "detour")]
    assert "times the original's time" in result.ledger.drops[0].reason
    assert result.ledger.counts() == {"sabotage/cancel-negations": LAYERS}
    assert result.figures.speed is not None
    assert not result.figures.speed.slower
    assert_outputs_kept(model, result)


def test_slow_once_is_not_slow(model: Path, register: Register, monkeypatch: pytest.MonkeyPatch) -> None:
    """One measurement that says slower is held to be noise where a second one does not."""
    answers = [Timing(slower=True), Timing(slower=False)]
    monkeypatch.setattr(proof, "compare_speed", lambda *_, **__: answers.pop(0))
    result = driver.optimize(model, model.with_name("out.onnx"), recipe=register(table("sabotage", GOOD), verify="full"))
    assert not answers
    assert not result.ledger.drops


def test_nothing_left_is_a_copy_without_figures(model: Path, register: Register, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where all that was done is slower, the output is the input byte for byte, and no measurement of another file is shown."""
    monkeypatch.setattr(proof, "compare_speed", lambda *_, **__: Timing(slower=True))
    result = driver.optimize(model, model.with_name("out.onnx"), recipe=register(table("sabotage", GOOD), verify="full"))
    assert dropped(result) == [Key("sabotage", "cancel-negations")]
    assert result.path is not None
    assert result.path.read_bytes() == model.read_bytes()
    assert result.figures.speed is None
    assert result.figures.kernels_after is None
    assert "nothing to improve: the output equals the input" in result.ledger.notes


def test_verification_error_is_the_last_resort(model: Path, register: Register, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the written file differs from what was verified, nothing is written at all."""
    monkeypatch.setattr("graphopt.run.write_model", lambda attempts, dropped, fallback, path, original: ir.save(zeroed(fallback), path))
    with pytest.raises(VerificationError, match="the written file failed the last check"):
        driver.optimize(model, model.with_name("out.onnx"), recipe=register(table("good", GOOD)))
    assert [path.name for path in model.parent.iterdir()] == ["model.onnx"]


def zeroed(model: ir.Model) -> ir.Model:
    """A copy with a weight of zeros."""
    copy = model.clone()
    zero_a_weight(copy)
    return copy

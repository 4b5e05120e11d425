"""Tests of the rule engine: order, fixed points, names, outputs, subgraphs, and what a bad table does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import onnx_ir as ir
import pytest

from graphopt import ledger
from graphopt.graph.edits import can_stand_for, name_nodes
from graphopt.graph.structure import verify_structure
from graphopt.graph.view import View
from graphopt.ledger import Key, Recorder
from graphopt.passes.rules import Change, Miss, Rule, RuleError, RulePass, rule, rule_names
from tests.helpers import assert_same_outputs, operators, parse


def table(*rules: Rule) -> RulePass:
    """A pass of some rules."""
    kind: type[RulePass] = dataclass(frozen=True)(type("Table", (RulePass,), {"name": "table", "rules": rules}))
    return kind()


def run(text: str, *rules: Rule, denied: frozenset[Key] = frozenset(), limit: int | None = None) -> tuple[ir.Model, Recorder]:
    """A model after a table, sound, and what was recorded; a second run changes nothing."""
    model, step = parse(text), table(*rules)
    name_nodes(model)
    with ledger.recording(Recorder(denied, limit)) as recorder:
        modified = step(model).modified
    assert modified == bool(recorder.rewrites)
    verify_structure(model)
    for value in used(model):
        assert all(use.node.graph is not None and use.node.inputs[use.idx] is value for use in value.uses()), "a stale use"
    with ledger.recording(Recorder(denied, 0 if limit is not None else None)):
        assert not step(model).modified
    return model, recorder


def used(model: ir.Model) -> list[ir.Value]:
    """All values of all graphs."""
    return [
        value
        for graph in model.graphs()
        for value in (*graph.inputs, *graph.initializers.values(), *(output for node in graph for output in node.outputs))
    ]


def fired(recorder: Recorder) -> list[str]:
    """Which rules fired, where, in order."""
    return [f"{rewrite.key.rule} {rewrite.key.anchor}" for rewrite in recorder.rewrites]


def drop_identity(node: ir.Node, view: View) -> Change | None:
    """Replaces Identity with its input, where it does not give an output its name."""
    source = node.inputs[0]
    return Change(lambda build: source) if source is not None and can_stand_for(node.outputs[0], source) else None


def cancel_negations(node: ir.Node, view: View) -> Change | Miss | None:
    """Replaces the negation of a negation with what was negated."""
    inner = view.producer(node.inputs[0], "Neg")
    if inner is None or inner.inputs[0] is None:
        return None
    if not view.is_private(inner.outputs[0]):
        return Miss("the inner negation is used elsewhere")
    source = inner.inputs[0]
    return Change(lambda build: source)


def abs_for_relu(node: ir.Node, view: View) -> Change:
    """Replaces Relu with Abs."""
    return Change(lambda build: build.op("Abs", node.inputs[0]))


def relu_for_abs(node: ir.Node, view: View) -> Change:
    """Replaces Abs with Relu."""
    return Change(lambda build: build.op("Relu", node.inputs[0]))


def sum_for_add(node: ir.Node, view: View) -> Change:
    """Replaces Add with Sum."""
    return Change(lambda build: build.op("Sum", *node.inputs))


def mean_for_add(node: ir.Node, view: View) -> Change:
    """Replaces Add with Mean."""
    return Change(lambda build: build.op("Mean", *node.inputs))


IDENTITY = rule(drop_identity, "Identity")
NEGATIONS = rule(cancel_negations, "Neg")


# Order and fixed point.


def test_rules_are_tried_in_the_order_of_the_table() -> None:
    """The first rule of an operator wins; denied, the next one has its turn."""
    text = "(float[2] x) => (float[2] y) { [add] y = Add(x, x) }"
    rules = (rule(sum_for_add, "Add"), rule(mean_for_add, "Add"))
    assert fired(run(text, *rules)[1]) == ["sum-for-add add"]
    assert fired(run(text, *reversed(rules))[1]) == ["mean-for-add add"]
    assert fired(run(text, *rules, denied=frozenset({Key("table", "sum-for-add")}))[1]) == ["mean-for-add add"]


def test_a_rule_for_every_node() -> None:
    """A rule of ``*`` sees every node, after those of the operator; one of several operators sees each."""
    seen: list[str] = []

    def look(node: ir.Node, view: View) -> Change | None:
        """Looks."""
        seen.append(node.op_type)
        return None

    text = "(float[2] x) => (float[2] y) { a = Abs(x) b = Neg(a) y = com.microsoft.Gelu(b) }"
    run(text, rule(look, "*"))
    assert seen == ["Abs", "Neg", "Gelu"] * 2  # the second run is the helper's
    seen.clear()
    run(text, rule(look, "com.microsoft::Gelu", "Abs", "Gelu"))
    assert seen == ["Abs", "Gelu"] * 2


@pytest.mark.parametrize("length", [2, 3, 4, 9])
def test_chains_collapse_in_one_run(length: int) -> None:
    """What one rewrite opens up is visited again, until nothing is left to do."""
    lines = " ".join(f"v{i + 1} = Neg(v{i})" for i in range(length))
    model, recorder = run(f"(float[2] v0) => (float[2] y) {{ {lines} y = Abs(v{length}) }}", NEGATIONS)
    assert operators(model) == ["Neg"] * (length % 2) + ["Abs"]
    assert len(recorder.rewrites) == length // 2


def test_new_nodes_and_users_of_their_results_are_visited() -> None:
    """A rewrite's own nodes and the users of what it replaced get their turn."""
    text = "(float[2] x) => (float[2] y) { [r] a = Relu(x) [i] b = Identity(a) y = Neg(b) }"
    model, recorder = run(text, rule(abs_for_relu, "Relu"), IDENTITY)
    assert operators(model) == ["Abs", "Neg"]
    assert fired(recorder) == ["abs-for-relu r", "drop-identity i"]


def test_losing_another_user_is_an_opening() -> None:
    """A node whose input has only one user left is looked at again."""
    text = """(float[2] x) => (float[2] y) {
        [inner] n = Neg(x) [outer] p = Neg(n) [dead] r = Relu(n) [gone] z = Mul(r, x) y = Add(p, x) }"""

    def forget(node: ir.Node, view: View) -> Change | None:
        """Replaces what nobody uses with nothing."""
        return Change(lambda build: [None]) if not node.outputs[0].uses() and not node.outputs[0].is_graph_output() else None

    model, recorder = run(text, NEGATIONS, rule(forget, "Mul"))
    assert operators(model) == ["Add"]
    assert fired(recorder) == ["forget gone", "cancel-negations outer"]
    assert recorder.misses == {Key("table", "cancel-negations", "outer"): "the inner negation is used elsewhere"}


def test_time_is_linear() -> None:
    """Ten thousand nodes, each rewritten, need a bounded number of questions a node."""
    calls = 0

    def count(node: ir.Node, view: View) -> Change | None:
        """Counts."""
        nonlocal calls
        calls += 1
        return None

    length = 4000
    lines = " ".join(f"v{i + 1} = Identity(v{i})" for i in range(length))
    run(f"(float[2] v0) => (float[2] y) {{ {lines} y = Abs(v{length}) }}", rule(count, "*"), IDENTITY)
    assert calls < 5 * length


def test_a_table_that_undoes_itself_is_stopped() -> None:
    """Rules that undo each other end in an error that names one of them, in bounded time."""
    model = parse("(float[2] x) => (float[2] y) { a = Relu(x) y = Neg(a) }")
    name_nodes(model)
    with pytest.raises(RuleError, match=r"does not come to an end.*--skip") as caught:
        table(rule(abs_for_relu, "Relu"), rule(relu_for_abs, "Abs"))(model)
    assert caught.value.key.rule in {"abs-for-relu", "relu-for-abs"}
    assert not caught.value.key.anchor


# Errors and the ledger.


def test_an_error_names_the_place() -> None:
    """Whatever a rule raises comes back with pass, rule and node."""

    def fail(node: ir.Node, view: View) -> Change | None:
        """Fails."""
        raise IndexError("no such input")

    model = parse("(float[2] x) => (float[2] y) { [here] y = Neg(x) }")
    with pytest.raises(RuleError, match="table/fail at here: IndexError: no such input") as caught:
        table(rule(fail, "Neg"))(model)
    assert caught.value.key == Key("table", "fail", "here")
    assert isinstance(caught.value.__cause__, IndexError)


@pytest.mark.parametrize(
    ("build", "part"),
    [
        (lambda build: [], "ValueError"),
        (lambda build: (build.op("Abs", None), build.op("Abs", None)), "ValueError"),
        (lambda build: "y", "ValueError|TypeError|AttributeError"),
        (lambda build: None, "TypeError"),
    ],
    ids=["none", "two", "a name", "nothing"],
)
def test_a_build_of_the_wrong_form(build: Callable[[Any], Any], part: str) -> None:
    """A replacement for each output is wanted, no more and no less."""
    model = parse("(float[2] x) => (float[2] y) { [here] a = Neg(x) y = Abs(a) }")

    def wrong(node: ir.Node, view: View) -> Change:
        """Builds wrongly."""
        return Change(build)

    with pytest.raises(RuleError, match=f"table/wrong at here: ({part})"):
        table(rule(wrong, "Neg"))(model)


def test_denied_places_are_not_even_looked_at() -> None:
    """A rule that fails where it looks can be kept from looking."""

    def fail(node: ir.Node, view: View) -> Change | None:
        """Fails."""
        raise IndexError

    text = "(float[2] x) => (float[2] y) { [here] y = Neg(x) }"
    assert not run(text, rule(fail, "Neg"), denied=frozenset({Key("table", "fail", "here")}))[1].rewrites


def test_the_limit_stops_rewriting() -> None:
    """With a limit the first n rewrites happen and no more; all of them are those of a run without one."""
    text = "(float[2] x) => (float[2] y) { [i1] a = Identity(x) [i2] b = Identity(a) [i3] c = Identity(b) y = Neg(c) }"
    whole = fired(run(text, IDENTITY)[1])
    for limit in range(4):
        model, recorder = run(text, IDENTITY, limit=limit)
        assert fired(recorder) == whole[:limit]
        assert operators(model) == ["Identity"] * (3 - limit) + ["Neg"]


def test_what_is_recorded() -> None:
    """An entry names the nodes that went and came, the reason, the planned kernels and merged values."""

    def fuse(node: ir.Node, view: View) -> Change | None:
        """Replaces Add after Mul with a made-up pair."""
        inner = view.producer(node.inputs[0], "Mul")
        if inner is None:
            return None
        return Change(lambda build: build.op("Sum", *inner.inputs, node.inputs[1]), reason="for the test", kernels=("::Sum",))

    text = "(float[2] x, float[2] z) => (float[2] y) { [mul] a = Mul(x, z) [add] b = Add(a, z) [end] y = Neg(b) }"
    model, recorder = run(text, rule(fuse, "Add"))
    [rewrite] = recorder.rewrites
    assert (rewrite.removed, rewrite.added) == (("add", "mul"), ("add/Sum",))
    assert (rewrite.reason, rewrite.kernels) == ("for the test", ("::Sum",))
    assert [value.name for value in used(model)] == ["x", "z", "b", "y"]
    [dropped] = run("(float[2] x) => (float[2] y) { [i] a = Identity(x) y = Neg(a) }", IDENTITY)[1].rewrites
    assert dropped.merged == (("a", "x"),)


def test_what_is_built_in_vain_goes() -> None:
    """Nodes and constants that a rule made and does not use stay in no graph."""

    def waste(node: ir.Node, view: View) -> Change:
        """Replaces Relu with Abs, and makes more than it needs."""

        def built(build: Any) -> ir.Value:
            build.op("Neg", build.op("Add", node.inputs[0], build.constant(np.ones(2, np.float32))))
            return cast("ir.Value", build.op("Abs", node.inputs[0]))

        return Change(built)

    model, recorder = run("(float[2] x) => (float[2] y) { y = Relu(x) }", rule(waste, "Relu"))
    assert operators(model) == ["Abs"]
    assert not model.graph.initializers
    assert recorder.rewrites[0].added == ("Relu:y/Abs",)


# Names and outputs.


def test_names_of_values_stay() -> None:
    """What a rewrite computes anew bears the old value's name; other nodes keep theirs."""
    model, _ = run("(float[2] x) => (float[2] y) { [r] middle = Relu(x) [end] y = Neg(middle) }", rule(abs_for_relu, "Relu"))
    assert [(node.name, node.outputs[0].name) for node in model.graph] == [("r/Abs", "middle"), ("end", "y")]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("(float[2] x) => (float[2] y) { y = Identity(x) }", ["Identity"]),
        ("(float[2] x) => (float[2] y) <float[2] w = {1, 2}> { y = Identity(w) }", ["Identity"]),
        ("(float[2] x) => (float[2] y) { a = Abs(x) y = Identity(a) }", ["Abs"]),
        ("(float[2] x) => (float[2] y, float[2] z) { y = Abs(x) z = Identity(y) }", ["Abs", "Identity"]),
        ("(float[2] x) => (float[2] y, float[2] z) { a = Abs(x) y = Identity(a) z = Identity(a) }", ["Abs", "Identity"]),
        ("(float[2] x) => (float[2] y, float[2] z) { a = Abs(x) y = Identity(a) z = Neg(a) }", ["Abs", "Neg"]),
        ("(float[2] x) => (float[2] x2, float[2] y) { x2 = Identity(x) y = Identity(x2) }", ["Identity", "Identity"]),
    ],
    ids=["input", "initializer", "node", "output", "two outputs", "shared", "chain"],
)
def test_outputs_keep_their_names(text: str, expected: list[str]) -> None:
    """Each graph output is still there under its name, with an Identity where nothing else can bear it; the order stays."""
    model = parse(text)
    name_nodes(model)
    before = [value.name for value in model.graph.outputs]
    reference = model.clone()
    table(IDENTITY)(model)
    verify_structure(model)
    assert [value.name for value in model.graph.outputs] == before
    assert operators(model) == expected
    assert_same_outputs(reference, model)
    for _ in range(3):  # an Identity that must stay is not taken out and put back for ever
        table(IDENTITY)(model)
    assert operators(model) == expected


def test_several_outputs() -> None:
    """A rule answers for every output of its anchor; one that nobody uses may get none."""

    def split_by_hand(node: ir.Node, view: View) -> Change:
        """Replaces TopK of everything with sorted values."""
        return Change(lambda build: [build.op("Neg", node.inputs[0]), None])

    text = """(float[4] x) => (float[4] y) <int64[1] k = {4}> { [top] v, i = TopK(x, k) y = Abs(v) }"""
    model, _ = run(text, rule(split_by_hand, "TopK"))
    assert operators(model) == ["Neg", "Abs"]
    assert not model.graph.initializers


# Subgraphs.

IF = """(bool c, float[2] x) => (float[2] y) {
    [outer] a = Identity(x)
    [choice] y = If (c) <
        then_branch = g1 () => (float[2] t) { [in1] b = Identity(a) [n1] m = Neg(b) [n2] k = Neg(m) t = Abs(k) },
        else_branch = g2 () => (float[2] e) { [in2] b = Identity(a) e = Neg(b) }> }"""


def test_subgraphs_are_rewritten() -> None:
    """Rules reach into branches, and what a branch takes from outside follows."""
    model, recorder = run(IF, IDENTITY, NEGATIONS)
    assert operators(model) == ["If", "Abs", "Neg"]
    assert sorted(fired(recorder)) == ["cancel-negations n2", "drop-identity in1", "drop-identity in2", "drop-identity outer"]
    feeds = {"c": np.array(True), "x": np.array([1, -2], np.float32)}
    for condition in (True, False):
        assert_same_outputs(parse(IF), model, feeds | {"c": np.array(condition)})


def test_a_branch_that_returns_what_it_is_given() -> None:
    """A branch's output keeps a producer of its own in the branch."""
    text = """(bool c, float[2] x) => (float[2] y) { y = If (c) <
        then_branch = g1 () => (float[2] t) { t = Identity(x) },
        else_branch = g2 () => (float[2] e) { f = Neg(x) e = Identity(f) }> }"""
    model, _ = run(text, IDENTITY)
    assert operators(model) == ["If", "Identity", "Neg"]
    assert_same_outputs(parse(text), model, {"c": np.array(True), "x": np.ones(2, np.float32)})


def test_a_node_with_subgraphs_goes_whole() -> None:
    """Where an If is replaced, what was in its branches is gone too, uses of outer values included."""

    def first_input(node: ir.Node, view: View) -> Change:
        """Replaces If with a value from outside."""
        producer = next(n for n in cast("ir.Graph", node.graph) if n.op_type == "Identity")
        return Change(lambda build: producer.outputs[0])

    model, recorder = run(IF, rule(first_input, "If"))
    assert operators(model) == ["Identity"]
    assert set(recorder.rewrites[0].removed) == {"choice", "in1", "n1", "n2", "Abs:t", "in2", "Neg:e"}
    assert [use.node.op_type for use in model.graph.inputs[1].uses()] == ["Identity"]


def test_functions_are_passed_by_with_a_note() -> None:
    """Rules do not look into functions, and the ledger says so."""
    text = """<ir_version: 10, opset_import: ["": 18, "f": 1]> g (float[2] x) => (float[2] y) { y = f.Twice(x) }
        <domain: "f", opset_import: ["": 18]> Twice (a) => (b) { c = Identity(a) b = Add(c, c) }"""
    model = ir.from_onnx_text(text)
    with ledger.recording(Recorder()) as recorder:
        assert not table(IDENTITY)(model).modified
    assert any("Twice" in note for note in recorder.notes)


# What a rule knows of itself.


def test_names_of_rules() -> None:
    """Rules are called as their functions are, with hyphens."""
    assert rule_names(type(table(IDENTITY, NEGATIONS))) == ("drop-identity", "cancel-negations")
    assert rule_names(int) == ()

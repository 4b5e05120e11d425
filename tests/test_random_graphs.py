"""Random models with the patterns of all rules: the exact passes alone, which nothing takes back, keep every output."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, replace
from typing import ClassVar, get_args

import hypothesis
import onnx
import pytest

from graphopt.passes.rules import Change, Rule, RulePass, rule, rule_names
from graphopt.stage import Stage
from tests.random_graphs import checking, generator
from tests.random_graphs.generator import Sample, Target
from tests.random_graphs.reduction import reduced

COUNT = int(os.environ.get("GRAPHOPT_RANDOM_GRAPHS", "20000"))
FIRST = int(os.environ.get("GRAPHOPT_RANDOM_SEED", "0"))
"""How many models the slow test makes, and the seed of the first."""

LEAST = 100 / 20_000
"""How often each rule must fire per model."""

PLANTED = ("cleanup", "shapes", "simplify", "affine", "duplicates", "activations", "normalize", "attention", "algebra")
"""The passes whose patterns the generator plants; others, if any, must be right where they fire, and need not."""

NEVER = frozenset({"cleanup/sort-nodes"})
"""Rules with nothing to do: reading a file sorts."""

STAGES = {target: checking.exact_stage(target) for target in get_args(Target)}


@hypothesis.settings(max_examples=150, suppress_health_check=list(hypothesis.HealthCheck))
@hypothesis.given(generator.samples())
def test_exact_passes_keep_random_models(sample: Sample) -> None:
    """Same outputs at several sizes, the runtime's optimizations on and off; a sound structure; nothing left for a second run."""
    try:
        checking.check(sample, STAGES[sample.target])
    except checking.UnfitError:
        hypothesis.reject()


def test_generator_is_deterministic() -> None:
    """A seed gives the same bytes each time."""
    assert [generator.seeded(seed).proto.SerializeToString(deterministic=True) for seed in (1, 2)] == [
        generator.seeded(seed).proto.SerializeToString(deterministic=True) for seed in (1, 2)
    ]


def test_generator_covers_operators_and_opsets() -> None:
    """At least 80 operators, all opsets from 11 to 24, and all element types stand in a few hundred models."""
    protos = [generator.seeded(seed).proto for seed in range(400)]
    assert len({node.op_type for proto in protos for node in proto.graph.node}) >= 80
    assert {imported.version for proto in protos for imported in proto.opset_import if not imported.domain} == set(range(11, 25))
    assert {value.type.tensor_type.elem_type for proto in protos for value in proto.graph.input} >= {1, 6, 7, 9, 10, 11}


def test_every_rule_fires() -> None:
    """Within two thousand models at most; they are made and rewritten, not run."""
    waiting = set(planted(STAGES["cpu"]))
    for seed in range(2000):
        sample = generator.seeded(seed)
        waiting -= set(checking.fired(STAGES[sample.target].attempt(checking.original_of(sample), frozenset())))
        if not waiting:
            return
    pytest.fail(f"rules that never fire: {sorted(waiting)}")


@dataclass(frozen=True)
class _Wrong(RulePass):
    """Replaces Tanh with Sin."""

    name: ClassVar[str] = "wrong"
    rules: ClassVar[tuple[Rule, ...]] = (rule(lambda node, _: Change(lambda op: op.op("Sin", node.inputs[0])), "Tanh"),)


def test_a_wrong_rule_is_found_and_its_model_made_small() -> None:
    """Within some models; what is left of the model is the wrong node and little else."""
    stage = Stage((*STAGES["cpu"].passes, _Wrong()))
    sample = next(sample for seed in range(50) if _breaks(sample := generator.seeded(seed), stage))
    found = smallest(sample, stage)
    assert "Tanh" in {node.op_type for node in found.graph.node}
    assert len(found.graph.node) <= 3


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_many_random_models() -> None:
    """The same for many models by seed; every rule fires often."""
    fired, unfit = Counter[str](), Counter[str]()
    for seed in range(FIRST, FIRST + COUNT):
        sample = generator.seeded(seed)
        try:
            fired += checking.check(sample, STAGES[sample.target])
        except checking.UnfitError as reason:
            unfit[str(reason).partition(":")[0]] += 1
        except checking.BrokenError as fault:
            pytest.fail(f"seed {seed}: {fault}\n{onnx.printer.to_text(smallest(sample, STAGES[sample.target]))}")
    assert unfit.total() < 0.1 * COUNT, f"too few models serve as references: {unfit}"
    rare = {name: fired[name] for name in planted(STAGES["cpu"]) if fired[name] < LEAST * COUNT}
    assert not rare, f"rules that fire too seldom: {rare}; all: {fired.most_common()}"


def planted(stage: Stage) -> list[str]:
    """The names of all rules that must fire, as the ledger counts them."""
    cleanup = "sort-nodes name-nodes inline-functions remove-initializers-from-inputs lift-constants remove-unused strip-metadata".split()
    names = {"cleanup": cleanup, "duplicates": ["merge-equal-nodes", "merge-equal-initializers"]}
    found = [f"{each.name}/{name}" for each in stage.passes for name in (rule_names(type(each)) or names.get(each.name, ()))]
    return [name for name in found if name not in NEVER and name.partition("/")[0] in PLANTED]


def smallest(sample: Sample, stage: Stage) -> onnx.ModelProto:
    """The failing model of a sample with nothing in it that the failure does not need."""
    return reduced(sample.proto, lambda proto: _breaks(replace(sample, proto=proto), stage))


def _breaks(sample: Sample, stage: Stage) -> bool:
    try:
        checking.check(sample, stage)
    except checking.BrokenError:
        return True
    except Exception:  # what was taken away made it another model, or none
        return False
    return False

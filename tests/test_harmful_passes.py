"""Tests of passes that are no tables of rules and break the model: dropped, whether or not they say what they do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import ClassVar, cast

import numpy as np
import onnx_ir as ir
import pytest

from graphopt import driver, ledger
from graphopt.ledger import Key
from graphopt.passes.base import Pass
from graphopt.passes.rules import rule
from tests.layered import GOOD, LAYERS, Register, assert_outputs_kept, copied, dropped, layered_file, registering, table
from tests.saboteurs import BAD, zero_a_weight

model = pytest.fixture(layered_file)
register = pytest.fixture(registering)


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

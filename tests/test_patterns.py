"""Tests of the patterns that say which layers are approximated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from graphopt import driver
from graphopt.choosing.selection import unselected
from graphopt.errors import RecipeError
from graphopt.ledger import Key
from tests.noisy import chain, chain_file, data, kept, recipe

model = pytest.fixture(chain_file)


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

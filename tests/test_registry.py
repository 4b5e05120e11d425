"""Passes are found by name, and a wrong name is answered with the nearest right ones."""

from __future__ import annotations

import pytest

from graphopt.errors import RecipeError
from graphopt.passes import PASSES, find
from graphopt.passes.simplify import Simplify


@pytest.mark.parametrize("name", PASSES)
def test_every_pass_is_found_under_its_own_name(name: str) -> None:
    """The registry's name is the one that the ledger shows."""
    assert find(name).name == name


def test_unknown_pass() -> None:
    """The message suggests what may have been meant."""
    assert find("simplify") is Simplify
    with pytest.raises(RecipeError, match="did you mean simplify"):
        find("simplfy")

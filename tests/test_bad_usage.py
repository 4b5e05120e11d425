"""Tests of samples that do not fit, wrong usage, and names that mean nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.desk import Desk, desk_in, good_file

desk = pytest.fixture(desk_in)
good = pytest.fixture(good_file)


@pytest.mark.parametrize(
    ("arrays", "part"),
    [
        ({"z": np.zeros((3, 4), np.float32)}, "has z"),
        ({"x": np.zeros((3, 4), np.float64)}, "float64"),
        ({"x": np.zeros((3, 5), np.float32)}, "[1, 5]"),
        ({"x": np.zeros((3, 1, 2, 4), np.float32)}, "[3, 1, 2, 4]"),
        ({"x": np.zeros((0, 4), np.float32)}, "no samples"),
    ],
    ids=["name", "type", "length", "rank", "none"],
)
def test_samples_that_do_not_fit(desk: Desk, good: Path, arrays: dict[str, Any], part: str) -> None:
    """Wrong samples are refused, and the message shows what the model wants."""
    np.savez(desk.folder / "data.npz", **arrays)
    message = desk.refuse_model(good, "--data", str(desk.folder / "data.npz"))
    assert part in message
    assert "no samples" in message or "the model wants x: float[n, 4]" in message


def test_samples_that_are_not_there(desk: Desk, good: Path) -> None:
    """A missing file, a function that cannot be imported, and a length that the model has not."""
    assert "nothing.npz" in desk.refuse_model(good, "--data", "nothing.npz")
    assert "no_such_module" in desk.refuse_model(good, "--data", "no_such_module:samples")
    assert "length" in desk.refuse_model(good, "--shape", "length=3")


@pytest.mark.parametrize(
    "arguments",
    [
        ("optimize",),
        ("optimize", "MODEL"),
        ("optimize", "MODEL", "-o", "OUT", "--verify", "sometimes"),
        ("optimize", "MODEL", "-o", "OUT", "--unknown"),
        ("optimize", "MODEL", "-o", "OUT", "--unknown", "3"),
        ("optimize", "MODEL", "-o", "OUT", "--preset", "prune", "--macs"),
        ("optimize", "MODEL", "-o", "OUT", "extra"),
        ("optimize", "MODEL", "-o", "OUT", "--threads", "-1"),
        ("optimize", "MODEL", "-o", "OUT", "--shape", "n"),
        ("optimize", "MODEL", "-o", "OUT", "--recipe", "r.yaml", "--pass", "simplify"),
        ("optimize", "MODEL", "-o", "OUT", "--pass", "simplify", "--amount", "3"),
        ("inspect",),
        ("inspect", "MODEL", "MODEL"),
        ("compare", "MODEL"),
        ("verify", "MODEL", "--tolerance", "much"),
        ("nonsense",),
    ],
    ids=" ".join,
)
def test_wrong_usage(desk: Desk, good: Path, arguments: tuple[str, ...]) -> None:
    """Wrong usage ends with status 2 and a message, and does nothing."""
    places = {"MODEL": str(good), "OUT": str(desk.output)}
    assert desk.refuse(*(places.get(word, word) for word in arguments), status=2)


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (("--preset", "exakt"), "exact"),
        (("--pass", "simplifi"), "simplify"),
        (("--pass", "simplify(deep=true)"), "deep"),
        (("--pass", "simplify("), "name(option=value"),
        (("--skip", "drop-identitty"), "drop-identity"),
        (("--time-limit", "0"), "time_limit"),
        (("--recipe", "nothing.yaml"), "nothing.yaml"),
        (("--custom-ops", "nothing.so"), "nothing.so"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_choices_that_do_not_exist(desk: Desk, good: Path, options: tuple[str, ...], part: str) -> None:
    """A name that means nothing is refused with the nearest one."""
    assert part in desk.refuse_model(good, *options)

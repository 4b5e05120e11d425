"""Tests of what is told of each layer: its error alone, the error of all up to it, and the causes."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from graphopt.choosing.diagnosis import diagnose
from graphopt.cli import main
from graphopt.errors import RecipeError
from graphopt.runtime.session import SessionOptions
from tests.noisy import NOISE, chain_file, data, recipe

model = pytest.fixture(chain_file)


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

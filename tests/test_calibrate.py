"""Tests of the command that takes statistics, and of the memory that it takes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from graphopt.cli import main
from graphopt.runtime.statistics import Statistics


def test_command(digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The command writes statistics that fit the model as it is loaded from the file, and says what it did."""
    output = tmp_path / "stats.npz"
    arguments = ["calibrate", str(digits / "conv.onnx"), "--data", str(digits / "calib.npz"), "-o", str(output), "--limit", "9"]
    assert main([*arguments, "--json", "--memory", "64MB"]) == 0
    told = json.loads(capsys.readouterr().out)
    found = Statistics.load(output)
    assert told["samples"] == found.samples == 9
    assert told["layers"] == len(found.layers) > 0
    assert told["values"] == len(found.values) > 0
    assert main([*arguments, "--quiet"]) == 0
    assert main([*arguments, "--memory", "some"]) == 1
    assert "some" in capsys.readouterr().err


@pytest.mark.slow
def test_memory_is_flat(root: Path) -> None:
    """Eight times as many samples need no more memory."""
    program = """
import resource, sys
import numpy as np
from tests.measured import all_layers, network
from graphopt.runtime.statistics import Request, collect, quantizable
class Feeds:
    def __len__(self): return int(sys.argv[1])
    def __iter__(self):
        for index in range(len(self)):
            side = 64 + 4 * (index % 16)
            x = np.full((4, 4, side, side), index, np.float32)
            yield {"x": x, "ids": np.arange(4), "flags": np.ones(4, bool)}
model = network()
collect(model, Feeds(), Request(histograms=quantizable(model), layers=all_layers(model)), memory=32 * 2**20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
    peaks = [
        int(subprocess.run([sys.executable, "-c", program, count], check=True, capture_output=True, text=True, cwd=root).stdout)
        for count in ("32", "256")
    ]
    assert peaks[1] < peaks[0] * 1.1

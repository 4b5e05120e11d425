"""Seconds of GPTQ at 4 bits on a perceptron of 8.4 million parameters, from the start of the process to the file."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import results
from onnx import TensorProto, helper, numpy_helper, save
from processes import GRAPHOPT, run
from rich.console import Console

_NARROW, _WIDE, _LAYERS = 512, 2048, 8
_SAMPLES, _ROWS = 16, 256
_GOAL_S = 13.1
"""A tenth of what onnxsim 0.8.1 takes."""


def main() -> None:
    """Measures, prints the table and writes it."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    with tempfile.TemporaryDirectory() as folder:
        source, data = Path(folder) / "model.onnx", Path(folder) / "calibration"
        _write_model(source)
        _write_samples(data)
        command = [*GRAPHOPT, source, "-o", Path(folder) / "result.onnx", "--pass", "weights", "--data", data]
        done = run([*command, "--verify=structure", "--quiet"])
    met = not done.status and done.seconds <= _GOAL_S
    figures = [f"{done.seconds:.1f}", f"{done.peak_mb:.0f}", _GOAL_S, "yes" if met else f"**no** {done.reason if done.status else ''}"]
    head = ["model", "seconds", "peak MB", "goal: seconds", "met"]
    table = results.table(head, [["perceptron, 8 layers 512-2048", *figures]])
    page = ["# GPTQ", "", f"On {results.machine()}; everything counts.", "", *table]
    results.write("gptq", page, {"machine": results.machine(), "seconds": done.seconds, "peak_mb": done.peak_mb, "met": met})
    Console().print("\n".join(page), markup=False)


def _write_model(path: Path) -> None:
    generator = np.random.default_rng(0)
    widths = [(_NARROW, _WIDE) if number % 2 == 0 else (_WIDE, _NARROW) for number in range(_LAYERS)]
    arrays = [generator.standard_normal(shape, np.float32) * np.float32(shape[0] ** -0.5) for shape in widths]
    weights = [numpy_helper.from_array(array, f"w{number}") for number, array in enumerate(arrays)]
    nodes = []
    for number in range(_LAYERS):
        nodes.append(helper.make_node("MatMul", [f"h{number}", f"w{number}"], [f"m{number}"], f"layer_{number}"))
        nodes.append(helper.make_node("Relu", [f"m{number}"], [f"h{number + 1}"], f"relu_{number}"))
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", _NARROW]) for name in ("h0", f"h{_LAYERS}")]
    graph = helper.make_graph(nodes, "perceptron", [ends[0]], [ends[1]], weights)
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def _write_samples(folder: Path) -> None:
    folder.mkdir()
    generator = np.random.default_rng(1)
    for number in range(_SAMPLES):
        np.savez(folder / f"{number:03}.npz", h0=generator.standard_normal((_ROWS, _NARROW), np.float32))


if __name__ == "__main__":
    main()

"""Speed of a step of decoding, one token with a cache, of weights in 4 and 8 bits beside onnxruntime's own tools.

The model has four layers and the head of one with half a billion parameters, and random weights: speed alone is of interest.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import processes
import results
from decoding_model import step_feeds, write_step
from onnx import helper, numpy_helper
from peer_tools import environment
from quantizers import ONNXRUNTIME
from rich.console import Console

_HERE = Path(__file__).resolve().parent
_VOCABULARY = 151_936
_SECONDS = 15.0
_FLOAT = "float"

Row = dict[str, float | str]


def main() -> None:
    """Makes all files, lets them take turns, prints the table and writes it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--folder", type=Path, help="keeps the files there, and takes those that stand there already")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = chosen.folder or Path(temporary)
        folder.mkdir(exist_ok=True)
        files = _files(folder)
        rows = [row for label, feed in step_feeds() for threads in chosen.threads for row in _rows(files, label, feed, threads, folder)]
    head = ["step", "threads", "made by", "ms", "times as fast as float", "MB"]
    body = [[row["step"], row["threads"], row["by"], f"{row['ms']:.2f}", f"{row['ratio']:.2f}", f"{row['mb']:.0f}"] for row in rows]
    page = ["# Decoding", "", f"On {results.machine()}: one new token after 512 cached ones, files taking turns in one process.", ""]
    page += ["MatMulNBits' block and accuracy level stand behind the peers that write it.", "", *results.table(head, body)]
    results.write("decoding", page, {"machine": results.machine(), "rows": rows})
    Console().print("\n".join(page), markup=False)


def _files(folder: Path) -> dict[str, Path]:
    """The model, and what ways of quantizing it made; those that failed are left out."""
    source = folder / "float.onnx"
    if not source.exists():
        _write_model(source)
    python = environment(*ONNXRUNTIME) / "python"
    peer = [python, _HERE / "peer_scripts" / "quantize_decoder.py"]
    ways: dict[str, Sequence[str | Path]] = {
        f"graphopt {name}": [*processes.GRAPHOPT, source, "--quiet", *options, "-o"]
        for name, options in {
            "int4": ["--preset=int4"],
            "int4, block 32": ["--preset=int4", "--block=32"],
            "int8": ["--preset=int8"],
        }.items()
    }
    for block, level in itertools.product(("32", "128"), ("4", "default")):
        ways[f"4 bit, block {block}, level {level}"] = [*peer, "4", block, level, source]
    ways |= {"8 bit, block 128, level 4": [*peer, "8", "128", "4", source], "quantize_dynamic": [*peer, "8", "0", "dynamic", source]}
    files = {_FLOAT: source}
    for name, command in ways.items():
        target = folder / name.replace(", ", "-").replace(" ", "-") / "model.onnx"
        target.parent.mkdir(exist_ok=True)
        if not target.exists():
            done = processes.run([*command, target])
            if done.status:
                Console(stderr=True).print(f"{name}: {done.reason}", markup=False)
        if target.exists():
            files[name] = target
    return files


def _write_model(path: Path) -> None:
    """The layers with a head behind them."""
    write_step(path)
    model = onnx.load(path)
    output = model.graph.output[0]
    width = output.type.tensor_type.shape.dim[2].dim_value
    head = np.random.default_rng(2).standard_normal((width, _VOCABULARY), np.float32) * np.float32(width**-0.5)
    model.graph.initializer.append(numpy_helper.from_array(head, "head"))
    model.graph.node.append(helper.make_node("MatMul", [output.name, "head"], ["logits"], "head"))
    model.graph.output.remove(output)
    model.graph.output.insert(0, helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["batch", "rows", _VOCABULARY]))
    onnx.save(model, path)


def _rows(files: dict[str, Path], label: str, feed: object, threads: int, folder: Path) -> list[Row]:
    """Median milliseconds of each file, and the median of its rounds' ratios to float."""
    request, inputs = folder / "request.json", folder / "feed.npz"
    np.savez(inputs, **feed)  # type: ignore[arg-type]
    paths = {name: str(path) for name, path in files.items()}
    request.write_text(json.dumps({"files": paths, "feed": str(inputs), "threads": threads, "seconds": _SECONDS}), encoding="utf-8")
    done = processes.run([sys.executable, _HERE / "turns.py", request])
    if done.status:
        raise SystemExit(done.reason)
    times: dict[str, list[float]] = json.loads(done.output)
    return [
        {
            "step": label,
            "threads": threads,
            "by": name,
            "ms": statistics.median(found),
            "ratio": statistics.median(base / own for base, own in zip(times[_FLOAT], found, strict=False)),
            "mb": sum(file.stat().st_size for file in _parts(files[name])) / 1e6,
        }
        for name, found in times.items()
    ]


def _parts(path: Path) -> list[Path]:
    """A model's file and the data beside it."""
    return [path] if path.name == "float.onnx" else [file for file in path.parent.iterdir() if file.suffix not in {".json", ".yaml"}]


if __name__ == "__main__":
    main()

"""The page of results of quantization."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import results
from quantizers import LIMIT_MB, LIMIT_S

Findings = Mapping[str, Any]

_FLOAT, _AGAIN = "float", "float again"
_CLOSENESS = {
    "top1_agreement_fp32": "agreement {:.4f}",
    "frame_agreement_fp32": "agreement {:.4f}",
    "mean_cosine_fp32": "cosine {:.4f}",
    "mask_iou_fp32": "IoU of masks {:.4f}",
    "cer_to_fp32": "character errors {:.4f}",
    "sqnr_db_fp32": "{:.1f} dB",
    "kl_millinats": "KL {:.2f} millinats",
}
"""How close a file is to the original: the zoo's names, and how they are shown."""


def page(known: Findings) -> list[str]:
    """The whole page, of all models that are known."""
    models = known["models"]
    return [
        "# Quantized files of graphopt and of other tools",
        "",
        "Written by `benchmarks/quantization.py`. Quality is that of the whole evaluation sets; `drop` is the loss against float, with the",
        "standard error of the paired difference where it is known. Closeness compares the outputs with those of float. The two",
        "architectures have random weights: only closeness counts, on inputs that nothing was calibrated on.",
        "",
        "Speed is float's time / the file's time, the median over rounds in which all files of a model take turns in one process, with",
        "its 95 % interval; `float again` is the same file once more and shows what noise does. Seconds and MB of memory are those of",
        f"the whole process that makes the file, which may take {LIMIT_S:.0f} s and, on Linux, {LIMIT_MB / 1000:.0f} GB of memory.",
        "MB are 10^6 bytes.",
        "",
        "onnxruntime's static quantizer (min-max, percentile, entropy): Q/DQ, per channel, unsigned 8-bit activations, signed 8-bit",
        "weights, 128 samples (64 for percentile and entropy), after its own preparation. Its dynamic quantizer: per",
        "channel, signed 8-bit weights. Its 4-bit quantizer: symmetric, accuracy level 4. NNCF: default options, 128 samples. graphopt:",
        "the preset, and all samples of the calibration set.",
        "",
        f"Machine: {known['machine']}",
        "",
        "## graphopt beside the fastest file of other tools that loads",
        "",
        *_summary(models),
        "",
        *(line for name in sorted(models) for line in (*section(name, models[name]), "")),
        *_calibration(known.get("calibration", ())),
    ]


def section(name: str, findings: Findings) -> list[str]:
    """A model's table, one row a tool."""
    settings = list(findings.get("speed", {}).get("settings", {}))
    metric = next((found["metric"] for found in findings.get("quality", {}).values() if "metric" in found), "quality")
    head = ["tool", metric, "drop", "closeness", "MB", "of float", *settings, "s", "MB of memory"]
    files = _files(findings)
    rows = [_cells(tool, findings, settings) for tool in (*files, _AGAIN)]
    notes = [f"- {tool}: {remark}" for tool, made in files.items() if (remark := _remark(tool, made, findings))]
    return [f"## {name}", "", *results.table(head, rows), *([""] if notes else []), *notes]


def _files(findings: Findings) -> Findings:
    """What each tool made, the other tools first."""
    return {**findings.get("peers", {}), **findings.get("ours", {})}


def _remark(tool: str, made: Findings, findings: Findings) -> str:
    failure = made.get("failure") or findings.get("quality", {}).get(tool, {}).get("failure", "")
    return "; ".join(part for part in (made.get("note", ""), failure) if part)


def _cells(tool: str, findings: Findings, settings: Sequence[str]) -> list[object]:
    made, quality = _files(findings).get(tool, {}), findings.get("quality", {}).get(tool, {})
    speeds = [_speed(findings, setting, tool, _FLOAT) for setting in settings]
    if made.get("failure"):
        return [tool, "no file", *["-"] * (4 + len(settings)), _number(made["seconds"]), _number(made["peak_mb"])]
    if quality.get("failure"):
        return [tool, "does not run", "-", "-", *_size(made, findings), *speeds, _number(made["seconds"]), _number(made["peak_mb"])]
    return [
        tool,
        f"{quality['value']:.4f}" if "value" in quality else "-",
        _drop(quality, findings.get("quality", {}).get(_FLOAT, {})),
        ", ".join(_closeness(quality)) or "-",
        *_size(made, findings),
        *speeds,
        _number(made.get("seconds")),
        _number(made.get("peak_mb")),
    ]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:g}"


def _size(made: Findings, findings: Findings) -> list[str]:
    if "bytes" not in made:
        return ["-", "-"]
    return [f"{made['bytes'] / 1e6:.2f}", f"{made['bytes'] / _files(findings)[_FLOAT]['bytes']:.3f}"]


def _drop(quality: Findings, original: Findings) -> str:
    if "value" not in quality or "value" not in original or quality is original:
        return "-"
    if "drop_error" in quality:
        return f"{quality['drop']:.4f} ± {quality['drop_error']:.4f}"
    lower_is_better = quality["metric"] == "perplexity"
    change = quality["value"] - original["value"]
    return f"{change / original['value']:+.2%}" if lower_is_better else f"{-change:.4f}"


def _closeness(quality: Findings) -> Iterator[str]:
    yield from (shown.format(quality[key]) for key, shown in _CLOSENESS.items() if key in quality)
    yield from (f"{output} {ratio:.1f} dB" for output, ratio in quality.get("sqnr_db", {}).items())


def _speed(findings: Findings, setting: str, tool: str, against: str) -> str:
    """How many times as fast; nothing where the file is another one by now."""
    times, known = findings["speed"]["settings"][setting].get(tool, {}), findings["speed"]["digests"]
    if against not in times.get("times_as_fast_as", {}) or known.get(tool, "") != _files(findings).get(tool, {}).get("digest", ""):
        return "-"
    ratio, low, high = times["times_as_fast_as"][against]
    return f"{ratio:.2f} [{low:.2f}, {high:.2f}]"


def _summary(models: Findings) -> list[str]:
    """One row a model and setting: times as fast as float and as the fastest other file."""
    rows = [row for name in sorted(models) for bits in (8, 4) for row in _races(name, models[name], bits)]
    head = [
        "model",
        "file",
        "threads and batch",
        "times as fast as float",
        "fastest other file",
        "it, against float",
        "times as fast as it",
    ]
    return results.table(head, rows)


def _races(name: str, findings: Findings, bits: int) -> Iterator[list[object]]:
    ours = f"graphopt int{bits}"
    for setting, times in findings.get("speed", {}).get("settings", {}).items():
        others = [tool for tool in times if not tool.startswith(("float", "graphopt")) and ("4 bit" in tool) == (bits == 4)]
        if not others:
            continue
        fastest = min(others, key=lambda tool: float(times[tool]["ms"]))
        against_float = [_speed(findings, setting, tool, _FLOAT) for tool in (ours, fastest)]
        yield [name, ours, setting, against_float[0], fastest, against_float[1], _speed(findings, setting, ours, fastest)]


def _calibration(rows: Sequence[Findings]) -> list[str]:
    if not rows:
        return []
    head = ["tool", "ranges", "images", "widths", "s", "MB of memory", "failure"]
    keys = ("tool", "ranges", "images", "widths", "seconds", "peak_mb", "failure")
    cells = ([row[key] or "-" for key in keys] for row in rows)
    return [
        "## Collecting ranges: ocr_rec",
        "",
        "Text lines one at a time, as wide as they are or padded to the same width. graphopt collects histograms, from which ranges of",
        "every kind are found later, and all other statistics of its passes in the same pass.",
        "",
        *results.table(head, cells),
    ]

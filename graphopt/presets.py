"""Presets: named ways to make a recipe."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from graphopt.errors import RecipeError
from graphopt.recipe import Recipe
from graphopt.spec import PassSpec


@dataclass(frozen=True)
class Preset:
    """A named way to make a recipe.

    Attributes:
        summary: one line for help texts.
        flags: the flags that it exposes on the command line, with their help.
        make: makes the recipe; its keyword arguments are the flags.
    """

    summary: str
    make: Callable[..., Recipe]
    flags: Mapping[str, str]

    def recipe(self, **flags: Any) -> Recipe:
        """Makes the recipe.

        Raises:
            RecipeError: a flag is not one of the preset's.
        """
        unknown = sorted(set(flags) - set(self.flags))
        if unknown:
            known = ", ".join(f"--{flag}" for flag in self.flags) or "none"
            raise RecipeError(f"unknown flag --{unknown[0]}: this preset's flags are: {known}")
        return self.make(**flags)


def _exact() -> Recipe:
    names = ("cleanup", "shapes", "simplify", "activations", "normalize", "affine", "attention", "algebra", "duplicates")
    return Recipe(passes=[PassSpec(name=name) for name in names])


def _int4(block: int = 128, min_sqnr: float = 10.0) -> Recipe:
    return _after_exact("embeddings", {"weights": {"block": block}}, "storage", min_sqnr=min_sqnr)


def _int8(min_sqnr: float = 10.0) -> Recipe:
    passes = ("retarget", "equalize", "smooth", "embeddings", "static", "dynamic", "recurrent", "storage", "bias")
    return _after_exact(*passes, min_sqnr=min_sqnr)


def _half(min_sqnr: float = 40.0) -> Recipe:
    return _after_exact("half", "half-storage", min_sqnr=min_sqnr)


def _prune(min_sqnr: float = 0.0, **options: Any) -> Recipe:
    budget = {} if {"macs", "parameters", "latency"} & set(options) else {"macs": 0.7}
    return _after_exact({"prune": budget | options}, min_sqnr=min_sqnr).changed(insist=True)


def _cluster(min_sqnr: float = 25.0, **options: Any) -> Recipe:
    return _after_exact({"cluster": options}, min_sqnr=min_sqnr)


def _deep_compression(ratio: float = 15.0, min_sqnr: float = 0.0) -> Recipe:
    return _after_exact({"cluster": {"ratio": ratio}}, min_sqnr=min_sqnr).changed(insist=True)


def _low_rank(min_sqnr: float = 0.0, **options: Any) -> Recipe:
    budget = {} if {"macs", "parameters", "latency", "loss"} & set(options) else {"macs": 0.7}
    return _after_exact({"factorize": budget | options}, min_sqnr=min_sqnr).changed(insist=True)


def _after_exact(*passes: str | dict[str, Any], min_sqnr: float) -> Recipe:
    return _exact().changed(passes=[*_exact().passes, *passes], min_sqnr=min_sqnr)


_MIN_SQNR = "dB that every output must keep on every sample; layers that lose more stay in float"

PRESETS: dict[str, Preset] = {
    "exact": Preset("the same outputs with fewer, faster nodes; needs no data", _exact, {}),
    "half": Preset("16-bit floats: computed with on cuda, stored on cpu", _half, {"min_sqnr": f"{_MIN_SQNR} (default 40)"}),
    "int4": Preset(
        "weights of linear layers in 4 bits, tables and the rest in 8, approximate; better with data",
        _int4,
        {"block": "inputs that share a scale: 16, 32, 64, 128 or 256 (default 128)", "min_sqnr": f"{_MIN_SQNR} (default 10)"},
    ),
    "int8": Preset(
        "8-bit integers: convolutions and linear layers, recurrent ones, tables; approximate; wants --data for convolutions",
        _int8,
        {"min_sqnr": f"{_MIN_SQNR} (default 10)"},
    ),
    "cluster": Preset(
        "weights as codes of a few values, an eighth of the bytes at the same speed; approximate; better with data",
        _cluster,
        {
            "centroids": "values of each weight, 2 to 256 (default 16, and 256 where that costs the outputs too much)",
            "bits": "that a weight is to take once the file is packed, instead; about 3 cost what 16 values do",
            "min_sqnr": f"{_MIN_SQNR}, unless 256 values are enough (default 25)",
        },
    ),
    "deep-compression": Preset(
        "weights as codes that take a given part of the bytes once packed (graphopt pack); approximate; better with data",
        _deep_compression,
        {
            "ratio": "how many times smaller the packed model is to be than the float file (default 15)",
            "min_sqnr": f"{_MIN_SQNR} (default 0: the ratio decides)",
        },
    ),
    "low-rank": Preset(
        "two layers of low rank in the place of one, within a budget of work, weights, time or loss; approximate; wants --data",
        _low_rank,
        {
            "macs": "share of the multiply-accumulates that may stay (default 0.7 where no other budget is given)",
            "parameters": "share of the weights that may stay, instead",
            "latency": "share of the time that may stay, measured on this machine, instead",
            "loss": "what the outputs may lose, instead: nats a row of logits or probabilities, noise over signal of others",
            "min_sqnr": f"{_MIN_SQNR} (default 0: the budget decides)",
        },
    ),
    "prune": Preset(
        "narrower layers within a budget of work, weights or time, refitted on samples; approximate; wants --data",
        _prune,
        {
            "macs": "share of the multiply-accumulates that may stay (default 0.7 where no other budget is given)",
            "parameters": "share of the weights that may stay, instead",
            "latency": "share of the time that may stay, measured on this machine, instead",
            "importance": "how channels are chosen: surgeon, activation or magnitude (default surgeon)",
            "multiple": "widths are multiples of it (default 16 with --latency, else any; 4 for convolutions)",
            "residual": "true: residual streams may become narrower too (default false)",
            "min_sqnr": f"{_MIN_SQNR} (default 0: the budget decides)",
        },
    ),
}


def preset(name: str, **flags: Any) -> Recipe:
    """The recipe of a preset.

    Raises:
        RecipeError: no such preset or flag.
    """
    if name not in PRESETS:
        raise RecipeError(f"no preset is called {name!r}; there are: {', '.join(PRESETS)}")
    return PRESETS[name].recipe(**flags)

"""Samples: inputs to calibrate on and to measure with, from files, from Python or made up."""

from graphopt.samples.samples import Feed, Samples
from graphopt.samples.sizes import plausible_shapes

__all__ = ["Feed", "Samples", "plausible_shapes"]

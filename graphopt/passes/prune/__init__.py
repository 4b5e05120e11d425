"""Structured pruning: narrower layers, chosen and refitted from samples."""

from graphopt.passes.prune.channels import Prune

__all__ = ["Prune"]

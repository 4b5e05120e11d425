"""Weight clustering: weights as codes of a few values."""

from graphopt.passes.cluster.clustering import Cluster

__all__ = ["Cluster"]

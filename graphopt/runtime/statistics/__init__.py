"""Statistics of values and layers, gathered from samples in one streaming pass."""

from graphopt.runtime.statistics.collection import MEMORY, collect
from graphopt.runtime.statistics.collector import Collector
from graphopt.runtime.statistics.histogram import Histogram
from graphopt.runtime.statistics.layers import LayerStatistics
from graphopt.runtime.statistics.model import Statistics, states_of
from graphopt.runtime.statistics.request import Request, quantizable
from graphopt.runtime.statistics.values import Channels, ValueStatistics

__all__ = [
    "MEMORY",
    "Channels",
    "Collector",
    "Histogram",
    "LayerStatistics",
    "Request",
    "Statistics",
    "ValueStatistics",
    "collect",
    "quantizable",
    "states_of",
]

"""Units: which channels of a model only go together, found by one walk over all operators.

Every axis of every value carries one unit per index; operators index and tie those units, and coupled channels are the connected
components. What an operator without a rule touches stays, so that the analysis is sound for any graph.
"""

from graphopt.graph.units.blocks import Block, Couplings, Pin, Site, couplings_of
from graphopt.graph.units.removal import remove

__all__ = ["Block", "Couplings", "Pin", "Site", "couplings_of", "remove"]

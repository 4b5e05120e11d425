"""What differs between two models: aligned by data flow and content, whatever their nodes and values are called."""

from __future__ import annotations

from graphopt.graph.difference.alignment import Alignment, align
from graphopt.graph.difference.changes import Change, changes_of
from graphopt.graph.difference.flow import Flow

__all__ = ["Alignment", "Change", "Flow", "align", "changes_of"]

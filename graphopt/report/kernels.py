"""Which kernels run a model, beside what its rewrites planned."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from graphopt import files
from graphopt.result import ledger_beside
from graphopt.runtime.kernels import executed_kernels
from graphopt.runtime.session import SessionOptions


@dataclass(frozen=True)
class KernelReport:
    """The kernels of a model, read back from the runtime's own optimized graph.

    Attributes:
        name: the file's name.
        executed: how many nodes run as each kernel (``domain::operator``, the standard domain left out), most first.
        planned: how many of each the ledger beside the file planned; empty where there is none.
    """

    name: str
    executed: Mapping[str, int]
    planned: Mapping[str, int]

    def to_json(self) -> dict[str, Any]:
        """Plain data; ``version`` counts changes of this form."""
        return {"version": 1, "name": self.name, "executed": dict(self.executed), "planned": dict(self.planned)}

    def __rich__(self) -> Group:
        table = Table("kernel", "nodes", "planned", box=None, header_style="bold", pad_edge=False)
        for column in table.columns[1:]:
            column.justify = "right"
        for kernel, count in self.executed.items():
            planned = self.planned.get(kernel)
            table.add_row(kernel, str(count), "" if planned is None else str(planned))
        missing = [
            Text(f"{self.executed.get(kernel, 0)} of {planned} planned {kernel} kernels run", style="yellow")
            for kernel, planned in self.planned.items()
            if self.executed.get(kernel, 0) < planned
        ]
        total = Text(f"{sum(self.executed.values())} nodes execute with the runtime's own optimizations on")
        return Group(table, *missing, total)


def kernels_of(model: Path, options: SessionOptions) -> KernelReport:
    """Loads a model and reads back what the runtime made of it.

    Args:
        model: a file, or a folder that holds one.
        options: how the session is made.

    Raises:
        SessionError: the runtime does not load the model.
    """
    path = files.model_file(model)
    nodes = executed_kernels(path, options).nodes
    executed = Counter(f"{kernel.domain}::{kernel.op_type}" if kernel.domain else kernel.op_type for kernel in nodes)
    return KernelReport(path.name, dict(executed.most_common()), _planned(ledger_beside(path)))


def _planned(ledger: Path) -> dict[str, int]:
    if not ledger.is_file():
        return {}
    rewrites = json.loads(ledger.read_text(encoding="utf-8")).get("rewrites", [])
    return dict(Counter(kernel.removeprefix("::") for rewrite in rewrites for kernel in rewrite.get("kernels", ())))

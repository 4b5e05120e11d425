"""Why a node is there, what became of one, and what nearly happened to it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir
from rich.console import Group
from rich.text import Text

from graphopt import files
from graphopt.errors import GraphoptError, LedgerError
from graphopt.graph.edits import all_nodes
from graphopt.graph.view import operator_of
from graphopt.ledger import Drop, Miss, Rewrite
from graphopt.report.catalogue import summary_of
from graphopt.report.lineage import Lineage, titled
from graphopt.report.opening import open_model

_MOST_NAMES = 12


@dataclass(frozen=True)
class Why:
    """The story of one node.

    Attributes:
        name: as it was asked for.
        subject: what that is, in words.
        steps: the rewrites that made it or changed it, and those that it went into, first to last.
        origins: nodes of the original that it comes from.
        became: nodes of the result that stand for it; none where it was folded away.
        refused: rewrites here that were taken back, or that measurements spoke against.
        misses: rules that nearly fired here, with the condition that failed.
        source: which ledger says so.
    """

    name: str
    subject: str
    steps: Sequence[Rewrite]
    origins: Sequence[str]
    became: Sequence[str]
    refused: Sequence[Drop]
    misses: Sequence[Miss]
    source: str

    def to_json(self) -> dict[str, Any]:
        """Plain data; ``version`` counts changes of this form."""
        return {
            "version": 1,
            "name": self.name,
            "subject": self.subject,
            "steps": [_step_json(step) for step in self.steps],
            "origins": list(self.origins),
            "became": list(self.became),
            "refused": [{"rewrite": str(drop.key), "reason": drop.reason} for drop in self.refused],
            "near_misses": [{"rule": str(miss.key), "reason": miss.reason} for miss in self.misses],
            "source": self.source,
        }

    def __rich__(self) -> Group:
        lines = [Text(f"{self.name}: {self.subject}", style="bold")]
        if not self.steps:
            lines.append(Text("as in the original: no rewrite made it, changed it or took it"))
        for number, step in enumerate(self.steps, 1):
            lines.append(Text.assemble(f"{number}. ", (titled(step.key), "cyan"), f"  {_about(step)}"))
            lines.extend(Text(f"   {what} {_listed(names)}") for what, names in (("removed", step.removed), ("made", step.added)) if names)
            if step.merged:
                lines.append(Text(f"   values: {_listed([f'{old} is now {new}' for old, new in step.merged])}"))
        if self.steps and self.origins:
            lines.append(Text(f"comes from {_listed(self.origins)}"))
        if self.steps:
            lines.append(Text(f"became {_listed(self.became)}" if self.became else "nothing of it is left: folded away, or nobody used it"))
        lines.extend(Text(f"taken back: {drop.key}: {drop.reason or 'reasons stand beside the file'}", "yellow") for drop in self.refused)
        lines.extend(Text(f"nearly: {titled(miss.key)} at {miss.key.anchor}: {miss.reason}", "yellow") for miss in self.misses)
        return Group(*lines, Text(f"by {self.source}", style="dim"))


def why(path: str | Path, name: str) -> Why:
    """Tells a node's story.

    Args:
        path: a model that graphopt wrote, with its ledger beside it or inside.
        name: a node or value of it, or a node or merged value of the original; a node without a name goes by its first output.

    Raises:
        ModelFileError: the file cannot be read.
        LedgerError: there is no ledger, or neither it nor the model knows the name.
    """
    file = files.model_file(Path(path))
    model = open_model(file)
    lineage = Lineage.of(file, model)
    nodes = {node.name or "": node for node in all_nodes(model)}
    node, subject = _found(name, model, nodes, lineage)
    steps, origins = lineage.origins(node)
    later, became = lineage.fate(node)
    steps += [step for step in (*later, *lineage.merges(name)) if step not in steps]
    concerned = {node, *origins, *became, *(step.key.anchor for step in steps)} - {""}
    return Why(
        name,
        subject,
        steps,
        origins,
        [each for each in became if each in nodes],
        [drop for drop in lineage.refused if drop.key.anchor in concerned],
        [miss for miss in lineage.misses if miss.key.anchor in concerned],
        lineage.source,
    )


def _found(name: str, model: ir.Model, nodes: Mapping[str, ir.Node], lineage: Lineage) -> tuple[str, str]:
    """The node that a name stands for, and what it is in words."""
    if name in nodes:
        return name, f"{operator_of(nodes[name])} of the model"
    makers = {value.name: (key, node) for key, node in nodes.items() for value in node.outputs if value.name}
    gone = {each for rewrite in lineage.rewrites for each in rewrite.removed}
    if name in gone:
        return name, "a node that is gone"
    current = lineage.merged_into(name)
    if current in makers:
        key, node = makers[current]
        return key, f"{'a value' if current == name else f'a value of the original, now {current},'} of {operator_of(node)} {key}"
    unnamed = next((each for each in gone if each.partition(":")[2] == name), None)
    if unnamed is not None:
        return unnamed, f"made by {unnamed}, a node that is gone"
    read = {value.name: value for value in (*model.graph.inputs, *model.graph.initializers.values())}
    if current in read:
        return _read(name, read[current])
    if lineage.merges(name):
        return name, "a value that is gone"
    known = [*nodes, *(key for key in makers if key), *(key for key in read if key), *lineage.names]
    close = difflib.get_close_matches(name, dict.fromkeys(known), n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise LedgerError(f"neither the model nor its ledger knows {name!r}{hint}")


def _read(name: str, value: ir.Value) -> tuple[str, str]:
    """A constant is told by its first reader, an input of the model by itself."""
    readers = [f"{operator_of(node)} {node.name}" for node in value.consumers()]
    merged = "" if value.name == name else f"a value of the original, now {value.name}, "
    is_input = value.is_graph_input()
    told = f"{merged}{'an input' if is_input else 'a constant'} of the model{f', read by {_listed(readers)}' if readers else ''}"
    return name if is_input or merged or not readers else value.consumers()[0].name or "", told


def _about(step: Rewrite) -> str:
    """The reason, else what the pass or rule says of itself; the error that it expects."""
    try:
        said = step.reason or summary_of(step.key.pass_name, step.key.rule)
    except GraphoptError:  # a pass of somebody else's, that is not installed here
        said = ""
    return said if step.predicted_error is None else f"{said} (expected error {step.predicted_error:.2g})"


def _listed(names: Iterable[str]) -> str:
    shown = list(names)
    return ", ".join(shown[:_MOST_NAMES]) + (f", {len(shown) - _MOST_NAMES} more" if len(shown) > _MOST_NAMES else "")


def _step_json(step: Rewrite) -> dict[str, Any]:
    return {
        "pass": step.key.pass_name,
        "rule": step.key.rule,
        "anchor": step.key.anchor,
        "about": _about(step),
        "removed": list(step.removed),
        "added": list(step.added),
        "merged": dict(step.merged),
    }

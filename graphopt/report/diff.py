"""Two models aligned: which nodes came, went or were replaced, what changed in the others, and where values part."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Group
from rich.table import Table
from rich.text import Text

from graphopt import files
from graphopt.graph.difference import Alignment, Change, Flow, align, changes_of
from graphopt.graph.view import operator_of
from graphopt.report.opening import Data, open_model, open_samples
from graphopt.runtime.divergence import SCALED_DB, divergence
from graphopt.runtime.fidelity import Fidelity
from graphopt.runtime.session import Feed, SessionOptions

_MOST_CHANGES = 40
_MOST_VALUES = 20
_MOST_NAMES = 3
_ROUNDING = 1e-5
_FACTOR_OF_ONE = 1e-3
"""Factors this close to 1 are errors, not scales."""


@dataclass(frozen=True)
class Parting:
    """How far a value is from its counterpart.

    Attributes:
        a: its name in the first model.
        b: in the second.
        maker: operator and name of the node of the first model that makes it.
        fidelity: over all samples.
        factor: what the first has to be multiplied by to become the second, within 60 dB; None where no number does, and for outputs
            of the models, which nothing can scale back.
        channels_db: signal to noise in dB once each channel of the first is multiplied by a number of its own; None where that explains
            little, and for outputs.
    """

    a: str
    b: str
    maker: tuple[str, str]
    fidelity: Fidelity
    factor: float | None = None
    channels_db: float | None = None

    @property
    def decibels(self) -> float:
        """Signal to noise, without what factors of channels explain."""
        return self.fidelity.sqnr_db if self.channels_db is None else self.channels_db

    @property
    def parts(self) -> bool:
        """Whether it differs by more than rounding, and not only by factors that the model takes back elsewhere."""
        return not self.fidelity.within(_ROUNDING) and not self.is_scaled

    @property
    def is_scaled(self) -> bool:
        """Whether it, or each of its channels, is a multiple of its counterpart, other than once."""
        by_channel = self.channels_db is not None and self.channels_db > SCALED_DB
        return by_channel or (self.factor is not None and abs(self.factor - 1) > _FACTOR_OF_ONE)

    @property
    def told(self) -> str:
        """The decibels in words; nothing where the two cannot be compared."""
        return "" if self.fidelity.problem else f"{self.decibels:.1f}{'' if self.channels_db is None else ', channels scaled'}"


class Pair(NamedTuple):
    """Two nodes that correspond: operator and name of the first, operator and name of the second."""

    a: tuple[str, str]
    b: tuple[str, str]


@dataclass(frozen=True)
class Difference:
    """What differs between two models.

    Attributes:
        a, b: their files.
        nodes: how many each has, constants left out.
        pairs: nodes that correspond, by the place of the first among its model's nodes.
        changes: in the order of the first model's data flow.
        values: those that correspond, in the same order; None where no samples were given.
    """

    a: Path
    b: Path
    nodes: tuple[int, int]
    pairs: Mapping[int, Pair]
    changes: Sequence[Change]
    values: Sequence[Parting] | None = None

    @property
    def aligned(self) -> int:
        """How many nodes of both correspond."""
        return len(self.pairs)

    @property
    def identical(self) -> bool:
        """Whether nothing differs but names and order."""
        return not self.changes

    def to_json(self) -> dict[str, Any]:
        """Plain data; ``version`` counts changes of this form. A figure that is not finite is None."""
        content: dict[str, Any] = {
            "version": 1,
            "a": {"path": str(self.a), "nodes": self.nodes[0]},
            "b": {"path": str(self.b), "nodes": self.nodes[1]},
            "aligned": self.aligned,
            "changes": [change.to_json() for change in self.changes],
        }
        return content if self.values is None else content | {"values": [_value_json(value) for value in self.values]}

    def __rich__(self) -> Group:
        parts: list[Any] = [Text(f"{self.nodes[0]} nodes in {self.a.name}, {self.nodes[1]} in {self.b.name}, {self.aligned} correspond")]
        if self.identical:
            parts.append(Text("nothing differs but names and order, if those"))
        else:
            kinds = Counter(change.kind for change in self.changes)
            parts += [Text(", ".join(f"{count} {_COUNTED[kind]}" for kind, count in kinds.items())), Text(), self._changes()]
        return Group(*parts, *(() if self.values is None else (Text(), *self._partings())))

    def _changes(self) -> Table:
        table = Table("change", "in the first", "in the second", "what", box=None, header_style="bold", pad_edge=False)
        for change in self.changes[:_MOST_CHANGES]:
            relative = "" if change.relative is None else f" ({change.relative:.2%} of its norm)"
            what = ": ".join(part for part in (change.what, f"{change.detail}{relative}") if part)
            table.add_row(
                change.kind, *(Text(_nodes(*side)) for side in zip(change.operators, (change.a, change.b), strict=True)), Text(what)
            )
        if len(self.changes) > _MOST_CHANGES:
            table.add_row("…", f"{len(self.changes) - _MOST_CHANGES} more; --json has all", "", "")
        return table

    def _partings(self) -> list[Any]:
        parting = [value for value in self.values or () if value.parts]
        total = len(self.values or ())
        scales = Counter(
            "a number for each channel" if value.factor is None else f"{value.factor:.4g}" for value in self.values or () if value.is_scaled
        )
        scaled = [Text(f"{count} values are the first model's times {factor}") for factor, count in scales.items()]
        if not parting:
            return [Text(f"all {total} values that correspond agree up to rounding{', or are scaled' if scaled else ''}"), *scaled]
        table = Table("value", "in the second", "made by", "relative error", "SQNR, dB", box=None, header_style="bold", pad_edge=False)
        for value in parting[:_MOST_VALUES]:
            error = value.fidelity.problem or f"{value.fidelity.relative:.1e}"
            table.add_row(Text(value.a), Text(value.b), Text(" ".join(value.maker)), Text(error), value.told)
        if len(parting) > _MOST_VALUES:
            table.add_row("…", f"{len(parting) - _MOST_VALUES} more; --json has all", "", "", "")
        return [Text(f"{len(parting)} of {total} values that correspond differ by more than rounding, first"), table, *scaled]


_COUNTED: Mapping[str, str] = {
    "removed": "removals",
    "added": "additions",
    "replaced": "replacements",
    "attribute": "attributes changed",
    "weight": "weights changed",
    "input": "inputs moved",
    "type": "types or shapes changed",
    "signature": "changes of the signature",
}


def diff(
    a: str | Path,
    b: str | Path,
    data: Data = None,
    *,
    options: SessionOptions | None = None,
) -> Difference:
    """Aligns two models by data flow and content, not by names, and lists what differs.

    Args:
        a: the first model: a file, or a folder with one model.
        b: the second.
        data: samples for both, to compare the values that correspond; None not to run anything.
        options: how to run.

    Raises:
        ModelFileError: a file cannot be read.
        SamplesError: the samples do not fit the first model.
        SessionError: a model does not load, or does not run on the samples.
    """
    paths = files.model_file(Path(a)), files.model_file(Path(b))
    models = open_model(paths[0]), open_model(paths[1])
    first = Flow(models[0])
    alignment = align(first, Flow(models[1], like=first))
    values = None
    if data is not None:
        values = partings_of(alignment, open_samples(paths[0], models[0], data, options), options)
    nodes = len(alignment.a.nodes), len(alignment.b.nodes)
    pairs = {
        place: Pair((operator_of(node), node.name or ""), (operator_of(twin), twin.name or ""))
        for place, node in enumerate(first.nodes)
        if (twin := alignment.nodes.get(node)) is not None
    }
    return Difference(paths[0], paths[1], nodes, pairs, changes_of(alignment), values)


def partings_of(
    alignment: Alignment,
    samples: Iterable[Feed],
    options: SessionOptions | None = None,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
) -> list[Parting]:
    """How far values that correspond are apart, in the order of the first model's nodes.

    Values in subgraphs are left out, which nobody can read from outside.

    Args:
        alignment: of the models.
        samples: for both; gone through several times.
        options: how to run.
        shapes: of the first model's values with the first sample, where they are known.

    Raises:
        SessionError: a model does not load, or does not run on the samples.
    """
    order = {value: number for number, value in enumerate(value for node in alignment.a.model.graph for value in node.outputs)}
    inner = {value for node in alignment.b.model.graph for value in node.outputs}
    pairs = sorted(((x, y) for x, y in alignment.values.items() if x in order and y in inner), key=lambda pair: order[pair[0]])
    measured = divergence(alignment.a.model, alignment.b.model, [(x.name or "", y.name or "") for x, y in pairs], samples, options, shapes)
    found = []
    for value, its in pairs:
        maker = value.producer()
        if value.name in measured:
            made_by = (operator_of(maker), maker.name or "") if maker is not None else ("", "")
            deviation = measured[value.name or ""]
            scales = (None, None) if value in alignment.a.sinks else (deviation.factor, deviation.channels_db)
            found.append(Parting(value.name or "", its.name or "", made_by, deviation.fidelity, *scales))
    return found


def _nodes(operators: Sequence[str], names: Sequence[str]) -> str:
    """``Conv conv1``, or for several nodes their operators in number and the first names."""
    if len(names) == 1:
        return f"{operators[0]} {names[0]}"
    counted = ", ".join(f"{name} x{count}" if count > 1 else name for name, count in Counter(operators).items())
    more = f", {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return f"{counted} ({', '.join(names[:_MOST_NAMES])}{more})" if names else ""


def _value_json(value: Parting) -> dict[str, Any]:
    figures = {"relative": value.fidelity.relative, "max_abs": value.fidelity.max_abs, "sqnr_db": value.fidelity.sqnr_db}
    finite = {name: figure if math.isfinite(figure) else None for name, figure in figures.items()}
    scales = {"factor": value.factor, "channels_db": value.channels_db}
    return {"a": value.a, "b": value.b, "maker": " ".join(value.maker), "problem": value.fidelity.problem} | scales | finite

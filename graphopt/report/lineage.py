"""Lineages: where a node comes from, and what became of one, by the ledger of a run."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import onnx_ir as ir

from graphopt.errors import LedgerError
from graphopt.ledger import METADATA_KEY, Drop, Key, Miss, Rewrite, unpack
from graphopt.result import ledger_beside


class _Places(NamedTuple):
    """The numbers of the rewrites that a node came out of, and of those that it went into, by its name."""

    made: dict[str, list[int]]
    taken: dict[str, list[int]]


@dataclass(frozen=True)
class Lineage:
    """The rewrites of a run, in order, and what did not happen.

    Attributes:
        rewrites: those that were kept.
        refused: those that were taken back, or that measurements spoke against.
        misses: rules that nearly fired.
        source: where this was read.
    """

    rewrites: Sequence[Rewrite]
    refused: Sequence[Drop]
    misses: Sequence[Miss]
    source: str

    @classmethod
    def of(cls, path: Path, model: ir.Model) -> Lineage:
        """Reads the ledger beside a model's file, else the one inside it, which knows less: no reasons, no near misses.

        Raises:
            LedgerError: there is none, or it is too short to tell.
        """
        beside = ledger_beside(path)
        try:
            if beside.is_file():
                return cls._of_json(json.loads(beside.read_text(encoding="utf-8")), beside.name)
            text = model.metadata_props.get(METADATA_KEY)
            if text is None:
                raise LedgerError(
                    f"{path}: no ledger beside it ({beside.name}) and none inside: graphopt did not write it, or changed nothing"
                )
            return cls._embedded(unpack(text), path)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise LedgerError(f"{path}: its ledger cannot be read: {error}") from error

    @classmethod
    def _of_json(cls, content: dict[str, Any], source: str) -> Lineage:
        rewrites = [
            Rewrite(
                Key(entry["pass"], entry["rule"], entry["anchor"]),
                tuple(entry["removed"]),
                tuple(entry["added"]),
                entry.get("reason", ""),
                tuple(entry.get("kernels", ())),
                tuple(entry.get("merged", {}).items()),
                entry.get("predicted_error"),
            )
            for entry in content["rewrites"]
        ]
        refused = [Drop(Key(*entry[:3]), entry[3]) for entry in (*content["dropped"], *content["declined"])]
        return cls(rewrites, refused, [Miss(Key(*entry[:3]), entry[3]) for entry in content["near_misses"]], source)

    @classmethod
    def _embedded(cls, content: dict[str, Any], path: Path) -> Lineage:
        if "rewrites" not in content:
            raise LedgerError(f"{path}: the ledger inside it holds counts alone, for lack of room; the one written beside it has all")
        rewrites = [
            Rewrite(Key(*entry[:3]), tuple(entry[3]), tuple(entry[4]), merged=tuple(entry[5].items()) if len(entry) > 5 else ())
            for entry in content["rewrites"]
        ]
        return cls(rewrites, [Drop(Key(*entry), "") for entry in content.get("dropped", ())], (), f"the metadata of {path.name}")

    @property
    def names(self) -> Iterator[str]:
        """All nodes and values that the ledger knows."""
        for rewrite in self.rewrites:
            yield from (*rewrite.removed, *rewrite.added)
            yield from (name for pair in rewrite.merged for name in pair)
            if rewrite.key.anchor:
                yield rewrite.key.anchor

    def origins(self, node: str) -> tuple[list[Rewrite], list[str]]:
        """What led to a node as it is in the end, or as it was before it went.

        Returns:
            The rewrites, first to last, and the nodes of the original that they started from.
        """
        chain: set[int] = set()
        found: set[str] = set()
        pending, seen = [(node, self._last_life(node).stop)], set()
        while pending:
            name, limit = pending.pop()
            made = max((number for number in self._places.made.get(name, ()) if number < limit), default=-1)
            if (name, made) in seen:
                continue
            seen.add((name, made))
            if made < 0:
                found.add(name)
            else:
                chain.add(made)
                pending.extend((each, made) for each in _before(self.rewrites[made]))
        return [self.rewrites[number] for number in sorted(chain)], sorted(found)

    def fate(self, node: str) -> tuple[list[Rewrite], list[str]]:
        """What became of a node, be it of the original or one that was made on the way.

        Returns:
            The rewrites, first to last, and the nodes that stand for it now; none where it was folded away.
        """
        chain: set[int] = set()
        found: set[str] = set()
        pending, seen = [(node, self._last_life(node).start)], set()
        while pending:
            name, start = pending.pop()
            taken = next((number for number in self._places.taken.get(name, ()) if number >= start), len(self.rewrites))
            if (name, taken) in seen:
                continue
            seen.add((name, taken))
            if taken == len(self.rewrites):
                found.add(name)
            else:
                chain.add(taken)
                pending.extend((each, taken + 1) for each in _after(self.rewrites[taken]))
        return [self.rewrites[number] for number in sorted(chain)], sorted(found)

    def _last_life(self, name: str) -> range:
        """The rewrites during which the last node of this name was there."""
        start = max((number + 1 for number in self._places.made.get(name, ()) if name in self.rewrites[number].added), default=0)
        ends = (number for number in self._places.taken.get(name, ()) if number >= start and name in self.rewrites[number].removed)
        return range(start, next(ends, len(self.rewrites)))

    @cached_property
    def _places(self) -> _Places:
        places = _Places({}, {})
        for number, rewrite in enumerate(self.rewrites):
            for index, names in ((places.made, _after(rewrite)), (places.taken, _before(rewrite))):
                for name in names:
                    index.setdefault(name, []).append(number)
        return places

    def merges(self, value: str) -> list[Rewrite]:
        """The rewrites that put a value in the place of another one, or another in its."""
        return [rewrite for rewrite in self.rewrites if any(value in pair for pair in rewrite.merged)]

    def merged_into(self, value: str) -> str:
        """The value of the result that a value of the original became; itself where nothing merged it."""
        for rewrite in self.rewrites:
            value = dict(rewrite.merged).get(value, value)
        return value


def titled(key: Key) -> str:
    """The pass and its rule."""
    return f"{key.pass_name}/{key.rule}" if key.rule else key.pass_name


def _stays(rewrite: Rewrite) -> tuple[str, ...]:
    """The node that a rewrite changed in its place, where there is one."""
    anchor = rewrite.key.anchor
    return (anchor,) if anchor and anchor not in (*rewrite.removed, *rewrite.added) else ()


def _before(rewrite: Rewrite) -> tuple[str, ...]:
    """The nodes that went into a rewrite."""
    return (*_stays(rewrite), *rewrite.removed)


def _after(rewrite: Rewrite) -> tuple[str, ...]:
    """The nodes that came out of it."""
    return (*_stays(rewrite), *rewrite.added)

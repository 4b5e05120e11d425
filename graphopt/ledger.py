"""The ledger: which rewrites were made, which were refused, and why.

A rewrite asks :func:`allow` before it changes anything and tells :func:`record` afterwards. Both reach the recorder
that the driver installed with :func:`recording`; outside of it every rewrite is allowed and nothing is kept, so passes
also work in anyone's ``onnx_ir.passes.Sequential``.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import json
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, NamedTuple

VERSION = 1
"""Of the ledger's form, in the file beside the model and inside it."""

METADATA_KEY = "graphopt.ledger"
"""Where the embedded ledger stands in a model's metadata."""


class Key(NamedTuple):
    """Names one rewrite: the pass, its rule, and the node the rule was anchored at.

    An empty ``rule`` or ``anchor`` stands for the whole pass or the whole graph.
    """

    pass_name: str
    rule: str = ""
    anchor: str = ""

    def __str__(self) -> str:
        return f"{self.pass_name}{f'/{self.rule}' if self.rule else ''}{f' at {self.anchor}' if self.anchor else ''}"


@dataclass(frozen=True)
class Rewrite:
    """One change that was made.

    Attributes:
        key: pass, rule and anchor.
        removed: names of nodes that went.
        added: names of nodes that came.
        reason: why, where the rule's own docstring does not say it all.
        kernels: kernels (``domain::operator``) that the rewrite plans to run, checked against what executes.
        merged: values of the original that another value now stands for, as (old name, new name).
        predicted_error: the error that the pass expects, relative, or None where the rewrite is exact.
        form: a rule whose denial at the anchor makes the pass choose another form, where this one turns out slow; empty where it has none.
    """

    key: Key
    removed: tuple[str, ...] = ()
    added: tuple[str, ...] = ()
    reason: str = ""
    kernels: tuple[str, ...] = ()
    merged: tuple[tuple[str, str], ...] = ()
    predicted_error: float | None = None
    form: str = ""


@dataclass(frozen=True)
class Miss:
    """A rule's anchor matched and a condition failed: which rule, at which node, which condition."""

    key: Key
    reason: str


@dataclass(frozen=True)
class Drop:
    """A rewrite (or a whole pass) that was taken back, and why."""

    key: Key
    reason: str


@dataclass
class Recorder:
    """Collects the rewrites of one attempt at a stage, and decides which may happen.

    Attributes:
        denied: rewrites that must not happen: each field of a key that is empty matches anything.
        limit: how many rewrites may happen at all; the driver bisects with it. None: no limit.
        only: by pass, the rewrites with an anchor that alone may happen; a pass that is not in it may do all. They are refused at the
            last moment, unlike those denied, so that a pass works out for each attempt what it can use in all.
        rewrites: those that happened.
        misses: why others nearly did.
        notes: what the user should know.
        allowed: those that may happen, in the order in which they were asked for.
        declined: those that measurements on this machine spoke against.
    """

    denied: frozenset[Key] = frozenset()
    limit: int | None = None
    only: Mapping[str, frozenset[Key]] = field(default_factory=dict)
    rewrites: list[Rewrite] = field(default_factory=list)
    misses: dict[Key, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    allowed: list[Key] = field(default_factory=list)
    declined: list[Drop] = field(default_factory=list)

    def allow(self, key: Key) -> bool:
        """Whether a rewrite may happen; counts it where it may."""
        if self.denies(key):
            return False
        if self.limit is not None and len(self.allowed) >= self.limit:
            return False
        if key.anchor and key not in self.only.get(key.pass_name, (key,)):
            return False
        self.allowed.append(key)
        return True

    def denies(self, key: Key) -> bool:
        """Whether a rewrite is denied, itself or by a wider key."""
        return bool(self.denied) and not self.denied.isdisjoint(_covering(key))


_current: ContextVar[Recorder | None] = ContextVar("recorder", default=None)


@contextlib.contextmanager
def recording(recorder: Recorder) -> Iterator[Recorder]:
    """Makes a recorder the one that passes ask and tell."""
    token = _current.set(recorder)
    try:
        yield recorder
    finally:
        _current.reset(token)


def allow(key: Key) -> bool:
    """Asks whether a rewrite may happen; to be called before the first change that it makes."""
    recorder = _current.get()
    return recorder is None or recorder.allow(key)


def denies(key: Key) -> bool:
    """Asks whether a rewrite is denied, without asking for leave: then its place need not even be looked at."""
    recorder = _current.get()
    return recorder is not None and recorder.denies(key)


def record(rewrite: Rewrite) -> None:
    """Tells what a rewrite changed."""
    recorder = _current.get()
    if recorder is not None:
        recorder.rewrites.append(rewrite)


def miss(key: Key, reason: str) -> None:
    """Tells that a rule nearly fired, and which condition failed; the last reason at a place counts."""
    recorder = _current.get()
    if recorder is not None:
        recorder.misses[key] = reason


def decline(key: Key, reason: str) -> None:
    """Tells that a measurement on this machine spoke against a rewrite: the resolved recipe keeps it out, a replay need not measure."""
    recorder = _current.get()
    if recorder is not None:
        recorder.declined.append(Drop(key, reason))


def note(text: str) -> None:
    """Tells something that the user should know, once."""
    recorder = _current.get()
    if recorder is not None and text not in recorder.notes:
        recorder.notes.append(text)


def _covering(key: Key) -> tuple[Key, ...]:
    """The key and the wider ones that cover it: its rule anywhere, its pass there, its whole pass, its rule in any pass, its anchor."""
    name, rule, anchor = key
    return key, Key(name, rule), Key(name, "", anchor), Key(name), Key("", rule), Key("", "", anchor)


@dataclass
class Ledger:
    """What a whole run did.

    Attributes:
        rewrites: those that were kept, in order.
        drops: those that were taken back.
        declined: those that measurements on this machine spoke against.
        misses: near misses: rules whose anchor matched and whose condition failed.
        notes: what the user should know.
    """

    rewrites: list[Rewrite] = field(default_factory=list)
    drops: list[Drop] = field(default_factory=list)
    declined: list[Drop] = field(default_factory=list)
    misses: list[Miss] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def absorb(self, recorder: Recorder) -> None:
        """Takes over what a kept attempt recorded; a near miss that fired later, or whose node went, no longer counts."""
        self.rewrites.extend(recorder.rewrites)
        fired = {rewrite.key for rewrite in self.rewrites}
        gone = {name for rewrite in self.rewrites for name in rewrite.removed}
        self.misses.extend(Miss(key, reason) for key, reason in recorder.misses.items() if key not in fired and key.anchor not in gone)
        self.notes.extend(note for note in recorder.notes if note not in self.notes)

    def counts(self) -> dict[str, int]:
        """How often each rule fired, as ``pass/rule``, most often first."""
        found = Counter(f"{r.key.pass_name}/{r.key.rule}" if r.key.rule else r.key.pass_name for r in self.rewrites)
        return dict(found.most_common())

    def to_json(self) -> dict[str, Any]:
        """Everything, as plain data; ``version`` counts changes of this form."""
        return {
            "version": VERSION,
            "rewrites": [_plain(rewrite) for rewrite in self.rewrites],
            "dropped": [[*drop.key, drop.reason] for drop in self.drops],
            "declined": [[*drop.key, drop.reason] for drop in self.declined],
            "near_misses": [[*miss.key, miss.reason] for miss in self.misses],
            "notes": self.notes,
        }

    def embedded(self, limit: int) -> str:
        """The ledger for the model file: no measurements, compressed, as text; counts alone where all of it is too long.

        Args:
            limit: bytes that it may take; an empty string comes back where not even the counts fit.
        """
        dropped = [list(drop.key) for drop in self.drops]
        rewrites = [[*r.key, list(r.removed), list(r.added), *([dict(r.merged)] if r.merged else [])] for r in self.rewrites]
        for content in (
            {"rewrites": rewrites, "dropped": dropped},
            {"counts": self.counts(), "dropped": dropped},
            {"counts": self.counts()},
        ):
            text = pack({"version": VERSION} | content)
            if len(text) <= limit:
                return text
        return ""


def pack(content: dict[str, Any]) -> str:
    """Compresses plain data into base64 text, the same bytes for the same content."""
    raw = json.dumps(content, separators=(",", ":"), ensure_ascii=False).encode()
    return base64.b64encode(zlib.compress(raw, 9)).decode("ascii")


def unpack(text: str) -> dict[str, Any]:
    """Reads what :func:`pack` wrote.

    Raises:
        ValueError: it is not such a text.
    """
    try:
        content = json.loads(zlib.decompress(base64.b64decode(text, validate=True)))
    except (binascii.Error, zlib.error, UnicodeDecodeError) as error:
        raise ValueError(f"not a ledger: {error}") from error
    if not isinstance(content, dict):
        raise ValueError("not a ledger: not a mapping")  # noqa: TRY004  # the text is wrong, not the argument's type
    return content


def _plain(rewrite: Rewrite) -> dict[str, Any]:
    pass_name, rule, anchor = rewrite.key
    entry: dict[str, Any] = {
        "pass": pass_name,
        "rule": rule,
        "anchor": anchor,
        "removed": list(rewrite.removed),
        "added": list(rewrite.added),
    }
    optional = {
        "reason": rewrite.reason,
        "kernels": list(rewrite.kernels),
        "merged": dict(rewrite.merged),
        "predicted_error": rewrite.predicted_error,
    }
    return entry | {name: value for name, value in optional.items() if value}

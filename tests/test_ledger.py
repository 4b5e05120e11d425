"""Tests of the ledger: who is allowed what, what is kept, and how it is written."""

from __future__ import annotations

import pytest

from graphopt import ledger
from graphopt.ledger import Drop, Key, Ledger, Miss, Recorder, Rewrite


def test_without_a_recorder_everything_is_allowed() -> None:
    """Passes work in anyone's pipeline: outside the driver nothing is denied and nothing kept."""
    assert ledger.allow(Key("any"))
    assert not ledger.denies(Key("any"))
    ledger.record(Rewrite(Key("any")))
    ledger.miss(Key("any"), "why")
    ledger.note("text")


@pytest.mark.parametrize(
    "wider",
    [Key("pass", "rule", "node"), Key("pass", "rule"), Key("pass"), Key("", "rule"), Key("", "", "node")],
)
def test_wider_keys_deny_what_they_cover(wider: Key) -> None:
    """Empty fields match anything: a rule at a place, a rule anywhere, a whole pass, a node whatever the rule."""
    recorder = Recorder(frozenset({wider}))
    assert recorder.denies(Key("pass", "rule", "node"))
    assert not recorder.allow(Key("pass", "rule", "node"))
    assert recorder.allow(Key("other", "other", "elsewhere"))
    assert recorder.allowed == [Key("other", "other", "elsewhere")]


def test_a_name_is_not_taken_for_another_kind() -> None:
    """A node called as a rule is, or a rule called as a pass is, stays allowed."""
    recorder = Recorder(frozenset({Key("", "name"), Key("name")}))
    assert recorder.allow(Key("pass", "rule", "name"))
    assert recorder.allow(Key("pass", "rules", "name"))


def test_the_limit_counts_what_is_allowed() -> None:
    """The first n that are not denied may happen; bisection rests on it."""
    recorder = Recorder(frozenset({Key("p", "r", "denied")}), limit=2)
    answers = [recorder.allow(Key("p", "r", name)) for name in ("a", "denied", "b", "c", "a")]
    assert answers == [True, False, True, False, False]


def fail_within(recorder: Recorder) -> None:
    """Records something, and fails."""
    with ledger.recording(recorder):
        ledger.record(Rewrite(Key("inner")))
        raise ZeroDivisionError


def test_recorders_nest() -> None:
    """Each context has its own recorder, also after an error."""
    with ledger.recording(Recorder()) as outer:
        inner = Recorder()
        with pytest.raises(ZeroDivisionError):
            fail_within(inner)
        ledger.record(Rewrite(Key("outer")))
        ledger.note("once")
        ledger.note("once")
    assert [rewrite.key for rewrite in inner.rewrites] == [Key("inner")]
    assert [rewrite.key for rewrite in outer.rewrites] == [Key("outer")]
    assert outer.notes == ["once"]


def test_near_misses_that_count() -> None:
    """The last reason at a place counts; a miss whose rule fired later, or whose node went, is forgotten."""
    recorder = Recorder()
    with ledger.recording(recorder):
        ledger.miss(Key("p", "r", "stays"), "first")
        ledger.miss(Key("p", "r", "stays"), "last")
        ledger.miss(Key("p", "r", "fired"), "not yet")
        ledger.miss(Key("p", "r", "gone"), "never")
        ledger.record(Rewrite(Key("p", "r", "fired")))
        ledger.record(Rewrite(Key("p", "s", "other"), removed=("gone",)))
    whole = Ledger()
    whole.absorb(recorder)
    assert whole.misses == [Miss(Key("p", "r", "stays"), "last")]


def example(rewrites: int) -> Ledger:
    """A ledger of some rewrites."""
    return Ledger(
        rewrites=[Rewrite(Key("p", "r", f"node{i}"), (f"node{i}",), (f"new{i}",), merged=(("a", "b"),)) for i in range(rewrites)],
        drops=[Drop(Key("p", "s", "x"), "too slow: 1.07 times")],
        notes=["a note"],
    )


def test_keys_as_text() -> None:
    """A key reads as ``pass/rule at node``, as far as it goes."""
    assert [str(key) for key in (Key("p", "r", "n"), Key("p", "r"), Key("p"), Key("", "r"))] == ["p/r at n", "p/r", "p", "/r"]


def test_json() -> None:
    """The whole ledger is plain data with a version; what is empty is left out of an entry."""
    content = example(1).to_json()
    assert content == {
        "version": 1,
        "rewrites": [{"pass": "p", "rule": "r", "anchor": "node0", "removed": ["node0"], "added": ["new0"], "merged": {"a": "b"}}],
        "dropped": [["p", "s", "x", "too slow: 1.07 times"]],
        "declined": [],
        "near_misses": [],
        "notes": ["a note"],
    }
    assert example(3).counts() == {"p/r": 3}


def test_the_embedded_ledger_fits_and_holds_no_measurement() -> None:
    """What is embedded shrinks to the room there is: everything, counts, nothing; reasons with figures never go in."""
    whole = example(1000)
    sizes = []
    for room in (1 << 20, 400, 150, 10):
        text = whole.embedded(room)
        assert len(text) <= room
        sizes.append(sorted(ledger.unpack(text)) if text else [])
    assert sizes == [["dropped", "rewrites", "version"], ["counts", "dropped", "version"], ["counts", "dropped", "version"], []]
    assert "1.07" not in str(ledger.unpack(whole.embedded(1 << 20)))
    assert whole.embedded(1 << 20) == example(1000).embedded(1 << 20)


@pytest.mark.parametrize("text", ["", "no base 64!", "aGVsbG8=", ledger.pack({"a": 1})[:-8], "eJyLNlSIBQADDAEi"])
def test_what_is_no_ledger_is_refused(text: str) -> None:
    """Damaged text, text that is not compressed, and a list are ValueErrors."""
    with pytest.raises(ValueError, match=r"not a ledger|char 0|Incorrect padding"):
        ledger.unpack(text)

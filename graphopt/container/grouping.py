"""Several symbols to a byte: what Huffman codes need where a symbol has less than a bit or two.

The most frequent bytes of a stream get ranks in a small alphabet, and as many ranks as fit share a byte. Where more bytes occur
than there are ranks, the last rank stands for all others, which go to a stream of their own.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import numpy as np

from graphopt.container.entropy import Bytes, Counts, entropy_bits, huffman_cost
from graphopt.errors import ContainerError

Flags = np.ndarray[Any, np.dtype[np.bool_]]

RANKS = (2, 3, 4, 6, 16)
"""Sizes of alphabets: those of which 8, 5, 4, 3 and 2 symbols fill a byte well."""

ENOUGH = 1.025
"""Where Huffman's code comes as close to the ideal size, symbols are not grouped."""

_NESTED = 1.06
"""Multiple of the ideal size that is counted where the groups or the rest have to be grouped once more: rather not."""


class Grouped(NamedTuple):
    """A stream in groups.

    Attributes:
        groups: a byte for each group.
        rest: the bytes without a rank, in order.
    """

    groups: Bytes
    rest: Bytes


class Choice(NamedTuple):
    """How a stream becomes smallest, with a Huffman code in the end.

    Attributes:
        ranks: size of the alphabet; 0 where whole symbols are coded.
        bits: the size to expect.
    """

    ranks: int
    bits: float


def group_size(ranks: int) -> int:
    """How many symbols of an alphabet fit a byte."""
    return int(math.log(256, ranks) + 1e-9)


def table_of(counts: Counts, ranks: int) -> Bytes:
    """The bytes that get a rank, the most frequent first.

    Args:
        counts: how often each byte occurs, ``[256]``.
        ranks: size of the alphabet.
    """
    present = int(np.count_nonzero(counts))
    return np.argsort(-counts, kind="stable")[: present if present <= ranks else ranks - 1].astype(np.uint8)


def group(data: Bytes, table: Bytes, ranks: int) -> Grouped:
    """Puts a stream into groups.

    Args:
        data: the stream.
        table: the bytes that have a rank; all that occur, or one less than there are ranks.
        ranks: size of the alphabet.
    """
    rank_of = np.full(256, ranks - 1, np.uint8)
    rank_of[table] = np.arange(table.size, dtype=np.uint8)
    ranked = np.take(rank_of, data, mode="clip")
    rest = data[ranked == ranks - 1] if table.size < ranks else data[:0]
    size = group_size(ranks)
    members = np.concatenate([ranked, np.zeros(-ranked.size % size, np.uint8)]).reshape(-1, size)
    groups = members[:, 0].copy()
    for position in range(1, size):
        groups += members[:, position] * np.uint8(ranks**position)
    return Grouped(groups, rest)


def ungroup(groups: Bytes, table: Bytes, ranks: int, length: int) -> tuple[Bytes, Flags]:
    """Takes a stream out of its groups.

    Args:
        groups: a byte for each group.
        table: the bytes that have a rank.
        ranks: size of the alphabet.
        length: of the stream.

    Returns:
        The stream, and for each symbol whether it has no rank: there the rest has to go.

    Raises:
        ContainerError: there is no such group.
    """
    size = group_size(ranks)
    if int(groups.max()) >= ranks**size:
        raise ContainerError("a group has no meaning")
    members = np.arange(ranks**size)[:, None] // ranks ** np.arange(size) % ranks
    values = np.zeros(ranks, np.uint8)
    values[: table.size] = table
    found = _rows(values[members], groups)[:length]
    if table.size == ranks:
        return found, np.zeros(length, np.bool_)
    return found, _rows(members >= table.size, groups)[:length]


def _rows(table: np.ndarray[Any, Any], numbers: Bytes) -> np.ndarray[Any, Any]:
    """The rows of a table that have these numbers, one after another."""
    return np.take(table, numbers, axis=0, mode="clip").reshape(-1)  # clip: ten times as fast as looking for wrong numbers


def best_choice(counts: Counts) -> Choice:
    """Whether a stream should be grouped, and how, if its symbols do not depend on one another.

    Args:
        counts: how often each byte occurs, ``[256]``.
    """
    plain = Choice(0, huffman_cost(counts))
    if plain.bits <= entropy_bits(counts) * ENOUGH:
        return plain
    return min([plain, *(Choice(ranks, _cost(counts, ranks)) for ranks in RANKS)], key=lambda choice: choice.bits)


def _cost(counts: Counts, ranks: int) -> float:
    table = table_of(counts, ranks)
    rest = counts.copy()
    rest[table] = 0
    shares = np.zeros(ranks)
    shares[: table.size] = counts[table] / counts.sum()
    shares[-1] += rest.sum() / counts.sum()
    size = group_size(ranks)
    groups = functools.reduce(np.multiply.outer, [shares] * size).ravel() * (counts.sum() / size)
    return 8.0 * table.size + sum(min(huffman_cost(part), entropy_bits(part) * _NESTED) for part in (groups, rest) if part.any())

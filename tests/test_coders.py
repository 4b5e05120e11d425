"""Tests of coded streams: the same bytes come back, from close to the entropy of the symbols."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphopt.container import coders
from graphopt.container.cursor import Cursor
from graphopt.container.entropy import Bytes, histogram, symbol_bits
from tests.packable import FLAGS, NORMAL


def quantized(spread: float, bits: int = 8) -> Bytes:
    """Normally distributed weights as signed integers, a byte each; the spread is in steps of the grid."""
    most = (1 << (bits - 1)) - 1
    return np.clip(np.round(NORMAL * spread), -most - 1, most).astype(np.int8).view(np.uint8)


def packed_nibbles(values: Bytes) -> Bytes:
    """Two 4-bit symbols to a byte, as ONNX packs them."""
    return np.asarray((values[::2] & 15) | (values[1::2] << 4), np.uint8)


STREAMS: dict[str, tuple[Bytes, int]] = {
    "8 bits": (quantized(30), 8),
    "8 bits, few used": (quantized(1.35), 8),
    "8 bits, mostly zero": (quantized(0.5), 8),
    "8 bits, half of them pruned": (np.where(FLAGS < 0.5, 0, quantized(25)).astype(np.uint8), 8),
    "8 bits, most of them pruned": (np.where(FLAGS < 0.9, 0, quantized(25)).astype(np.uint8), 8),
    "4 bits in a byte": (quantized(2.6, bits=4) + np.uint8(8), 8),
    "4 bits, packed": (packed_nibbles(quantized(2.6, bits=4)), 4),
    "4 bits, packed, half of them pruned": (packed_nibbles(np.where(FLAGS < 0.5, 0, quantized(2.6, bits=4)).astype(np.uint8)), 4),
    "2 bits, packed": (np.packbits(np.stack([NORMAL > 1, FLAGS < 0.7], axis=1)), 2),
    "2 bits in a byte": (quantized(0.9, bits=2) + np.uint8(2), 8),
    "three values": (np.sign(np.where(FLAGS < 0.9, 0, NORMAL)).astype(np.int8).view(np.uint8), 8),
    "flags": (np.packbits(FLAGS < 0.3), 1),
    "rare flags": (np.packbits(FLAGS < 0.01), 1),
    "exponents": (np.frexp(NORMAL * 0.02)[1].astype(np.int8).view(np.uint8), 8),
    "noise": (np.random.default_rng(1).integers(0, 256, NORMAL.size, np.uint8), 8),
}


@pytest.mark.parametrize("name", STREAMS)
def test_coded_size_is_close_to_the_entropy(name: str) -> None:
    """Each kind of stream that models hold comes back, from at most 5 % more than the order-0 entropy of its symbols."""
    data, bits = STREAMS[name]
    coded = coders.encode(data)
    cursor = Cursor(coded)
    assert np.array_equal(coders.decode(cursor, data.size), data)
    assert len(cursor.rest()) == 0
    assert 8 * len(coded) <= 1.05 * symbol_bits(histogram(data), bits) + 8 * 64


@given(st.binary(max_size=300), st.integers(1, 60))
def test_any_stream_comes_back(piece: bytes, times: int) -> None:
    """Streams of any length and content come back, and none becomes larger by more than a byte."""
    data = np.frombuffer(piece * times, np.uint8)
    coded = coders.encode(data)
    assert coders.decode(Cursor(coded), data.size).tobytes() == data.tobytes()
    assert len(coded) <= data.size + 1


def test_grouping_is_bounded() -> None:
    """A stream of rare exceptions is grouped again and again, as often as a reader allows."""
    data = np.zeros(1 << 20, np.uint8)
    data[:: 1 << 12] = 7
    data[5 :: 1 << 13] = 9
    coded = coders.encode(np.random.default_rng(0).permutation(data))
    assert len(coded) < 1000
    assert np.count_nonzero(coders.decode(Cursor(coded), data.size)) == 384

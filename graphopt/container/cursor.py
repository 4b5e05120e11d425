"""Numbers and runs of bytes, written one after another and read with every length checked."""

from __future__ import annotations

from graphopt.errors import ContainerError

_LONGEST = 10
"""Bytes of the longest number: 64 bits, 7 to a byte."""


def varint(number: int) -> bytes:
    """A number that is not negative, 7 bits to a byte, the lowest first; all bytes but the last have their high bit set."""
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


class Cursor:
    """A place in bytes that moves as they are read, and never beyond their end."""

    def __init__(self, data: bytes) -> None:
        self._data = memoryview(data)
        self._at = 0

    def take(self, length: int) -> memoryview:
        """The next bytes, without a copy.

        Raises:
            ContainerError: fewer are left.
        """
        if length > len(self._data) - self._at:
            raise ContainerError("a length points beyond its block")
        self._at += length
        return self._data[self._at - length : self._at]

    def byte(self) -> int:
        """The next byte.

        Raises:
            ContainerError: none is left.
        """
        return self.take(1)[0]

    def varint(self, limit: int) -> int:
        """The next number.

        Args:
            limit: the largest that makes sense.

        Raises:
            ContainerError: the number is cut off, or larger.
        """
        number = 0
        for position in range(_LONGEST):
            byte = self.byte()
            number |= (byte & 0x7F) << 7 * position
            if byte < 0x80:
                break
        if byte >= 0x80 or number > limit:
            raise ContainerError("a number is out of bounds")
        return number

    def rest(self) -> memoryview:
        """All bytes that are left."""
        return self.take(len(self._data) - self._at)

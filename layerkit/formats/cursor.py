"""Bounded reading and writing of our binary formats. Spec: docs/format.md "Primitives".

`Reader` never reads past its end, compares every declared length with what is left and with a
named limit before allocating, and raises only FormatError, with the offset. Integers are unsigned
and little-endian; varints are LEB128 and canonical (no padding), at most 64 bits.
"""

from __future__ import annotations

import struct
from typing import Final

from layerkit.errors import FormatError

__all__ = ["Reader", "Writer", "unzigzag", "zigzag"]

_U16: Final = struct.Struct("<H")
_U32: Final = struct.Struct("<I")
_U64: Final = struct.Struct("<Q")
MAX_VARINT_SIZE: Final = 10  # bytes: ceil(64 / 7)


class Reader:
    """A position in bytes that came from outside. All failures are FormatError with an offset."""

    __slots__ = ("_data", "_end", "_pos", "_what")

    def __init__(self, data: bytes | memoryview, what: str, start: int = 0) -> None:
        self._data = memoryview(data)
        self._pos = start
        self._end = len(self._data)
        self._what = what

    @property
    def offset(self) -> int:
        return self._pos

    @property
    def left(self) -> int:
        return self._end - self._pos

    def fail(self, why: str) -> FormatError:
        """The error to raise for what was just read."""
        return FormatError(f"{self._what}: {why}", offset=self._pos)

    def take(self, size: int) -> memoryview:
        """The next `size` bytes, without a copy."""
        if size > self._end - self._pos:
            raise self.fail(f"ends early: got {self.left} bytes, want {size}")
        start = self._pos
        self._pos = start + size
        return self._data[start : self._pos]

    def u8(self) -> int:
        return self.take(1)[0]

    def u16(self) -> int:
        return int(_U16.unpack(self.take(2))[0])

    def u32(self) -> int:
        return int(_U32.unpack(self.take(4))[0])

    def u64(self) -> int:
        return int(_U64.unpack(self.take(8))[0])

    def varint(self, limit: int, name: str) -> int:
        """A canonical LEB128 number, at most `limit`; `name` says what it counts."""
        value = 0
        for index in range(MAX_VARINT_SIZE):
            byte = self.u8()
            value |= (byte & 0x7F) << (7 * index)
            if byte < 0x80:
                if byte == 0 and index:
                    raise self.fail(f"{name} is not in its shortest form")
                if value > limit:
                    raise self.fail(f"{name} is over its limit: got {value}, want <= {limit}")
                return value
        raise self.fail(f"{name} is longer than {MAX_VARINT_SIZE} bytes")

    def sized(self, limit: int, name: str) -> memoryview:
        """A length and that many bytes."""
        return self.take(self.varint(limit, f"length of {name}"))

    def finish(self) -> None:
        """Bytes after the declared end are an error."""
        if self.left:
            raise self.fail(f"{self.left} bytes follow the end")


class Writer:
    """Builds bytes; the twin of Reader."""

    __slots__ = ("_out",)

    def __init__(self) -> None:
        self._out = bytearray()

    def __len__(self) -> int:
        return len(self._out)

    def raw(self, data: bytes | bytearray | memoryview) -> None:
        self._out += data

    def u8(self, value: int) -> None:
        self._out.append(value)

    def u16(self, value: int) -> None:
        self._out += _U16.pack(value)

    def u32(self, value: int) -> None:
        self._out += _U32.pack(value)

    def u64(self, value: int) -> None:
        self._out += _U64.pack(value)

    def varint(self, value: int) -> None:
        while value >= 0x80:
            self._out.append(value & 0x7F | 0x80)
            value >>= 7
        self._out.append(value)

    def sized(self, data: bytes | bytearray | memoryview) -> None:
        self.varint(len(data))
        self._out += data

    def getvalue(self) -> bytes:
        return bytes(self._out)


def zigzag(value: int) -> int:
    """Map a signed number to an unsigned one, small to small."""
    return value << 1 if value >= 0 else (-value << 1) - 1


def unzigzag(value: int) -> int:
    return (value >> 1) ^ -(value & 1)

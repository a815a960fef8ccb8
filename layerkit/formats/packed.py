"""Numbers packed in a buffer, many at once: little-endian ones at given places, and LEB128 varints.

Places may overlap: bytes are written lowest byte of all first, so the result follows from the
arguments alone. Raises IndexError for a place past the end.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from layerkit.errors import FormatError
from layerkit.formats import kernel

__all__ = [
    "clear",
    "count_nonzero",
    "read_u32",
    "read_u64",
    "read_varints",
    "write_u32",
    "write_u64",
    "write_varints",
]

Int64s = npt.NDArray[np.int64]
Bytes8 = npt.NDArray[np.uint8]


def read_u32(data: Bytes8, pos: Int64s) -> Int64s:
    done = kernel.read_words(data, pos, 4)
    return _read(data, pos, 4) if done is None else done


def read_u64(data: Bytes8, pos: Int64s) -> Int64s:
    """As signed numbers: 2^63 and above come out negative."""
    done = kernel.read_words(data, pos, 8)
    return _read(data, pos, 8) if done is None else done


def write_u32(data: Bytes8, pos: Int64s, value: Int64s) -> None:
    if not kernel.write_words(data, pos, value, 4):
        _write(data, pos, value, 4)


def write_u64(data: Bytes8, pos: Int64s, value: Int64s) -> None:
    if not kernel.write_words(data, pos, value, 8):
        _write(data, pos, value, 8)


def clear(data: Bytes8, pos: Int64s, width: int) -> None:
    """Zero `width` bytes at each place."""
    if not kernel.clear(data, pos, width):
        for k in range(width):
            data[pos + k] = 0


def count_nonzero(data: Bytes8, start: Int64s, size: Int64s) -> Int64s:
    """How many bytes of each run are not zero. Runs lie inside the data."""
    done = kernel.count_nonzero(data, start, size)
    if done is not None:
        return done
    places = np.flatnonzero(data)
    low, high = np.searchsorted(places, start), np.searchsorted(places, start + size)
    return (high - low).astype(np.int64)


def read_varints(data: Bytes8, count: int) -> Int64s:
    """The values of `count` varints, which are all of the data. Raises FormatError for another
    count, a varint over nine bytes (2^63 and above), or one that is not in its shortest form."""
    done = kernel.read_varints(data, count)
    if done is not None:
        return done
    ends = np.flatnonzero(data < 0x80)
    if len(ends) != count or (count and ends[-1] != len(data) - 1) or (not count and len(data)):
        raise FormatError(f"got {len(ends)} varints, want {count}")
    start = np.concatenate(([0], ends[:-1] + 1)) if count else ends
    width = ends - start + 1
    if count and int(width.max()) > 9:
        raise FormatError("a varint is too long")
    if ((data[ends] == 0) & (width > 1)).any():
        raise FormatError("a varint is not in its shortest form")
    value = np.zeros(count, np.int64)
    for k in range(int(width.max(initial=0))):
        has = width > k
        value[has] |= (data[start[has] + k].astype(np.int64) & 0x7F) << (7 * k)
    return value


def write_varints(values: Int64s) -> Bytes8:
    """The twin of `read_varints`, for values from 0 on: byte k of each value that needs more than k
    bytes, put where it belongs."""
    done = kernel.write_varints(values)
    if done is not None:
        return done
    value = values.astype(np.uint64)
    width = np.ones(len(value), np.int64)
    for k in range(1, 9):
        width += value >= np.uint64(1 << (7 * k))
    start = np.cumsum(width) - width
    out = np.zeros(int(width.sum()), np.uint8)
    for k in range(int(width.max(initial=0))):
        has = width > k
        byte = (value[has] >> np.uint64(7 * k) & np.uint64(0x7F)).astype(np.uint8)
        out[start[has] + k] = byte | np.where(width[has] > k + 1, 0x80, 0).astype(np.uint8)
    return out


def _read(data: Bytes8, pos: Int64s, width: int) -> Int64s:
    out = data[pos].astype(np.int64)
    for k in range(1, width):
        out |= data[pos + k].astype(np.int64) << (8 * k)
    return out


def _write(data: Bytes8, pos: Int64s, value: Int64s, width: int) -> None:
    for k in range(width):
        data[pos + k] = (value >> (8 * k)) & 0xFF

"""Little-endian numbers at many places of one buffer, read and written at once.

Places may overlap: bytes are written lowest byte of all first, so the result follows from the
arguments alone. Raises IndexError for a place past the end.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from layerkit.formats import kernel

__all__ = ["clear", "read_u32", "read_u64", "write_u32", "write_u64"]

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


def _read(data: Bytes8, pos: Int64s, width: int) -> Int64s:
    out = data[pos].astype(np.int64)
    for k in range(1, width):
        out |= data[pos + k].astype(np.int64) << (8 * k)
    return out


def _write(data: Bytes8, pos: Int64s, value: Int64s, width: int) -> None:
    for k in range(width):
        data[pos + k] = (value >> (8 * k)) & 0xFF

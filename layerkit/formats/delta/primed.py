"""LZMA2 with a dictionary that both sides have: `compress(dictionary, data)` and its twin.

The decoder of the standard library takes a dictionary without knowing it: the dictionary goes in
front as LZMA2 chunks of stored bytes, made on the spot, which cost a copy. For the encoder there is
no such way, so it compresses dictionary, filler and data in one run, and of the chunks that come
out only those of the data are kept. For that a chunk must begin right at the data and start anew.
It does behind a stored chunk, so the filler is noise (SHAKE-128), which the encoder stores; where
it ends such a chunk is found by a first run without the data. The decoder puts the same filler in
front, since the data's distances reach over it.

Where no chunk can be made to begin at the data, the dictionary is left out; the result is right
either way. Source of the chunk format: xz 5.8, lzma2_decoder.c. Spec: docs/format.md "Delta".
"""

from __future__ import annotations

import lzma
from collections.abc import Iterator, Sequence
from functools import cache
from hashlib import shake_128
from typing import Any, Final

from layerkit.errors import FormatError

__all__ = ["FILLER_LIMIT", "NOISE_COUNT", "compress", "decompress", "expand", "shrink"]

FILLER_LIMIT: Final = 3 << 16  # bytes: a chunk that is open, and one of noise, end within
NOISE_COUNT: Final = 4  # kinds of filler: where the data moves the end of one's chunk, try another
STORED_LIMIT: Final = 1 << 16  # bytes of a stored chunk
SMALLEST_DICT: Final = 4096  # bytes; LZMA's own limit
NICE_SIZE: Final = 128  # bytes: a longer match is taken at once
LITERAL_BITS: Final = 1  # lc: of 0, 1 and 3 the best on code and tables
PROPERTIES: Final = LITERAL_BITS  # (pb * 5 + lp) * 9 + lc
PACKED_LIMIT: Final = 1 << 16  # bytes that a packed chunk takes
UNPACKED_LIMIT: Final = 1 << 21  # bytes that it holds
HEAD_SIZE: Final = 6  # bytes of a packed chunk before the packed ones
# First bytes of chunks: stored with and without a fresh dictionary; packed, how much is reset
STORED_FRESH, STORED, PACKED, NEW_PROPERTIES, FRESH = 0x01, 0x02, 0x80, 0xC0, 0xE0


def compress(dictionary: bytes, data: bytes) -> tuple[int, bytes]:
    """Which filler, and an LZMA2 stream. Memory: 12 times dictionary and data."""
    for kind in range(NOISE_COUNT if dictionary else 0):
        size = _find_filler(dictionary, kind, len(data))
        filler = size * NOISE_COUNT + kind
        front = dictionary + _filler(filler)
        filters = _filters(len(dictionary) + FILLER_LIMIT + len(data))
        stream = lzma.compress(front + data, lzma.FORMAT_RAW, filters=filters)
        kept = _chunks_from(stream, len(front))
        if size and kept and decompress([dictionary], filler, kept, len(data)) == (data, b""):
            return filler, kept
    return 0, lzma.compress(data, lzma.FORMAT_RAW, filters=_filters(len(data)))


def shrink(stream: bytes) -> bytes:
    """The packed bytes alone of a stream of one chunk, without those that follow from sizes (the
    first packed one is always 0); empty when the stream is not of that kind."""
    chunks = list(_chunks(stream))
    if len(chunks) != 1 or stream[0] < NEW_PROPERTIES or stream[HEAD_SIZE]:
        return b""
    return stream[HEAD_SIZE + 1 : -1]


def expand(packed: bytes, filler: int, size: int) -> bytes:
    """The stream that `shrink` made small; `size` is that of the data. Where there is no filler,
    so no dictionary, it begins with a fresh one, as the decoder wants."""
    if not 0 < size <= UNPACKED_LIMIT or len(packed) >= PACKED_LIMIT:
        raise FormatError("delta: a window is no single chunk")
    mark = NEW_PROPERTIES if filler else FRESH
    head = bytes((mark | (size - 1) >> 16,)) + ((size - 1) & 0xFFFF).to_bytes(2, "big")
    head += len(packed).to_bytes(2, "big") + bytes((PROPERTIES, 0))
    return head + packed + b"\0"


def _find_filler(dictionary: bytes, kind: int, size: int) -> int:
    """Bytes of filler after which the encoder begins a chunk anew; 0 when there are none."""
    filters = _filters(len(dictionary) + FILLER_LIMIT + size)
    noise = _noise(kind)
    stream = lzma.compress(dictionary + noise, lzma.FORMAT_RAW, filters=filters)
    for _, at, length, stored in _chunks(stream):
        end = at + length - len(dictionary)
        if stored and at >= len(dictionary) and end < FILLER_LIMIT:
            return end
    return 0


def decompress(
    dictionary: Sequence[bytes], filler: int, packed: bytes, size: int
) -> tuple[bytes, bytes]:
    """The `size` bytes of data, and what follows the stream; `dictionary` in parts. Memory: once
    more dictionary and data."""
    front = [*dictionary, _filler(filler)] if filler else []
    front_size = sum(map(len, front))
    spec = [{"id": lzma.FILTER_LZMA2, "dict_size": max(SMALLEST_DICT, front_size + size)}]
    decoder = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=spec)
    mark = STORED_FRESH
    try:
        for part, at in ((one, at) for one in front for at in range(0, len(one), STORED_LIMIT)):
            stored = part[at : at + STORED_LIMIT]
            decoder.decompress(bytes((mark,)) + (len(stored) - 1).to_bytes(2, "big") + stored)
            mark = STORED
        data = decoder.decompress(packed, max_length=size)
        if len(data) == size and not decoder.eof:  # only the end's mark is left
            data += decoder.decompress(b"", max_length=1)
    except (lzma.LZMAError, EOFError) as exc:
        raise FormatError("delta: a window does not decompress") from exc
    if len(data) != size or not decoder.eof:
        raise FormatError(f"delta: a window does not hold {size} bytes")
    return data, decoder.unused_data


def _filters(size: int) -> list[dict[str, Any]]:
    return [
        {
            "id": lzma.FILTER_LZMA2,
            "preset": 9 | lzma.PRESET_EXTREME,
            "dict_size": max(SMALLEST_DICT, size),
            "lc": LITERAL_BITS,
            "lp": 0,
            "pb": 0,
            "nice_len": NICE_SIZE,
        }
    ]


@cache
def _noise(kind: int) -> bytes:
    return shake_128(bytes((kind,))).digest(FILLER_LIMIT)


def _filler(filler: int) -> bytes:
    return _noise(filler % NOISE_COUNT)[: filler // NOISE_COUNT]


def _chunks(stream: bytes) -> Iterator[tuple[int, int, int, bool]]:
    """Offset in the stream, offset in the data, size of the data and whether it is stored, of each
    chunk of a stream that this machine just made."""
    at = done = 0
    while stream[at]:
        mark = stream[at]
        size = int.from_bytes(stream[at + 1 : at + 3], "big") + 1
        if mark >= PACKED:
            size += (mark & 0x1F) << 16
            packed = int.from_bytes(stream[at + 3 : at + 5], "big") + 1
            step = 5 + (mark >= NEW_PROPERTIES) + packed
        else:
            step = 3 + size
        yield at, done, size, mark < PACKED
        at, done = at + step, done + size


def _chunks_from(stream: bytes, start: int) -> bytes:
    """The chunks that hold the data from `start` on; empty when no chunk begins there. The first
    packed one gets the properties, which a chunk before them had told."""
    for at, done, _, _ in _chunks(stream):
        if done == start:
            return _tell_properties(stream[at:])
    return b""


def _tell_properties(stream: bytes) -> bytes:
    for at, _, _, stored in _chunks(stream):
        mark = stream[at]
        if not stored and mark < NEW_PROPERTIES:
            head = bytes((mark & 0x1F | NEW_PROPERTIES,)) + stream[at + 1 : at + 5]
            return stream[:at] + head + bytes((PROPERTIES,)) + stream[at + 5 :]
        if not stored:
            break
    return stream

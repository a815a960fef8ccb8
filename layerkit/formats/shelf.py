"""An entry of a shelf: bytes that a server made, with what tells whether they are still whole.

Pure. A reader gets the bytes that were put under the key, or a FormatError: a torn, rotten or
exchanged entry is no entry. Spec: docs/format.md "Shelf entry". Limits: MAX_ENTRY_SIZE.
"""

from __future__ import annotations

import struct
from typing import Final

from layerkit.digest import raw_chunk_id
from layerkit.errors import FormatError, VersionError

__all__ = ["HEADER", "MAGIC", "MAX_ENTRY_SIZE", "name_entry", "parse_entry", "serialize_entry"]

MAGIC: Final = b"LKSE"
MAJOR: Final = 0
MINOR: Final = 0
MAX_ENTRY_SIZE: Final = 1 << 30  # bytes: an update's own limit

# magic, major, minor, header size, BLAKE3 of the key, BLAKE3 of the bytes, their size
HEADER: Final = struct.Struct("<4sBBH32s32sQ")
assert HEADER.size == 80


def name_entry(key: str) -> str:
    """The name of the file or object that holds `key`: any text makes a safe name."""
    return raw_chunk_id(key.encode("utf-8")).hex()


def serialize_entry(key: str, data: bytes) -> bytes:
    """The entry of `data` under `key`."""
    name = raw_chunk_id(key.encode("utf-8"))
    head = HEADER.pack(MAGIC, MAJOR, MINOR, HEADER.size, name, raw_chunk_id(data), len(data))
    return head + data


def parse_entry(raw: bytes, key: str) -> bytes:
    """The bytes under `key`, checked."""
    if len(raw) < HEADER.size:
        raise FormatError(f"shelf entry: got {len(raw)} bytes, want >= {HEADER.size}")
    magic, major, minor, header_size, name, digest, size = HEADER.unpack_from(raw)
    if magic != MAGIC:
        raise FormatError("shelf entry: no magic")
    if major != MAJOR:
        raise VersionError(f"shelf entry: got major version {major}, want {MAJOR}")
    if header_size < HEADER.size or (header_size > HEADER.size and minor == MINOR):
        raise FormatError(f"shelf entry: header size {header_size} is wrong", offset=6)
    if size > MAX_ENTRY_SIZE or header_size + size != len(raw):
        raise FormatError(f"shelf entry: size {size} is wrong", offset=72)
    if name != raw_chunk_id(key.encode("utf-8")):
        raise FormatError("shelf entry: it is of another key", offset=8)
    data = raw[header_size:]
    if raw_chunk_id(data) != digest:
        raise FormatError("shelf entry: its bytes are damaged", offset=40)
    return data

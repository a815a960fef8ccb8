"""Pack file of the node's store: a header, then records of size, chunk id and the chunk's bytes.

The index says where chunks lie; the records repeat it, so that an unreadable index can be made
again from the packs. A pack never leaves its node. Spec: docs/design.md "The node's store".
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Final

from layerkit.digest import chunk_id

__all__ = ["PACK_RECORD", "PACK_START", "scan_pack"]

PACK_MAGIC: Final = b"LKPACK\0\0"
# magic, major, minor, header size, zero
PACK_HEADER: Final = struct.Struct("<8sBBHI")
# size, id; the chunk's bytes follow
PACK_RECORD: Final = struct.Struct("<I32s")
assert PACK_HEADER.size == 16
assert PACK_RECORD.size == 36
PACK_START: Final = PACK_HEADER.pack(PACK_MAGIC, 0, 0, PACK_HEADER.size, 0)


def scan_pack(path: Path) -> list[tuple[bytes, int, int]]:
    """Rows of the undamaged chunks of a pack, up to the first record that makes no sense."""
    data = path.read_bytes()
    if data[: len(PACK_MAGIC)] != PACK_MAGIC:
        return []
    rows = []
    offset = PACK_HEADER.size
    while offset + PACK_RECORD.size <= len(data):
        size, raw = PACK_RECORD.unpack_from(data, offset)
        offset += PACK_RECORD.size
        if not 0 < size <= len(data) - offset:
            break
        if chunk_id(memoryview(data)[offset : offset + size]).raw == raw:
            rows.append((raw, offset, size))
        offset += size
    return rows

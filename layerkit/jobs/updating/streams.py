"""An update as it is sent: a head, then parts, of which large ones stay where they are stored.

So an update of a hundred megabytes takes a server no memory: its blobs are read as they go out. A
stored part was verified when it was opened; a file that is damaged after that breaks the answer
off or is refused by the node. Memory: WHOLE_SIZE for each part, and what was made (deltas, chunks).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from layerkit.edges.storage import StoredBlob
from layerkit.formats.update import Entry

__all__ = ["WHOLE_SIZE", "Piece", "UpdateStream"]

WHOLE_SIZE: Final = 256 << 10  # bytes up to which a stored part is read at once, for each answer
STEP: Final = 256 << 10  # bytes that `read` gives at once of what is in memory


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of an update: bytes, or a blob of the storage and the digest that names it."""

    entry: Entry
    data: bytes | StoredBlob
    digest: str = ""


@dataclass(frozen=True, slots=True)
class UpdateStream:
    """The bytes of an update."""

    head: bytes
    pieces: tuple[Piece, ...]

    @property
    def size(self) -> int:
        return len(self.head) + sum(piece.entry.size for piece in self.pieces)

    @property
    def etag(self) -> str:
        """The same for the same bytes, on all servers that store the same."""
        hasher = hashlib.sha256(self.head)
        for piece in self.pieces:
            hasher.update(piece.digest.encode() if piece.digest else _bytes_of(piece))
        return hasher.hexdigest()[:32]

    def join(self) -> bytes:
        """All of it in memory."""
        return b"".join(self.read(0, self.size))

    def read(self, offset: int, size: int) -> Iterator[bytes]:
        """`size` bytes from `offset` on, in parts. Raises what the storage raises."""
        end, at = offset + size, 0
        for data in (self.head, *(piece.data for piece in self.pieces)):
            data_size = len(data) if isinstance(data, bytes) else data.size
            start, stop = max(offset - at, 0), min(end - at, data_size)
            if start < stop and isinstance(data, bytes):
                for step in range(start, stop, STEP):
                    yield data[step : min(step + STEP, stop)]
            elif start < stop and not isinstance(data, bytes):
                yield from data.read(start, stop - start)
            at += data_size


def _bytes_of(piece: Piece) -> bytes:
    data = piece.data
    return data if isinstance(data, bytes) else b"".join(data.read(0, data.size))

"""What a chunk server stands on: a storage of images, and a shelf for what servers make of them.

A server has no state of its own: several of them over one storage serve the same. The storage is
only read by servers; `publish` writes it. The shelf is written by servers, and may lose what it
holds at any time. Safe for threads.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from layerkit.digest import Digest

__all__ = ["Shelf", "Storage", "StoredBlob"]


@dataclass(frozen=True, slots=True)
class StoredBlob:
    """A blob that can be read in parts: `read(offset, size)`. `path` where it is a local file.

    The parts are as they are stored: who serves them lets the node check the digest.
    """

    size: int
    path: Path | None
    read: Callable[[int, int], Iterator[bytes]]


class Shelf(Protocol):
    """Bytes by key, kept within a size: what was used longest ago goes first.

    Nothing raises for what a disk, a bucket or another server did: `get` answers None, and `put`
    keeps nothing. What `get` gives is whole, as it was put under that key.
    """

    def get(self, key: str) -> bytes | None: ...

    def put(self, key: str, data: bytes) -> None: ...

    def claim(self, key: str, seconds: float) -> bool:
        """Is it ours to make what belongs under `key`? False: another one said so less than
        `seconds` ago, and may still be at it. True, too, where claims cannot be kept."""

    def release(self, key: str) -> None:
        """Take our claim back: it is made, or will not be."""


class Storage(Protocol):
    """Images and what refers to them, as an OCI index and blobs.

    All may block, and raise NotFoundError for what is absent, StoreError or RemoteError when the
    storage fails.
    """

    made: Shelf | None  # what servers make, for each other; None: nowhere
    has_near_version: bool  # `version` is one stat, no request

    def version(self) -> Hashable:
        """Another value whenever `read_index` would answer otherwise; cheap."""

    def read_index(self) -> bytes:
        """An OCI index. `org.opencontainers.image.ref.name` of an entry is `repository:tag`;
        the manifest of a referrer is listed without a name. At most MAX_DOCUMENT_SIZE bytes."""

    def read_blob(self, name: str, digest: Digest, limit: int) -> bytes:
        """A blob or manifest of repository `name`, of at most `limit` bytes, not verified."""

    def open_blob(self, name: str, digest: Digest) -> StoredBlob:
        """The same to be read in parts."""

    def check_ready(self) -> None:
        """Raise StoreError or RemoteError unless the storage answers now."""

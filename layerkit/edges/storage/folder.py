"""An OCI image layout folder as a storage: one machine, or a file system that several share."""

from __future__ import annotations

import os
from collections.abc import Hashable, Iterator
from pathlib import Path
from typing import Final

from layerkit.digest import Digest
from layerkit.edges.storage.protocol import Shelf, StoredBlob
from layerkit.errors import NotFoundError, StoreError
from layerkit.formats.oci import MAX_DOCUMENT_SIZE

__all__ = ["FolderStorage", "read_file", "read_parts"]

PART_SIZE: Final = 1 << 20  # bytes in memory at once while a blob is sent


class FolderStorage:
    """The layout at `path`. What servers make goes to `made`, if it is given."""

    has_near_version = True

    def __init__(self, path: Path, made: Shelf | None = None) -> None:
        self.path = path
        self.made = made
        self._index_path = str(path / "index.json")  # a text: half of the time of a look otherwise

    def version(self) -> Hashable:
        """Of index.json: it is replaced by a new file whenever it changes."""
        try:
            info = os.stat(self._index_path)
        except OSError as exc:
            raise NotFoundError(
                f"{self.path} is not an OCI layout", cause=str(exc.strerror)
            ) from exc
        return info.st_ino, info.st_mtime_ns, info.st_size

    def read_index(self) -> bytes:
        return read_file(self.path / "index.json", MAX_DOCUMENT_SIZE)

    def read_blob(self, name: str, digest: Digest, limit: int) -> bytes:
        return read_file(self._blob_path(digest), limit)

    def open_blob(self, name: str, digest: Digest) -> StoredBlob:
        path = self._blob_path(digest)
        try:
            size = path.stat().st_size
        except OSError as exc:
            raise _error(path, exc) from exc
        return StoredBlob(size, path, lambda offset, size: read_parts(path, offset, size))

    def check_ready(self) -> None:
        try:
            self.read_index()
        except NotFoundError as exc:
            raise StoreError(f"{self.path} is not an OCI layout", cause=exc.cause) from exc

    def _blob_path(self, digest: Digest) -> Path:
        return self.path / "blobs" / digest.algorithm / digest.hex


def read_parts(path: Path, offset: int, size: int) -> Iterator[bytes]:
    """`size` bytes of a file from `offset` on, a part at a time; StoreError if they end early."""
    try:
        with path.open("rb") as file:
            file.seek(offset)
            while size:
                part = file.read(min(size, PART_SIZE))
                if not part:
                    raise StoreError(f"{path} ends {size} bytes early")
                size -= len(part)
                yield part
    except OSError as exc:
        raise _error(path, exc) from exc


def read_file(path: Path, limit: int) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as exc:
        raise _error(path, exc) from exc
    if len(data) > limit:
        raise StoreError(f"{path} is over its limit of {limit} bytes")
    return data


def _error(path: Path, exc: OSError) -> NotFoundError | StoreError:
    if isinstance(exc, FileNotFoundError | NotADirectoryError):
        return NotFoundError(f"{path} does not exist", cause=str(exc.strerror))
    return StoreError(f"cannot read {path}", cause=str(exc.strerror))

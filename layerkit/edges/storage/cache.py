"""Blobs that were fetched, in a folder: each once, verified as it came, within a size.

A blob is visible when it is whole and durable. Several processes may use one folder: at worst two
fetch the same blob, and the second takes the place of the first. What was used within the last
minutes stays, so that a path which was just given out can be opened.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from layerkit.digest import Digest, verify_stream
from layerkit.edges.disk import Disk
from layerkit.edges.storage.room import TOUCH_SECONDS, make_room
from layerkit.errors import LayerkitError

__all__ = ["CACHE_SIZE", "BlobCache"]

CACHE_SIZE: Final = 20 << 30  # bytes
KEEP_SECONDS: Final = 300.0
TEMP_SECONDS: Final = 3600.0  # a download that did not grow for so long is dead

Fetch = Callable[[], tuple[int, Iterator[bytes]]]


class BlobCache:
    """Blobs by digest in the folder `path`, which is made when the first one comes."""

    def __init__(self, path: Path, disk: Disk | None = None, limit: int = CACHE_SIZE) -> None:
        self.path = path
        self.disk = disk or Disk()
        self.limit = limit
        self._lock = threading.Lock()
        self._fetching: dict[Digest, tuple[threading.Lock, list[None]]] = {}

    def find(self, digest: Digest) -> Path | None:
        """The file of a blob that is here."""
        path = self._path_of(digest)
        try:
            info = path.stat()
        except OSError:
            return None
        if time.time() - info.st_mtime > TOUCH_SECONDS:
            with contextlib.suppress(LayerkitError):
                self.disk.touch(path)
        return path

    def get(self, digest: Digest, fetch: Fetch) -> Path:
        """The file of a blob. If it is not here, `fetch` gives its size and parts: once for all
        threads that ask. Raises what `fetch` raises, IntegrityError, StoreError."""
        with self._alone(digest):
            found = self.find(digest)
            if found is not None:
                return found
            size, parts = fetch()
            path = self._path_of(digest)
            self.disk.make_folder(path.parent)
            make_room(
                self.disk,
                path.parent,
                self.limit - size,
                temp_seconds=TEMP_SECONDS,
                keep_seconds=KEEP_SECONDS,
            )
            with self.disk.open_new(path) as file:
                for part in verify_stream(parts, digest, size, f"blob {digest.short}"):
                    file.write(part)
                return file.commit()

    @contextlib.contextmanager
    def _alone(self, digest: Digest) -> Iterator[None]:
        """One thread at a time for each digest."""
        with self._lock:
            lock, users = self._fetching.setdefault(digest, (threading.Lock(), []))
            users.append(None)
        try:
            with lock:
                yield
        finally:
            with self._lock:
                users.pop()
                if not users:
                    self._fetching.pop(digest, None)

    def _path_of(self, digest: Digest) -> Path:
        return self.path / "blobs" / digest.algorithm / digest.hex

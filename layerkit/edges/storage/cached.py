"""A storage somewhere else: its index is asked for every few seconds, its blobs are kept here.

While the origin does not answer, what is here is served: the last index (it is kept in the cache's
folder, so also after a restart) and the blobs that were fetched; `check_ready` says what is wrong.
Safe for threads.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections.abc import Callable, Hashable, Iterator
from pathlib import Path
from typing import Final, Protocol

from layerkit.digest import Digest, sha256_digest
from layerkit.edges.storage.cache import BlobCache
from layerkit.edges.storage.folder import read_file, read_parts
from layerkit.edges.storage.protocol import Shelf, StoredBlob
from layerkit.errors import LayerkitError, NotFoundError, RemoteLimitError
from layerkit.formats.oci import MAX_DOCUMENT_SIZE

__all__ = ["REFRESH_SECONDS", "CachedStorage", "Origin"]

REFRESH_SECONDS: Final = 3.0  # between two questions to the origin
SHARE: Final = 10  # and this many times as long as an answer takes, up to
MAX_PAUSE: Final = 60.0
WAIT_SECONDS: Final = 2.0  # a request waits this long for news, then goes on with what there is
_log = logging.getLogger(__name__)


class Origin(Protocol):
    """Where the images are. Safe for threads; raises RemoteError while it does not answer."""

    where: str  # its address, without secrets

    def read_index(self) -> bytes:
        """As `Storage.read_index`, as things are now."""

    def open(self, name: str, digest: Digest) -> tuple[int, Iterator[bytes]]:
        """Size and parts of a blob or manifest, not verified; NotFoundError."""


class CachedStorage:
    """`origin` as a `Storage`, with its blobs in `cache`. With `refresh` 0 it always asks."""

    has_near_version = False

    def __init__(
        self,
        origin: Origin,
        cache: BlobCache,
        made: Shelf | None = None,
        *,
        refresh: float = REFRESH_SECONDS,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.origin = origin
        self.cache = cache
        self.made = made
        self._refresh_seconds = refresh
        self._now = now
        self._lock = threading.Lock()
        self._index = b""
        self._version: Digest | None = None
        self._failure: LayerkitError | None = None
        self._due = 0.0
        self._running: threading.Event | None = None

    # --- the storage -----------------------------------------------------------------------------

    def version(self) -> Hashable:
        return self._current()[0]

    def read_index(self) -> bytes:
        return self._current()[1]

    def read_blob(self, name: str, digest: Digest, limit: int) -> bytes:
        return read_file(self._fetch(name, digest, limit), limit)

    def open_blob(self, name: str, digest: Digest) -> StoredBlob:
        path = self._fetch(name, digest)
        size = path.stat().st_size
        return StoredBlob(size, path, lambda offset, size: read_parts(path, offset, size))

    def check_ready(self) -> None:
        self._current(patient=True)
        with self._lock:
            failure = self._failure
        if failure is not None:
            raise failure

    # --- blobs -----------------------------------------------------------------------------------

    def _fetch(self, name: str, digest: Digest, limit: int | None = None) -> Path:
        def fetch() -> tuple[int, Iterator[bytes]]:
            size, parts = self.origin.open(name, digest)
            if limit is not None and size > limit:
                raise RemoteLimitError(f"blob {digest.short} has {size} bytes, want <= {limit}")
            return size, parts

        return self.cache.find(digest) or self.cache.get(digest, fetch)

    # --- the index -------------------------------------------------------------------------------

    def _current(self, *, patient: bool = False) -> tuple[Digest, bytes]:
        """The index, asked for again if it is time; raises only while there is none at all. Who is
        not patient does not wait for an origin that did not answer the last time."""
        with self._lock:
            is_down = self._failure is not None and self._version is not None
            if self._running is None and self._now() >= self._due:
                self._running = threading.Event()
                threading.Thread(target=self._refresh, args=(self._running,), daemon=True).start()
            running, has_any = self._running, self._version is not None
        if running is not None and (patient or not is_down):
            running.wait(WAIT_SECONDS if has_any else None)
        with self._lock:
            if self._version is not None:
                return self._version, self._index
            failure = self._failure
        raise failure or NotFoundError(f"{self.origin.where} has no index")

    def _refresh(self, done: threading.Event) -> None:
        started = self._now()
        raw, failure = b"", None
        try:
            raw = self.origin.read_index()
            if raw != self._index:
                self._keep(raw)
        except LayerkitError as exc:
            failure = exc
            _log.warning("%s does not answer: %s (%s)", self.origin.where, exc.message, exc.cause)
            raw = self._index or self._read_kept()
        finally:
            with self._lock:
                if raw:
                    self._index, self._version = raw, sha256_digest(raw)
                self._failure = failure
                ended = self._now()
                pause = max(self._refresh_seconds, min(SHARE * (ended - started), MAX_PAUSE))
                self._due = ended + (pause if self._refresh_seconds else 0)
                self._running = None
            done.set()

    def _index_path(self) -> Path:
        name = hashlib.sha256(self.origin.where.encode()).hexdigest()[:16]
        return self.cache.path / f"index-{name}.json"

    def _read_kept(self) -> bytes:
        try:
            return read_file(self._index_path(), MAX_DOCUMENT_SIZE)
        except LayerkitError:
            return b""

    def _keep(self, raw: bytes) -> None:
        try:
            self.cache.disk.make_folder(self.cache.path)
            self.cache.disk.write_atomic(self._index_path(), raw)
        except LayerkitError as exc:
            _log.warning("index is not kept: %s (%s)", exc.message, exc.cause)

"""The node's store: pack files of chunks, and an SQLite index (WAL) that says where each one lies.

Write order (docs/design.md): data (pack: temp, fsync, rename, fsync folder), then index (the rows
of its chunks, one transaction), then the one commit point (the row of the image). A crash leaves,
before the index, a pack without a name in the index, which gc removes; before the commit, chunks
that the next pull finds and does not fetch again. A committed image always reads.

Small blobs (manifests, configs, chunk manifests) lie in the index itself. Many processes may read,
put and gc at once: `sessions` says who is alive, `chunks` and `images` hold what is kept, `sweep`
drops, `check` reads everything. Memory: one chunk.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

from layerkit.digest import Digest
from layerkit.edges.disk import Disk
from layerkit.edges.index import INDEX_DAMAGED, INDEX_NAME, REPAIR_HINT, Index
from layerkit.edges.store.check import VerifyResult, find_broken, verify
from layerkit.edges.store.chunks import Chunks
from layerkit.edges.store.images import ARTIFACT_KIND, CHUNK_MANIFEST_KIND, Images, StoredImage
from layerkit.edges.store.salvage import (
    find_bad_packs,
    has_lost_index,
    list_old_images,
    rebuild_index,
)
from layerkit.edges.store.sessions import Claim, Sessions
from layerkit.edges.store.sweep import GcResult, Sweeper
from layerkit.errors import StoreError

__all__ = [
    "ARTIFACT_KIND",
    "CHUNK_MANIFEST_KIND",
    "Claim",
    "GcResult",
    "Store",
    "StoredImage",
    "VerifyResult",
    "list_old_images",
    "rebuild_index",
]

PACKS_NAME: Final = "packs"
SESSIONS_NAME: Final = "sessions"


class Store:
    """Chunks, small blobs and images under one folder. Not for sharing between threads; each opens
    its own. `quota` in bytes, 0 for none; `now` in seconds since 1970."""

    def __init__(
        self, path: Path, disk: Disk, quota: int = 0, now: Callable[[], float] = time.time
    ) -> None:
        self.path = path
        self.quota = quota
        self._now = now
        disk.make_folder(path)
        if has_lost_index(path):  # a new one would know nothing, and gc would drop all packs
            raise StoreError(
                f"index {path / INDEX_NAME} {INDEX_DAMAGED}: it is gone", hint=REPAIR_HINT
            )
        self._index = Index(path / INDEX_NAME, disk)
        self._chunks = Chunks(path / PACKS_NAME, disk, self._index)
        self._images = Images(self._index)
        self._sessions = Sessions(path / SESSIONS_NAME, disk, self._index)
        self._sweeper = Sweeper(path, disk, self._index, self._chunks, self._images, self._sessions)

    def close(self) -> None:
        """Close the index and all packs."""
        self._index.close()
        self._chunks.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- sessions ----------------------------------------------------------------------------

    def session(self) -> contextlib.AbstractContextManager[str]:
        """What is put from now on stays until the session's end, committed or not."""
        return self._sessions.open()

    def claim(self, raw_ids: Iterable[bytes]) -> Claim:
        """Inside a session: which of these are ours to fetch. Fetch and `release` before waiting
        for the others."""
        return self._sessions.claim(raw_ids)

    def release(self, raw_ids: Iterable[bytes]) -> None:
        """Give claims back; a session's end does it, too."""
        self._sessions.release(raw_ids)

    def wait_for(
        self,
        raw_ids: Iterable[bytes],
        held: Callable[[Iterable[bytes]], set[bytes]] | None = None,
        **patience: float,
    ) -> set[bytes]:
        """Wait for what other sessions have claimed; returns what did not come. `held` says what is
        there now, of ids that are no chunks."""
        return self._sessions.wait_for(raw_ids, held or self.has_raw, **patience)  # type: ignore[arg-type]

    def use(self, digest: Digest) -> contextlib.AbstractContextManager[None]:
        """While an image is being read it is not evicted."""
        return self._sessions.use(digest)

    # --- chunks ------------------------------------------------------------------------------

    def has(self, ids: Iterable[Digest]) -> set[Digest]:
        """Those of `ids` that are held."""
        return {Digest("b3", raw) for raw in self._chunks.has_raw(chunk.raw for chunk in ids)}

    def has_raw(self, raw_ids: Iterable[bytes]) -> set[bytes]:
        """The same for ids as bytes: of ten thousand chunks few are ever needed as values."""
        return self._chunks.has_raw(raw_ids)

    def get_all(self, raw_ids: Sequence[bytes], want: Digest, what: str) -> bytes:
        """Chunks joined, verified as a whole by `want`."""
        return self._chunks.get_all(raw_ids, want, what)

    def get(self, chunk: Digest) -> bytes:
        """The bytes of a chunk, verified. NotFoundError if not held, ChunkDigestError if rotten."""
        return self._chunks.get(chunk)

    def put_many(self, chunks: Iterable[tuple[Digest, bytes]], *, is_new: bool = False) -> int:
        """Put verified chunks into one pack; those held already are skipped, unless the caller has
        looked (`is_new`: then one that came meanwhile lies here twice). Returns the count.
        Durable when it returns. Images are evicted for them; StoreFullError, and nothing is kept,
        where that does not bring them under the quota.
        Memory: what `chunks` yields at a time, and the rows."""
        with self.session() as token:
            return self._chunks.put(chunks, token, guard=self._guard(), is_new=is_new)

    def _guard(self) -> Callable[[int], None]:
        """Makes room for a pack that grows over the quota; refuses it where that is not enough."""
        if not self.quota:
            return lambda size: None
        before = self.usage()

        def check(size: int) -> None:
            nonlocal before
            if before + size > self.quota:
                self.make_room(size)
                before = self.usage()

        return check

    def drop(self, ids: Iterable[Digest]) -> None:
        """Forget chunks (damaged ones), so that they are fetched again."""
        self._chunks.drop(chunk.raw for chunk in ids)

    def give_up(self, ids: Iterable[Digest]) -> None:
        """Forget damaged chunks that cannot be fetched alone: images that need them are no longer
        whole, so that the next pull brings their layers."""
        self.drop(ids)
        self._images.set_broken(find_broken(self._chunks, self._images, set()))

    # --- blobs -------------------------------------------------------------------------------

    def put_blob(self, data: bytes, kind: str = "") -> Digest:
        """Keep a small blob under its digest. `kind` "chunk-manifest" tells gc to look inside."""
        with self.session() as token:
            return self._images.put_blob(data, kind, token)

    def list_kind(self, kind: str) -> list[Digest]:
        """All blobs of a kind, those that are held for the newest images not told apart."""
        return self._images.list_kind(kind)

    def has_blob(self, digest: Digest) -> bool:
        return self._images.has_blob(digest)

    def get_blob(self, digest: Digest) -> bytes:
        """A blob, verified."""
        return self._images.get_blob(digest)

    # --- images ------------------------------------------------------------------------------

    def commit_image(
        self,
        ref: str,
        digest: Digest,
        blobs: Iterable[Digest],
        new: Mapping[Digest, tuple[bytes, str]] | None = None,
        others: Sequence[str] = (),
    ) -> None:
        """The one commit point: `ref` now names `digest`, which needs `blobs` and their chunks; so
        do `others`. `new` are blobs with data and kind, put in the same step. StoreChangedError,
        and nothing is committed, when something of it has gone meanwhile: pull again."""
        used_at = int(self._now())
        session = self._sessions.token
        self._images.commit(ref, digest, blobs, new or {}, used_at, session, others)

    def replace_blobs(
        self, digest: Digest, gone: Iterable[Digest], new: Mapping[Digest, tuple[bytes, str]]
    ) -> None:
        """In one step, image `digest` needs `new` (data and kind) in the place of `gone`."""
        self._images.replace_blobs(digest, gone, new, self._sessions.token)

    def find_image(self, ref: str) -> Digest | None:
        """The digest of a committed image; None if it is not here or lost a part."""
        return self._images.find(ref)

    def is_complete(self, digest: Digest) -> bool:
        """Is `digest` committed, whole, under any reference?"""
        return self._images.is_complete(digest)

    def list_images(self) -> list[StoredImage]:
        return self._images.list_images()

    def list_blobs(self, digest: Digest, kind: str = "") -> list[Digest]:
        """What image `digest` was committed with; with `kind`, those held of that kind."""
        return self._images.list_blobs(digest, kind)

    def touch(self, digest: Digest) -> None:
        """The image was used: it is the last to be evicted."""
        self._images.touch(digest, int(self._now()))

    def remove_image(self, ref: str) -> bool:
        """Forget a reference; gc then drops what nothing else needs."""
        return self._images.remove(ref)

    def pin(self, digest: Digest) -> None:
        """Keep what image `digest` was committed with, even when no reference names it."""
        self._images.pin(digest)

    def unpin(self, digest: Digest) -> None:
        self._images.unpin(digest)

    def list_pins(self) -> list[Digest]:
        return self._images.list_pins()

    def fact(self, name: str) -> str | None:
        """A small fact of this node, such as a measured rate; a hint, never trusted."""
        return self._images.fact(name)

    def put_fact(self, name: str, value: str) -> None:
        self._images.put_fact(name, value)

    # --- dropping and checking ---------------------------------------------------------------

    def usage(self) -> int:
        """Bytes of packs and blobs."""
        return self._sweeper.usage()

    def gc(self, *, dry_run: bool = False) -> GcResult:
        """Drop what neither an image, a pin nor a running pull needs. StoreLockedError while
        another gc runs."""
        return self._sweeper.collect(dry_run=dry_run)

    def evict(self, target: int, keep: Collection[Digest] = ()) -> list[str]:
        """Remove images, the least recently used first, until at most `target` bytes are in use;
        never one that is pinned, being read or in `keep`. Returns their references."""
        return self._sweeper.evict(target, [str(digest) for digest in keep])

    def make_room(self, size: int, keep: Collection[Digest] = ()) -> list[str]:
        """Evict until `size` more bytes fit into the quota; StoreFullError when they cannot."""
        if not self.quota:
            return []
        return self._sweeper.make_room(size, self.quota, [str(digest) for digest in keep])

    def check_index(self) -> None:
        """Raise StoreError unless SQLite finds its file sound."""
        self._index.check()

    def verify(self, *, repair: bool = False) -> VerifyResult:
        """Read everything. `repair` drops damaged copies, so that the next pull fetches them."""
        with self.session():
            return verify(self._chunks, self._images, repair=repair)

    def find_bad_packs(self) -> list[str]:
        """Packs in which something is not as it was written, needed or not."""
        return find_bad_packs(self.path, self._chunks.list_packs())

    def rewrite_packs(self, names: Iterable[str]) -> None:
        """Move what is good in these packs into new ones; the old ones go, and images that need
        what was not good any more are no longer whole."""
        with self.session() as token:
            for name in names:
                self._chunks.move(name, token)
            self._images.set_broken(find_broken(self._chunks, self._images, set()))

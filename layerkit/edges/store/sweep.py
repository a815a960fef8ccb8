"""Dropping what a store does not need: gc, eviction under a quota.

gc runs beside pulls. It keeps what images and pins hold, what living sessions read, and have put,
with the chunks of the chunk manifests among it. What a pull relies on without having said so may
go, and its commit then says so (`StoreChangedError`) in place of committing an image with a hole.
Rows go first, then files: a crash in between leaves files that the next gc removes. A file without
a row is removed only when the session in its name is dead, for only that session could still give
it one. Memory: one chunk manifest, names of packs, ids of the chunks that are moved at once.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from layerkit.digest import Digest
from layerkit.edges.disk import TEMP_PREFIX, Disk
from layerkit.edges.index import REPAIR_HINT, Connection, Index, as_int
from layerkit.edges.store.chunks import Chunks
from layerkit.edges.store.images import CHUNK_MANIFEST_KIND, Images
from layerkit.edges.store.merging import PackUse, choose_packs
from layerkit.edges.store.sessions import Sessions, token_of
from layerkit.errors import IntegrityError, StoreFullError
from layerkit.formats.chunkmanifest import MAGIC, parse_chunk_manifest

__all__ = ["GcResult", "Sweeper"]

LOCK_NAME: Final = "lock"
OWNER: Final = "gc"  # of the packs that it writes: no session, for what is in them is not new
_OWNERS: Final = (
    "(SELECT digest FROM images UNION SELECT digest FROM pins UNION"
    " SELECT digest FROM uses WHERE session IN (SELECT token FROM live_sessions))"
)
_DEAD: Final = (
    " FROM chunks WHERE id NOT IN (SELECT id FROM live_chunks)"
    " AND pack NOT IN (SELECT pack FROM packs WHERE session IN (SELECT token FROM live_sessions))"
)
_DEAD_BLOBS: Final = (
    f" FROM blobs WHERE digest NOT IN (SELECT blob FROM holds WHERE owner IN {_OWNERS})"
    " AND session NOT IN (SELECT token FROM live_sessions)"
)


@dataclass(frozen=True, slots=True)
class GcResult:
    """What gc dropped, or would drop."""

    chunk_count: int
    blob_count: int
    pack_count: int
    freed_size: int


@dataclass(frozen=True, slots=True)
class Sweeper:
    """gc and eviction of one store."""

    path: Path
    disk: Disk
    index: Index
    chunks: Chunks
    images: Images
    sessions: Sessions

    # --- gc ----------------------------------------------------------------------------------

    def collect(self, *, dry_run: bool = False, for_room: bool = False) -> GcResult:
        """Drop what neither an image, a pin nor a living session needs, and join small packs.
        StoreLockedError while another gc runs; IntegrityError while a chunk manifest that an image
        needs is damaged, for then nobody knows which chunks it needs. `for_room`: it waits for
        another one, and joins nothing."""
        with self.disk.lock(self.path / LOCK_NAME, wait=for_room), self.sessions.open():
            self._begin()
            marked = self._mark(set())
            with self.index.transaction() as db:
                self._list_sessions()
                self._mark(marked)  # what came meanwhile
                count, freed = db.execute(f"SELECT COUNT(*), SUM(size){_DEAD}").fetchone()
                (blob_count,) = db.execute(f"SELECT COUNT(*){_DEAD_BLOBS}").fetchone()
                if not dry_run:
                    self._drop(db)
            packs = 0 if dry_run else self._clean(join=not for_room)
            self.index.query("DELETE FROM live_chunks")
        return GcResult(int(count), int(blob_count), packs, int(freed or 0))

    def _begin(self) -> None:
        """Tables of this connection alone."""
        for table, column in (("live_chunks", "id BLOB"), ("live_sessions", "token TEXT")):
            self.index.query(
                f"CREATE TEMP TABLE IF NOT EXISTS {table} ({column} PRIMARY KEY) WITHOUT ROWID"
            )
            self.index.query(f"DELETE FROM {table}")
        self._list_sessions()

    def _list_sessions(self) -> None:
        self.index.query("DELETE FROM live_sessions")
        live = self.sessions.list_live()
        self.index.run_many("INSERT INTO live_sessions VALUES (?)", ((one,) for one in live))

    def _mark(self, known: set[str]) -> set[str]:
        """Put the chunks of all held chunk manifests but `known` into the table; their digests."""
        rows = self.index.query(
            f"SELECT digest FROM blobs WHERE (kind = ? OR SUBSTR(data, 1, {len(MAGIC)}) = ?)"
            f" AND (digest IN (SELECT blob FROM holds WHERE owner IN {_OWNERS})"
            " OR session IN (SELECT token FROM live_sessions))",
            (CHUNK_MANIFEST_KIND, MAGIC),
        )
        found = {str(row[0]) for row in rows}
        for name in sorted(found - known):
            self.index.run_many(
                "INSERT OR IGNORE INTO live_chunks VALUES (?)",
                ((raw,) for raw in self._read_ids(name)),
            )
        return found

    def _read_ids(self, name: str) -> list[bytes]:
        try:
            data = self.images.get_blob(Digest.parse(name))
        except IntegrityError as exc:
            raise IntegrityError(
                f"nothing is dropped: chunk manifest {name[:19]} in the store is damaged",
                got=exc.got,
                want=exc.want,
                hint=REPAIR_HINT,
            ) from exc
        return list(parse_chunk_manifest(data).list_raw_ids())

    def _drop(self, db: Connection) -> None:
        db.execute(f"DELETE{_DEAD_BLOBS}")
        db.execute(f"DELETE{_DEAD}")
        db.execute(f"DELETE FROM holds WHERE owner NOT IN {_OWNERS}")

    def _clean(self, *, join: bool) -> int:
        """Write some packs anew, then remove files that no row will name."""
        rows = self.index.query(
            "SELECT pack, packs.size, COALESCE(SUM(chunks.size), 0), session FROM packs"
            " LEFT JOIN chunks USING (pack) GROUP BY pack ORDER BY pack"
        )
        live = set(self.sessions.list_live())
        packs = [
            PackUse(as_int(pack), as_int(size), as_int(live_size))
            for pack, size, live_size, session in rows
            if str(session) not in live
        ]
        removed = 0
        for some in choose_packs(packs, join=join):
            try:
                removed += self.chunks.rewrite(some, OWNER)
            except StoreFullError:
                break  # whole packs still go, and make room for the next gc
        with self.index.transaction() as db:
            db.execute("DELETE FROM packs WHERE pack NOT IN (SELECT pack FROM chunks)")
        removed += self._remove_files()
        self.sessions.sweep()
        return removed

    def _remove_files(self) -> int:
        packs = self.path / "packs"
        removed = 0
        for name in sorted(os.listdir(packs)):
            token = token_of(name.removeprefix(TEMP_PREFIX))
            if self.sessions.is_live(token):  # our own, too: gc may run within a put
                continue
            # its session is dead by now, so no row comes any more
            if not self.index.query("SELECT 1 FROM packs WHERE name = ?", (name,)):
                removed += self.chunks.remove_pack(name)
        for name in os.listdir(self.path):
            if name.startswith(TEMP_PREFIX):
                self.disk.remove(self.path / name)
        return removed

    # --- quota -------------------------------------------------------------------------------

    def usage(self) -> int:
        """Bytes of packs and blobs; the index's own overhead is some percent more."""
        rows = self.index.query(
            "SELECT COALESCE((SELECT SUM(size) FROM packs), 0)"
            " + COALESCE((SELECT SUM(LENGTH(data)) FROM blobs), 0)"
        )
        return as_int(rows[0][0])

    def evict(self, target: int, keep: Collection[str]) -> list[str]:
        """Remove images, the least recently used first, until at most `target` bytes are in use;
        never one that is pinned, being read or of a digest in `keep`. Returns their
        references. What is left over the target is the caller's to judge."""
        removed: list[str] = []
        if self.usage() <= target:
            return removed
        self.collect(for_room=True)
        while self.usage() > target:
            used = self.sessions.list_used() | set(keep)
            victims = [
                image
                for image in self.images.list_images()
                if not image.pinned and str(image.digest) not in used
            ]
            if not victims:
                break
            oldest = min(victims, key=lambda image: (image.used_at, image.ref))
            self.images.remove(oldest.ref)
            removed.append(oldest.ref)
            self.collect(for_room=True)
        return removed

    def _measure_kept(self, keep: Collection[str]) -> int:
        """Bytes that no eviction frees, at the least: of images that are pinned, being read or in
        `keep`, and of what living sessions have put."""
        self._begin()
        self.index.query("CREATE TEMP TABLE IF NOT EXISTS kept_images (digest TEXT PRIMARY KEY)")
        self.index.query("DELETE FROM kept_images")
        names = self.sessions.list_used() | set(keep)
        self.index.run_many("INSERT INTO kept_images VALUES (?)", ((one,) for one in names))
        self.index.query("INSERT OR IGNORE INTO kept_images SELECT digest FROM pins")
        held = "digest IN (SELECT blob FROM holds JOIN kept_images ON owner = digest)"
        for (name,) in self.index.query(
            f"SELECT digest FROM blobs WHERE SUBSTR(data, 1, {len(MAGIC)}) = ? AND {held}",
            (MAGIC,),
        ):
            ids = ((raw,) for raw in self._read_ids(str(name)))
            self.index.run_many("INSERT OR IGNORE INTO live_chunks VALUES (?)", ids)
        live = "session IN (SELECT token FROM live_sessions)"
        rows = self.index.query(
            f"SELECT COALESCE((SELECT SUM(size) FROM packs WHERE {live}), 0)"
            " + COALESCE((SELECT SUM(size) FROM chunks WHERE id IN (SELECT id FROM live_chunks)"
            f" AND pack NOT IN (SELECT pack FROM packs WHERE {live})), 0)"
            f" + COALESCE((SELECT SUM(LENGTH(data)) FROM blobs WHERE {held} OR {live}), 0)"
        )
        self.index.query("DELETE FROM live_chunks")
        return as_int(rows[0][0])

    def make_room(self, size: int, quota: int, keep: Collection[str]) -> list[str]:
        """Evict until `size` more bytes fit into `quota`; StoreFullError when they cannot: before
        anything is evicted, where what has to stay leaves no room for them."""
        if size > quota:
            raise StoreFullError(
                f"{size} bytes do not fit into the quota of {quota}", hint="raise --quota"
            )
        if self.usage() + size <= quota:
            return []
        stays = self._measure_kept(keep)
        if stays + size > quota:
            raise StoreFullError(
                f"{size} bytes do not fit: {stays} of {quota} bytes have to stay",
                cause="they are pinned, being read or pulled right now; nothing was evicted",
                hint="raise --quota, or unpin images",
            )
        removed = self.evict(quota - size, keep)
        left = self.usage()
        if left + size > quota:
            raise StoreFullError(
                f"{size} bytes do not fit: {left} of {quota} bytes are in use",
                cause="what is left is pinned or being read",
                hint="raise --quota, or unpin or remove images",
            )
        return removed

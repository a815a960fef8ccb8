"""The node's store: pack files of chunks, and an SQLite index (WAL) that says where each one lies.

Write order (docs/design.md): data (pack: temp, fsync, rename, fsync folder), then index (the rows
of its chunks, one transaction), then the one commit point (the row of the image). A crash leaves,
before the index, a pack without a name in the index, which gc removes; before the commit, chunks
that the next pull finds and does not fetch again. A committed image always reads.

Small blobs (manifests, configs, chunk manifests) lie in the index itself. Many processes may read
and put at once; they hold the store's lock shared, gc holds it alone. A chunk is verified when it
is read: bit rot is a ChunkDigestError, never wrong bytes. Memory: one chunk, and for gc and verify
the ids of all chunks.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Final

from layerkit.digest import Digest, check_digest, chunk_id, sha256_digest
from layerkit.edges.disk import TEMP_PREFIX, Disk
from layerkit.edges.index import INDEX_NAME, REPAIR_HINT, Index, as_bytes, as_int
from layerkit.edges.pack import PACK_RECORD, PACK_START, PackReader, scan_pack
from layerkit.errors import (
    ChunkDigestError,
    FormatError,
    IntegrityError,
    NotFoundError,
    StoreError,
)
from layerkit.formats.chunker import MAX_CHUNK_SIZE
from layerkit.formats.chunkmanifest import parse_chunk_manifest

__all__ = [
    "ARTIFACT_KIND",
    "CHUNK_MANIFEST_KIND",
    "GcResult",
    "Store",
    "StoredImage",
    "VerifyResult",
    "rebuild_index",
]

LOCK_NAME: Final = "lock"
PACKS_NAME: Final = "packs"
MAX_BLOB_SIZE: Final = 64 << 20  # bytes: blobs in the index are small
REWRITE_BELOW: Final = 0.5  # a pack is rewritten when less than this part of it is in use
QUERY_COUNT: Final = 500  # ids a query; SQLite's oldest default limit is 999
GROUP_SIZE: Final = 4 << 20  # bytes of chunks looked up together before they are written
CHUNK_MANIFEST_KIND: Final = "chunk-manifest"
ARTIFACT_KIND: Final = "chunks-artifact"


@dataclass(frozen=True, slots=True)
class StoredImage:
    """A committed image: its reference and the digest that it resolved to."""

    ref: str
    digest: Digest
    complete: bool
    pinned: bool


@dataclass(frozen=True, slots=True)
class GcResult:
    """What gc dropped, or would drop."""

    chunk_count: int
    blob_count: int
    pack_count: int
    freed_size: int


@dataclass(frozen=True, slots=True)
class VerifyResult:
    """What verify read, and what it found damaged."""

    chunk_count: int
    blob_count: int
    image_count: int
    bad_chunks: tuple[Digest, ...] = ()
    bad_blobs: tuple[Digest, ...] = ()
    broken_images: tuple[str, ...] = ()
    repaired: bool = False
    index_rebuilt: bool = field(default=False)

    @property
    def good(self) -> bool:
        return not (self.bad_chunks or self.bad_blobs or self.broken_images or self.index_rebuilt)


class Store:
    """Chunks, small blobs and images under one folder. Not for sharing between threads."""

    def __init__(self, path: Path, disk: Disk) -> None:
        self.path = path
        self._disk = disk
        self._packs = path / PACKS_NAME
        disk.make_folder(self._packs)
        self._reader = PackReader(self._packs)
        self._index = Index(path / INDEX_NAME, disk)

    def close(self) -> None:
        """Close the index and all packs."""
        self._index.close()
        self._reader.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def session(self) -> contextlib.AbstractContextManager[None]:
        """Hold the store so that gc waits: what is put now stays until it is committed."""
        return self._disk.lock(self.path / LOCK_NAME, shared=True, wait=True)

    # --- chunks ----------------------------------------------------------------------------

    def has(self, ids: Iterable[Digest]) -> set[Digest]:
        """Those of `ids` that are held."""
        return {Digest("b3", raw) for raw in self._find({chunk.raw for chunk in ids})}

    def has_raw(self, raw_ids: Iterable[bytes]) -> set[bytes]:
        """The same for ids as bytes: of ten thousand chunks few are ever needed as values."""
        return set(self._find(set(raw_ids)))

    def _find(self, raw_ids: set[bytes]) -> dict[bytes, tuple[str, int, int]]:
        """Where chunks lie: pack, offset, size."""
        wanted = sorted(raw_ids)  # in the index's own order
        found: dict[bytes, tuple[str, int, int]] = {}
        names = {row[0]: str(row[1]) for row in self._index.query("SELECT pack, name FROM packs")}
        for start in range(0, len(wanted), QUERY_COUNT):
            raw = wanted[start : start + QUERY_COUNT]
            marks = ",".join("?" * len(raw))
            for name, pack, offset, size in self._index.query(
                f"SELECT id, pack, offset, size FROM chunks WHERE id IN ({marks})", raw
            ):
                found[as_bytes(name)] = (names.get(pack, ""), as_int(offset), as_int(size))
        return found

    def get_all(self, raw_ids: Sequence[bytes], want: Digest, what: str) -> bytes:
        """Chunks joined, verified as a whole by `want`; when it does not match, one by one, so that
        the error names the damaged chunk."""
        places = self._find(set(raw_ids))
        if len(places) == len(set(raw_ids)):
            data = self._reader.read_all([places[raw] for raw in raw_ids])
            if data is not None and sha256_digest(data) == want:
                return data
        data = b"".join(self.get(Digest("b3", raw)) for raw in raw_ids)
        check_digest(data, want, what)
        return data

    def get(self, chunk: Digest) -> bytes:
        """The bytes of a chunk, verified. NotFoundError if not held, ChunkDigestError if rotten."""
        for _ in range(2):  # gc may move a chunk to another pack between row and file
            rows = self._index.query(
                "SELECT name, offset, chunks.size FROM chunks JOIN packs USING (pack) WHERE id = ?",
                (chunk.raw,),
            )
            if not rows:
                break
            name, offset, size = str(rows[0][0]), as_int(rows[0][1]), as_int(rows[0][2])
            data = self._reader.read(name, offset, size)
            if data is not None:
                check_digest(data, chunk, f"chunk {chunk.short} in the store")
                return data
        else:
            raise ChunkDigestError(
                f"chunk {chunk.short} in the store has lost its pack",
                got="no file",
                want=str(chunk),
                hint=REPAIR_HINT,
            )
        raise NotFoundError(f"chunk {chunk.short} is not in the store")

    def put_many(self, chunks: Iterable[tuple[Digest, bytes]]) -> int:
        """Put verified chunks into one pack; those held already are skipped. Returns the count.

        Durable when it returns. Memory: what `chunks` yields at a time, and the rows.
        """
        with self.session():
            rows = self._write_pack(chunks, skip_held=True)
        return rows

    def _write_pack(self, chunks: Iterable[tuple[Digest, bytes]], *, skip_held: bool) -> int:
        name = f"{secrets.token_hex(12)}.pack"
        rows: list[tuple[bytes, int, int]] = []
        seen: set[Digest] = set()
        with self._disk.open_new(self._packs / name) as file:
            file.write(PACK_START)
            buffer = bytearray()
            for chunk, data in self._lacking(chunks) if skip_held else chunks:
                if chunk in seen:
                    continue
                if not 0 < len(data) <= MAX_CHUNK_SIZE:
                    raise FormatError(f"chunk {chunk.short} of {len(data)} bytes cannot be stored")
                seen.add(chunk)
                buffer += PACK_RECORD.pack(len(data), chunk.raw)
                rows.append((chunk.raw, file.size + len(buffer), len(data)))
                buffer += data
                if len(buffer) >= MAX_CHUNK_SIZE:
                    file.write(buffer)
                    buffer.clear()
            if not rows:
                return 0
            file.write(buffer)
            file.commit()
        self._index_pack(name, file.size, rows, replace=not skip_held)
        return len(rows)

    def _lacking(self, chunks: Iterable[tuple[Digest, bytes]]) -> Iterator[tuple[Digest, bytes]]:
        """Those that are not held, looked up in groups of up to GROUP_SIZE bytes."""
        group: list[tuple[Digest, bytes]] = []
        size = 0
        for pair in chain(chunks, [None]):
            if pair is not None:
                group.append(pair)
                size += len(pair[1])
            if pair is None or size >= GROUP_SIZE or len(group) == QUERY_COUNT:
                held = self.has_raw(chunk.raw for chunk, _ in group)
                yield from (pair for pair in group if pair[0].raw not in held)
                group, size = [], 0

    def _index_pack(
        self, name: str, size: int, rows: list[tuple[bytes, int, int]], *, replace: bool
    ) -> None:
        verb = "INSERT OR REPLACE" if replace else "INSERT OR IGNORE"
        with self._index.transaction() as db:
            pack = db.execute("INSERT INTO packs (name, size) VALUES (?, ?)", (name, size))
            number = pack.lastrowid
            db.executemany(
                f"{verb} INTO chunks (id, pack, offset, size) VALUES (?, ?, ?, ?)",
                ((raw, number, offset, length) for raw, offset, length in rows),
            )

    def drop(self, ids: Iterable[Digest]) -> None:
        """Forget chunks (damaged ones), so that they are fetched again."""
        with self._index.transaction() as db:
            db.executemany("DELETE FROM chunks WHERE id = ?", ((chunk.raw,) for chunk in ids))

    # --- blobs -----------------------------------------------------------------------------

    def put_blob(self, data: bytes, kind: str = "") -> Digest:
        """Keep a small blob under its digest. `kind` "chunk-manifest" tells gc to look inside."""
        if len(data) > MAX_BLOB_SIZE:
            raise StoreError(f"blob of {len(data)} bytes is over the limit of {MAX_BLOB_SIZE}")
        digest = sha256_digest(data)
        with self.session(), self._index.transaction() as db:
            db.execute(
                "INSERT OR REPLACE INTO blobs (digest, kind, data) VALUES (?, ?, ?)",
                (str(digest), kind, data),
            )
        return digest

    def list_kind(self, kind: str) -> list[Digest]:
        """All blobs of a kind, those that are held for the newest images not told apart."""
        rows = self._index.query("SELECT digest FROM blobs WHERE kind = ? ORDER BY digest", (kind,))
        return [Digest.parse(str(row[0])) for row in rows]

    def has_blob(self, digest: Digest) -> bool:
        return bool(self._index.query("SELECT 1 FROM blobs WHERE digest = ?", (str(digest),)))

    def get_blob(self, digest: Digest) -> bytes:
        """A blob, verified."""
        rows = self._index.query("SELECT data FROM blobs WHERE digest = ?", (str(digest),))
        if not rows:
            raise NotFoundError(f"blob {digest.short} is not in the store")
        data = as_bytes(rows[0][0])
        check_digest(data, digest, f"blob {digest.short} in the store")
        return data

    # --- images ----------------------------------------------------------------------------

    def commit_image(self, ref: str, digest: Digest, blobs: Iterable[Digest]) -> None:
        """The one commit point: `ref` now names `digest`, which needs `blobs` and their chunks."""
        with self._index.transaction() as db:
            owner = str(digest)
            db.executemany(
                "INSERT OR IGNORE INTO holds (owner, blob) VALUES (?, ?)",
                ((owner, str(blob)) for blob in blobs),
            )
            db.execute(
                "INSERT OR REPLACE INTO images (ref, digest, complete) VALUES (?, ?, 1)",
                (ref, owner),
            )

    def find_image(self, ref: str) -> Digest | None:
        """The digest of a committed image; None if it is not here or lost a part."""
        rows = self._index.query("SELECT digest FROM images WHERE ref = ? AND complete = 1", (ref,))
        return Digest.parse(str(rows[0][0])) if rows else None

    def is_complete(self, digest: Digest) -> bool:
        """Is `digest` committed, whole, under any reference?"""
        return bool(
            self._index.query(
                "SELECT 1 FROM images WHERE digest = ? AND complete = 1", (str(digest),)
            )
        )

    def list_images(self) -> list[StoredImage]:
        rows = self._index.query(
            "SELECT ref, images.digest, complete, pins.digest IS NOT NULL FROM images"
            " LEFT JOIN pins ON pins.digest = images.digest ORDER BY ref"
        )
        return [
            StoredImage(str(ref), Digest.parse(str(digest)), bool(complete), bool(pinned))
            for ref, digest, complete, pinned in rows
        ]

    def list_blobs(self, digest: Digest, kind: str = "") -> list[Digest]:
        """What image `digest` was committed with; with `kind`, those held of that kind."""
        sql = "SELECT blob FROM holds WHERE owner = ? ORDER BY blob"
        values = [str(digest)]
        if kind:
            sql = (
                "SELECT blob FROM holds JOIN blobs ON blobs.digest = holds.blob"
                " WHERE owner = ? AND kind = ? ORDER BY blob"
            )
            values.append(kind)
        return [Digest.parse(str(row[0])) for row in self._index.query(sql, values)]

    def remove_image(self, ref: str) -> bool:
        """Forget a reference; gc then drops what nothing else needs."""
        with self._index.transaction() as db:
            return db.execute("DELETE FROM images WHERE ref = ?", (ref,)).rowcount > 0

    def pin(self, digest: Digest) -> None:
        """Keep what image `digest` was committed with, even when no reference names it."""
        with self._index.transaction() as db:
            db.execute("INSERT OR IGNORE INTO pins (digest) VALUES (?)", (str(digest),))

    def unpin(self, digest: Digest) -> None:
        with self._index.transaction() as db:
            db.execute("DELETE FROM pins WHERE digest = ?", (str(digest),))

    # --- gc --------------------------------------------------------------------------------

    def gc(self, *, dry_run: bool = False) -> GcResult:
        """Drop what neither an image nor a pin needs. StoreLockedError while a pull is running.

        Rows go first, then files: a crash in between leaves files that the next gc removes.
        """
        with self._disk.lock(self.path / LOCK_NAME):
            blobs, chunks = self._mark()
            dead_blobs = [
                digest for digest in self._names("SELECT digest FROM blobs") if digest not in blobs
            ]
            rows = self._index.query("SELECT id, size FROM chunks")
            dead_chunks = [(raw, size) for raw, size in rows if raw not in chunks]
            freed = sum(as_int(size) for _, size in dead_chunks)
            if not dry_run:
                with self._index.transaction() as db:
                    db.executemany("DELETE FROM blobs WHERE digest = ?", ((d,) for d in dead_blobs))
                    db.executemany(
                        "DELETE FROM chunks WHERE id = ?", ((c,) for c, _ in dead_chunks)
                    )
                    db.execute(
                        "DELETE FROM holds WHERE owner NOT IN"
                        " (SELECT digest FROM images UNION SELECT digest FROM pins)"
                    )
                packs = self._clean_packs()
            else:
                packs = 0
        return GcResult(len(dead_chunks), len(dead_blobs), packs, freed)

    def _names(self, sql: str) -> list[str]:
        return [str(row[0]) for row in self._index.query(sql)]

    def _mark(self) -> tuple[set[str], set[bytes]]:
        """Blobs and chunks that something needs."""
        blobs = set(
            self._names(
                "SELECT blob FROM holds WHERE owner IN"
                " (SELECT digest FROM images UNION SELECT digest FROM pins)"
            )
        )
        chunks: set[bytes] = set()
        for digest in self._names(
            f"SELECT digest FROM blobs WHERE kind = '{CHUNK_MANIFEST_KIND}' ORDER BY digest"
        ):
            if digest in blobs:
                chunks.update(self._chunks_of(digest))
        return blobs, chunks

    def _chunks_of(self, digest: str) -> set[bytes]:
        """Ids in a stored chunk manifest; none if it is damaged (verify reports that)."""
        try:
            data = self.get_blob(Digest.parse(digest))
        except (IntegrityError, NotFoundError):
            return set()
        return set(parse_chunk_manifest(data).list_raw_ids())

    def _clean_packs(self) -> int:
        """Rewrite packs that are mostly unused, then remove files that no row names."""
        used = self._index.query(
            "SELECT pack, name, packs.size, COALESCE(SUM(chunks.size), 0) FROM packs"
            " LEFT JOIN chunks USING (pack) GROUP BY pack ORDER BY pack"
        )
        for pack, _, size, live in used:
            if 0 < as_int(live) < REWRITE_BELOW * as_int(size):
                self._rewrite_pack(as_int(pack))
        with self._index.transaction() as db:
            db.execute("DELETE FROM packs WHERE pack NOT IN (SELECT pack FROM chunks)")
        known = set(self._names("SELECT name FROM packs"))
        removed = 0
        for entry in sorted(os.listdir(self._packs)):
            if entry not in known:
                self._reader.forget(entry)
                removed += self._disk.remove(self._packs / entry)
        for entry in os.listdir(self.path):
            if entry.startswith(TEMP_PREFIX):
                self._disk.remove(self.path / entry)
        return removed

    def _rewrite_pack(self, pack: int) -> None:
        """Copy the live, undamaged chunks of a pack into a new one; the old one loses its rows."""
        rows = self._index.query("SELECT id FROM chunks WHERE pack = ? ORDER BY offset", (pack,))

        def live() -> Iterator[tuple[Digest, bytes]]:
            for (raw,) in rows:
                chunk = Digest("b3", as_bytes(raw))
                with contextlib.suppress(ChunkDigestError):  # stays in the old pack for verify
                    yield chunk, self.get(chunk)

        self._write_pack(live(), skip_held=False)

    def check_index(self) -> None:
        """Raise StoreError unless SQLite finds its file sound."""
        self._index.check()

    # --- verify ----------------------------------------------------------------------------

    def verify(self, *, repair: bool = False) -> VerifyResult:
        """Read everything. `repair` drops damaged copies, so that the next pull fetches them."""
        with self.session():
            bad_chunks, chunk_count = self._find_bad_chunks()
            bad_blobs, blob_count = self._find_bad_blobs()
            if repair and (bad_chunks or bad_blobs):
                with self._index.transaction() as db:
                    db.executemany(
                        "DELETE FROM chunks WHERE id = ?", ((c.raw,) for c in bad_chunks)
                    )
                    db.executemany(
                        "DELETE FROM blobs WHERE digest = ?", ((str(d),) for d in bad_blobs)
                    )
            broken = self._find_broken_images(set(bad_chunks), set(bad_blobs))
            if repair and broken:
                with self._index.transaction() as db:
                    db.executemany(
                        "UPDATE images SET complete = 0 WHERE ref = ?", ((r,) for r in broken)
                    )
        images = len(self._index.query("SELECT 1 FROM images"))
        return VerifyResult(
            chunk_count,
            blob_count,
            images,
            tuple(bad_chunks),
            tuple(bad_blobs),
            tuple(broken),
            repair,
        )

    def _find_bad_chunks(self) -> tuple[list[Digest], int]:
        rows = self._index.query(
            "SELECT id, name, offset, chunks.size FROM chunks LEFT JOIN packs USING (pack)"
            " ORDER BY pack, offset"
        )
        bad = []
        for raw, name, offset, size in rows:
            data = self._reader.read(str(name), as_int(offset), as_int(size)) if name else None
            if data is None or chunk_id(data).raw != raw:
                bad.append(Digest("b3", as_bytes(raw)))
        return bad, len(rows)

    def _find_bad_blobs(self) -> tuple[list[Digest], int]:
        names = self._names("SELECT digest FROM blobs ORDER BY digest")
        bad = []
        for name in names:
            try:
                self.get_blob(Digest.parse(name))
            except IntegrityError:
                bad.append(Digest.parse(name))
        return bad, len(names)

    def _find_broken_images(self, bad_chunks: set[Digest], bad_blobs: set[Digest]) -> list[str]:
        """References whose image lacks a blob or a chunk, or has a damaged one."""
        broken = []
        for image in self.list_images():
            blobs = self.list_blobs(image.digest)
            if any(blob in bad_blobs or not self.has_blob(blob) for blob in blobs):
                broken.append(image.ref)
                continue
            manifests = self.list_blobs(image.digest, CHUNK_MANIFEST_KIND)
            ids = {raw for blob in manifests for raw in self._chunks_of(str(blob))}
            if any(chunk.raw in ids for chunk in bad_chunks) or self.has_raw(ids) != ids:
                broken.append(image.ref)
        return broken


def rebuild_index(path: Path, disk: Disk) -> int:
    """Make a new index from the packs when the old one is unreadable; returns the chunk count.

    Images are forgotten; the next pull finds the chunks and fetches only the small blobs.
    """
    with disk.lock(path / LOCK_NAME):
        for suffix in ("", "-wal", "-shm"):
            disk.remove(path / f"{INDEX_NAME}{suffix}")
        with Store(path, disk) as store:
            count = 0
            for name in sorted(os.listdir(path / PACKS_NAME)):
                rows = [] if name.startswith(TEMP_PREFIX) else scan_pack(path / PACKS_NAME / name)
                if rows:
                    size = (path / PACKS_NAME / name).stat().st_size
                    store._index_pack(name, size, rows, replace=False)
                    count += len(rows)
    return count

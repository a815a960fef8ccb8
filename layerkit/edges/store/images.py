"""Images of a store: references, what each image holds, small blobs, pins, facts.

A row of `images` is the commit point of a pull. Its seal is a BLAKE3 hash over the row and the list
of what it holds: SQLite has no checksums, and a flipped bit in a reference or a list would else be
believed. A commit checks, in its own transaction, that all that the image needs is there.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from layerkit.digest import Digest, check_digest, chunk_id, sha256_digest
from layerkit.edges.index import SCHEMA_FACT, Connection, Index, as_bytes
from layerkit.errors import (
    FormatError,
    IntegrityError,
    NotFoundError,
    StoreChangedError,
    StoreError,
)
from layerkit.formats.chunkmanifest import MAGIC, parse_chunk_manifest

__all__ = [
    "ARTIFACT_KIND",
    "CHUNK_MANIFEST_KIND",
    "Images",
    "StoredImage",
    "is_chunk_manifest",
    "is_sealed",
    "open_fact",
]

MAX_BLOB_SIZE: Final = 64 << 20  # bytes: blobs in the index are small
MAX_FACT_SIZE: Final = 4096  # characters
# of ids end to end: in one value, for binding each takes longer than finding it
_COUNT_CHUNKS: Final = """
WITH RECURSIVE places (at) AS (
    SELECT 0 WHERE ?1 > 0 UNION ALL SELECT at + 1 FROM places WHERE at + 1 < ?1)
SELECT COUNT(*) FROM places CROSS JOIN chunks ON id = substr(?2, 32 * at + 1, 32)
"""
CHUNK_MANIFEST_KIND: Final = "chunk-manifest"
ARTIFACT_KIND: Final = "chunks-artifact"


@dataclass(frozen=True, slots=True)
class StoredImage:
    """A committed image: its reference and the digest that it resolved to."""

    ref: str
    digest: Digest
    complete: bool
    pinned: bool
    used_at: int = 0  # seconds since 1970


class Images:
    """Blobs, images, pins and facts of one store."""

    def __init__(self, index: Index) -> None:
        self._index = index

    # --- blobs -----------------------------------------------------------------------------

    def put_blob(self, data: bytes, kind: str, session: str) -> Digest:
        """Keep a small blob, for as long as the session lives or an image holds it."""
        digest = sha256_digest(data)
        with self._index.transaction() as db:
            _put_blob(db, digest, data, kind, session)
        return digest

    def list_kind(self, kind: str) -> list[Digest]:
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

    def find_bad_blobs(self) -> tuple[list[Digest], list[str], int]:
        """Damaged blobs, names that are no digests, and how many blobs there are."""
        rows = self._index.query("SELECT digest, kind FROM blobs")
        kinds = {str(name): str(kind) for name, kind in rows}
        bad: list[Digest] = []
        nameless: list[str] = []
        for name in sorted(kinds):
            try:
                digest = Digest.parse(name)
            except FormatError:
                nameless.append(name)
                continue
            try:
                if is_chunk_manifest(self.get_blob(digest)) != (kinds[name] == CHUNK_MANIFEST_KIND):
                    bad.append(digest)  # its kind is wrong, and with it what is found by kind
            except IntegrityError:
                bad.append(digest)
        return bad, nameless, len(kinds)

    # --- images ----------------------------------------------------------------------------

    def commit(
        self,
        ref: str,
        digest: Digest,
        blobs: Iterable[Digest],
        new: Mapping[Digest, tuple[bytes, str]],
        used_at: int,
        session: str,
        others: Sequence[str] = (),
    ) -> None:
        """The one commit point: `ref` (and `others`) names `digest`, which needs `blobs` (what it
        held before, too) and the chunks of the chunk manifests among them. StoreChangedError if any
        is gone."""
        owner, blobs = str(digest), list(blobs)
        with self._index.transaction() as db:
            for each, (data, kind) in new.items():
                _put_blob(db, each, data, kind, session)
            db.executemany(
                "INSERT OR IGNORE INTO holds (owner, blob) VALUES (?, ?)",
                ((owner, str(blob)) for blob in blobs),
            )
            _forget_lost(db, owner, set(map(str, blobs)))
            held = _holds(db, owner)
            _check_whole(db, held)
            db.executemany(
                "INSERT OR REPLACE INTO images (ref, digest, complete, used_at, seal)"
                " VALUES (?, ?, 1, ?, ?)",
                [(name, owner, used_at, _seal(name, owner, held)) for name in (ref, *others)],
            )
            _seal_others(db, owner, held, ref)

    def replace_blobs(
        self,
        digest: Digest,
        gone: Iterable[Digest],
        new: Mapping[Digest, tuple[bytes, str]],
        session: str,
    ) -> None:
        """In one step, image `digest` no longer needs `gone`, and needs `new`."""
        owner = str(digest)
        with self._index.transaction() as db:
            for each, (data, kind) in new.items():
                _put_blob(db, each, data, kind, session)
            db.executemany(
                "DELETE FROM holds WHERE owner = ? AND blob = ?",
                ((owner, str(blob)) for blob in gone),
            )
            db.executemany(
                "INSERT OR IGNORE INTO holds (owner, blob) VALUES (?, ?)",
                ((owner, str(blob)) for blob in new),
            )
            held = _holds(db, owner)
            _check_whole(db, held)
            _seal_others(db, owner, held, "")

    def find(self, ref: str) -> Digest | None:
        """The digest of a committed image; None if it is not here or lost a part."""
        rows = self._index.query(
            "SELECT digest, seal FROM images WHERE ref = ? AND complete = 1", (ref,)
        )
        if not rows:
            return None
        owner, seal = str(rows[0][0]), rows[0][1]
        if seal is not None and seal != _seal(ref, owner, self._held(owner)):
            return None  # damaged: as if it were not here; verify says so
        return Digest.parse(owner)

    def is_complete(self, digest: Digest) -> bool:
        """Is `digest` committed, whole, under any reference?"""
        rows = self._index.query(
            "SELECT ref FROM images WHERE digest = ? AND complete = 1", (str(digest),)
        )
        return any(self.find(str(row[0])) is not None for row in rows)

    def list_images(self) -> list[StoredImage]:
        rows = self._index.query(
            "SELECT ref, images.digest, complete, pins.digest IS NOT NULL, used_at, seal"
            " FROM images LEFT JOIN pins ON pins.digest = images.digest ORDER BY ref"
        )
        found = []
        for ref, digest, complete, pinned, used_at, seal in rows:
            good = seal is None or seal == _seal(str(ref), str(digest), self._held(str(digest)))
            try:
                parsed = Digest.parse(str(digest))
            except FormatError:
                continue  # damaged: verify names it
            stamp = used_at if isinstance(used_at, int) else 0
            found.append(
                StoredImage(str(ref), parsed, bool(complete) and good, bool(pinned), stamp)
            )
        return found

    def find_bad_rows(self) -> list[str]:
        """References of rows whose seal is broken."""
        rows = self._index.query("SELECT ref, digest, seal FROM images WHERE seal IS NOT NULL")
        return sorted(
            str(ref)
            for ref, digest, seal in rows
            if seal != _seal(str(ref), str(digest), self._held(str(digest)))
        )

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

    def touch(self, digest: Digest, used_at: int) -> None:
        """The image was used."""
        with self._index.transaction(is_hint=True) as db:
            db.execute("UPDATE images SET used_at = ? WHERE digest = ?", (used_at, str(digest)))

    def remove(self, ref: str) -> bool:
        with self._index.transaction() as db:
            return db.execute("DELETE FROM images WHERE ref = ?", (ref,)).rowcount > 0

    def set_broken(self, refs: Iterable[str]) -> None:
        """These images lack something: the next pull makes them whole."""
        with self._index.transaction() as db:
            db.executemany("UPDATE images SET complete = 0 WHERE ref = ?", ((r,) for r in refs))

    def drop_blobs(self, names: Iterable[str]) -> None:
        with self._index.transaction() as db:
            db.executemany("DELETE FROM blobs WHERE digest = ?", ((name,) for name in names))

    def restore(self, ref: str, digest: str, held: list[str], used_at: int) -> None:
        """An image of a damaged index; whether it is whole is for `verify` to say."""
        self.restore_holds(digest, held)
        with self._index.transaction() as db:
            db.execute(
                "INSERT OR REPLACE INTO images (ref, digest, complete, used_at, seal)"
                " VALUES (?, ?, 1, ?, ?)",
                (ref, digest, used_at, _seal(ref, digest, held)),
            )

    def restore_holds(self, digest: str, held: Iterable[str]) -> None:
        with self._index.transaction() as db:
            db.executemany(
                "INSERT OR IGNORE INTO holds (owner, blob) VALUES (?, ?)",
                ((digest, blob) for blob in held),
            )

    def _held(self, owner: str) -> list[str]:
        rows = self._index.query("SELECT blob FROM holds WHERE owner = ? ORDER BY blob", (owner,))
        return [str(row[0]) for row in rows]

    # --- pins and facts --------------------------------------------------------------------

    def pin(self, digest: Digest) -> None:
        with self._index.transaction() as db:
            db.execute("INSERT OR IGNORE INTO pins (digest) VALUES (?)", (str(digest),))

    def unpin(self, digest: Digest) -> None:
        with self._index.transaction() as db:
            db.execute("DELETE FROM pins WHERE digest = ?", (str(digest),))

    def drop_pin(self, name: str) -> None:
        with self._index.transaction() as db:
            db.execute("DELETE FROM pins WHERE digest = ?", (name,))

    def list_pins(self) -> list[Digest]:
        """Those that are digests; verify names the others."""
        found = []
        for (name,) in self._index.query("SELECT digest FROM pins ORDER BY digest"):
            with contextlib.suppress(FormatError):
                found.append(Digest.parse(str(name)))
        return found

    def find_bad_pins(self) -> list[str]:
        """Pins of what no image ever held: a bit of them, or of their image, is wrong."""
        rows = self._index.query(
            "SELECT digest FROM pins WHERE digest NOT IN (SELECT owner FROM holds) ORDER BY digest"
        )
        return [str(row[0]) for row in rows]

    def fact(self, name: str) -> str | None:
        """A small fact of this node, such as a measured rate; a damaged one is none."""
        rows = self._index.query("SELECT value FROM facts WHERE name = ?", (name,))
        return open_fact(name, str(rows[0][0])) if rows else None

    def put_fact(self, name: str, value: str) -> None:
        """An empty value: there is no such fact any more."""
        if len(value) > MAX_FACT_SIZE:
            raise StoreError(f"fact {name} of {len(value)} characters is over {MAX_FACT_SIZE}")
        with self._index.transaction(is_hint=True) as db:
            if not value:
                db.execute("DELETE FROM facts WHERE name = ?", (name,))
                return
            db.execute(
                "INSERT OR REPLACE INTO facts (name, value) VALUES (?, ?)",
                (name, _seal_fact(name, value)),
            )

    def find_bad_facts(self) -> list[str]:
        rows = self._index.query(
            "SELECT name, value FROM facts WHERE name != ? ORDER BY name", (SCHEMA_FACT,)
        )
        return [str(name) for name, value in rows if open_fact(str(name), str(value)) is None]

    def drop_facts(self, names: Iterable[str]) -> None:
        with self._index.transaction() as db:
            db.executemany("DELETE FROM facts WHERE name = ?", ((name,) for name in names))


def _seal_fact(name: str, value: str) -> str:
    """A fact as it is kept: eight hexadecimal digits of its BLAKE3, then the value."""
    return chunk_id(f"{name}\n{value}".encode("utf-8", "replace")).raw[:4].hex() + value


def open_fact(name: str, kept: str) -> str | None:
    value = kept[8:]
    return value if kept == _seal_fact(name, value) else None


def _put_blob(db: Connection, digest: Digest, data: bytes, kind: str, session: str) -> None:
    """A kind that is known stays known."""
    if len(data) > MAX_BLOB_SIZE:
        raise StoreError(f"blob of {len(data)} bytes is over the limit of {MAX_BLOB_SIZE}")
    db.execute(
        "INSERT INTO blobs (digest, kind, data, session) VALUES (?, ?, ?, ?)"
        " ON CONFLICT (digest) DO UPDATE SET data = excluded.data, session = excluded.session,"
        " kind = CASE excluded.kind WHEN '' THEN kind ELSE excluded.kind END",
        (str(digest), kind, data, session),
    )


def is_chunk_manifest(data: bytes) -> bool:
    """By itself: the kind beside it may be rotten, and gc must not drop chunks for that."""
    return data.startswith(MAGIC)


def _holds(db: Connection, owner: str) -> list[str]:
    rows = db.execute("SELECT blob FROM holds WHERE owner = ? ORDER BY blob", (owner,))
    return [str(row[0]) for row in rows.fetchall()]


def _forget_lost(db: Connection, owner: str, wanted: set[str]) -> None:
    """An image that lost a blob may be made whole by another one in its place."""
    rows = db.execute(
        "SELECT blob FROM holds WHERE owner = ? AND blob NOT IN (SELECT digest FROM blobs)",
        (owner,),
    ).fetchall()
    db.executemany(
        "DELETE FROM holds WHERE owner = ? AND blob = ?",
        ((owner, name) for (name,) in rows if str(name) not in wanted),
    )


def _check_whole(db: Connection, held: list[str]) -> None:
    """Is all that an image holds there? A gc beside a pull may drop what that pull relied on."""
    for name in held:
        row = db.execute("SELECT data FROM blobs WHERE digest = ?", (name,)).fetchone()
        if row is None:
            raise StoreChangedError(f"blob {name[:19]} has gone from the store meanwhile")
        if is_chunk_manifest(as_bytes(row[0])):
            _check_chunks(db, set(parse_chunk_manifest(as_bytes(row[0])).list_raw_ids()))


def _check_chunks(db: Connection, raw_ids: set[bytes]) -> None:
    found = db.execute(_COUNT_CHUNKS, (len(raw_ids), b"".join(sorted(raw_ids)))).fetchone()
    if found[0] != len(raw_ids):
        raise StoreChangedError("chunks have gone from the store meanwhile")


def _seal_others(db: Connection, owner: str, held: list[str], but: str) -> None:
    """The other references of an image whose list of held blobs has changed."""
    rows = db.execute("SELECT ref FROM images WHERE digest = ? AND ref != ?", (owner, but))
    for (ref,) in rows.fetchall():
        db.execute("UPDATE images SET seal = ? WHERE ref = ?", (_seal(str(ref), owner, held), ref))


def is_sealed(ref: str, owner: str, held: Iterable[str], seal: object) -> bool:
    """Are the row of an image and the list of what it holds as they were written?"""
    return seal == _seal(ref, owner, sorted(held))


def _seal(ref: str, owner: str, held: Iterable[str]) -> bytes:
    return chunk_id("\n".join([ref, owner, *held]).encode("utf-8", "replace")).raw[:16]

"""The SQLite index (WAL) of the node's store: schema, transactions, SQLite's errors as ours.

It says where each chunk lies, which small blobs and images are held. What is in it and in which
order it is written is `store`'s business. Spec: docs/design.md "The node's store".
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

from layerkit.edges.disk import Disk
from layerkit.errors import StoreError, StoreFullError, StoreLockedError

__all__ = [
    "INDEX_DAMAGED",
    "INDEX_NAME",
    "REPAIR_HINT",
    "SCHEMA_FACT",
    "Connection",
    "Index",
    "as_bytes",
    "as_int",
    "read_rows",
]

Connection = sqlite3.Connection  # what `transaction` yields
INDEX_NAME: Final = "index.sqlite"
SCHEMA_VERSION: Final = 2
SCHEMA_FACT: Final = "schema"  # the version once more: a flipped bit of one of them is seen
BUSY_SECONDS: Final = 30.0  # how long a writer waits for another one's transaction
MIN_FREE_SIZE: Final = 64 << 10  # bytes; a shared memory file has 32 KiB
INDEX_DAMAGED: Final = "is damaged"
REPAIR_HINT: Final = "run 'layerkit verify --repair'"

_SCHEMAS: Final = {
    1: """
CREATE TABLE packs (pack INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, size INTEGER NOT NULL);
CREATE TABLE chunks (id BLOB PRIMARY KEY, pack INTEGER NOT NULL, offset INTEGER NOT NULL,
    size INTEGER NOT NULL) WITHOUT ROWID;
CREATE INDEX chunks_pack ON chunks (pack, offset);
CREATE TABLE blobs (digest TEXT PRIMARY KEY, kind TEXT NOT NULL, data BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE images (ref TEXT PRIMARY KEY, digest TEXT NOT NULL, complete INTEGER NOT NULL)
    WITHOUT ROWID;
CREATE TABLE holds (owner TEXT NOT NULL, blob TEXT NOT NULL, PRIMARY KEY (owner, blob))
    WITHOUT ROWID;
CREATE TABLE pins (digest TEXT PRIMARY KEY) WITHOUT ROWID;
""",
    # session: whose packs, blobs, claims and uses these are, for as long as that session lives.
    # seal: BLAKE3 over a row and what it needs, for SQLite has no checksums; NULL before schema 2.
    2: """
ALTER TABLE packs ADD COLUMN session TEXT NOT NULL DEFAULT '';
ALTER TABLE blobs ADD COLUMN session TEXT NOT NULL DEFAULT '';
ALTER TABLE images ADD COLUMN used_at INTEGER NOT NULL DEFAULT 0;
ALTER TABLE images ADD COLUMN seal BLOB;
CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE claims (id BLOB PRIMARY KEY, session TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE uses (session TEXT NOT NULL, digest TEXT NOT NULL, PRIMARY KEY (session, digest))
    WITHOUT ROWID;
""",
}
assert max(_SCHEMAS) == SCHEMA_VERSION


class Index:
    """One open index. Not for sharing between threads."""

    def __init__(self, path: Path, disk: Disk) -> None:
        self.path = path
        self._disk = disk
        with _mapped(path):
            db = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None)
            try:
                db.execute("PRAGMA journal_mode=WAL")
                db.execute("PRAGMA synchronous=FULL")  # a committed image survives power loss
                if _version(db) != SCHEMA_VERSION:
                    self._migrate(db)
            except BaseException:
                db.close()
                raise
        self._db = db

    def _migrate(self, db: sqlite3.Connection) -> None:
        """From any older schema, in one transaction. Who comes second finds it done."""
        db.execute("BEGIN IMMEDIATE")
        version = _version(db)
        if version == SCHEMA_VERSION:
            db.execute("ROLLBACK")
            return
        if version != _tables_version(db):  # the number alone has changed: no layerkit did that
            raise StoreError(
                f"index {self.path} {INDEX_DAMAGED}",
                cause=f"it says schema {version} and is not",
                hint=REPAIR_HINT,
            )
        if version > SCHEMA_VERSION:
            raise StoreError(
                f"{self.path} has schema {version}, want {SCHEMA_VERSION}",
                hint="a newer layerkit wrote this store: use that one",
            )
        for number in range(version + 1, SCHEMA_VERSION + 1):
            for statement in _SCHEMAS[number].split(";"):
                db.execute(statement)
        db.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
        db.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (SCHEMA_FACT, SCHEMA_VERSION))
        self._disk.act("commit", self.path, lambda: db.execute("COMMIT"))

    def close(self) -> None:
        self._db.close()

    @contextlib.contextmanager
    def transaction(self, *, is_hint: bool = False) -> Iterator[sqlite3.Connection]:
        """All or nothing; the commit is one step of the disk. `is_hint`: a power cut may undo it,
        with all hints after it, for nobody is wrong without it; the next real commit makes it
        durable, too."""
        with _mapped(self.path):
            self._db.execute(f"PRAGMA synchronous={'NORMAL' if is_hint else 'FULL'}")
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._disk.act("commit", self.path, lambda: self._db.execute("COMMIT"))
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    def query(self, sql: str, values: Sequence[object] = ()) -> list[tuple[object, ...]]:
        with _mapped(self.path):
            return self._db.execute(sql, values).fetchall()

    def run_many(self, sql: str, rows: Iterable[Sequence[object]]) -> None:
        """One statement for many rows, in the transaction that is open, or in one of its own."""
        with _mapped(self.path):
            self._db.executemany(sql, rows)

    def check(self) -> None:
        """Raise StoreError unless SQLite finds its file sound."""
        found = self.query("PRAGMA integrity_check(1)")
        if not found or found[0][0] != "ok":
            raise StoreError(
                f"index {self.path} {INDEX_DAMAGED}", cause=str(found[:1]), hint=REPAIR_HINT
            )


def _version(db: sqlite3.Connection) -> int:
    return int(db.execute("PRAGMA user_version").fetchone()[0])


def _tables_version(db: sqlite3.Connection) -> int:
    """The schema by its tables; for a number that is not known, what it says."""
    names = {str(row[0]) for row in db.execute("SELECT name FROM sqlite_schema")}
    if "facts" not in names:
        return 1 if "images" in names else 0
    rows = db.execute("SELECT value FROM facts WHERE name = ?", (SCHEMA_FACT,)).fetchall()
    return int(rows[0][0]) if rows and str(rows[0][0]).isdigit() else SCHEMA_VERSION


def read_rows(path: Path, table: str) -> list[dict[str, object]]:
    """What can be read of a table of an index that may be damaged, from both of its ends; texts as
    bytes, since they may be anything. Nothing raises."""
    found: dict[tuple[object, ...], None] = {}
    names: list[str] = []
    errors = (sqlite3.Error, UnicodeDecodeError)
    with contextlib.suppress(*errors), contextlib.closing(sqlite3.connect(path)) as db:
        names = [str(row[1]) for row in db.execute(f"PRAGMA table_info({table})")]
        db.text_factory = bytes
        for order in ("ASC", "DESC") if names else ():
            with contextlib.suppress(*errors):
                for row in db.execute(f"SELECT * FROM {table} ORDER BY 1 {order}"):
                    found[row] = None
    return [dict(zip(names, row, strict=True)) for row in found]


def as_bytes(value: object) -> bytes:
    if not isinstance(value, bytes):
        raise StoreError("index holds a value of the wrong type")
    return value


def as_int(value: object) -> int:
    if not isinstance(value, int):
        raise StoreError("index holds a value of the wrong type")
    return value


@contextlib.contextmanager
def _mapped(path: Path) -> Iterator[None]:
    """SQLite's errors as ours."""
    try:
        yield
    except sqlite3.Error as exc:
        raise _map_sqlite_error(exc, path) from exc
    except UnicodeDecodeError as exc:  # of a damaged name, in SQLite's own message
        raise StoreError(
            f"index {path} {INDEX_DAMAGED}", cause="a text is not UTF-8", hint=REPAIR_HINT
        ) from exc


def _is_full(folder: Path) -> bool:
    """SQLite says "I/O error" when there is no room for its shared memory or its log."""
    try:
        facts = os.statvfs(folder)
    except OSError:
        return False
    return facts.f_bavail * facts.f_frsize < MIN_FREE_SIZE or facts.f_ffree == 0 < facts.f_files


# of texts that are no UTF-8, and of a schema whose words are wrong; both have the code SQLITE_ERROR
_DAMAGE_SIGNS: Final = ("Could not decode", "no such table", "no such column", "malformed")


def _map_sqlite_error(exc: sqlite3.Error, path: Path) -> StoreError:
    name = getattr(exc, "sqlite_errorname", "") or ""
    kinds: dict[str, Callable[..., StoreError]] = {
        "SQLITE_FULL": StoreFullError,
        "SQLITE_BUSY": StoreLockedError,
        "SQLITE_LOCKED": StoreLockedError,
    }
    cause = f"{name}: {exc}"
    is_damaged = name.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB", "SQLITE_FORMAT"))
    if is_damaged or any(sign in str(exc) for sign in _DAMAGE_SIGNS):
        return StoreError(f"index {path} {INDEX_DAMAGED}", cause=cause, hint=REPAIR_HINT)
    if name.startswith(("SQLITE_IOERR", "SQLITE_CANTOPEN")) and _is_full(path.parent):
        return StoreFullError(
            f"no space left for index {path}", cause=cause, hint="free some space"
        )
    kind = next((made for prefix, made in kinds.items() if name.startswith(prefix)), StoreError)
    closed = name.startswith(("SQLITE_CANTOPEN", "SQLITE_READONLY", "SQLITE_PERM"))
    hint = f"{path.parent} must be writable: readers keep a log there, too" if closed else ""
    return kind(f"cannot use index {path}", cause=cause, hint=hint)

"""A small durable queue in SQLite: tasks that survive any end of the process, and what tags named.

A task is named by its kind, repository, tag and digest; to put it again while it waits changes
nothing, and while it runs makes it run once more. A task is there until `finish`, or `give_up`,
which keeps the last MAX_FAILURE_COUNT with why: what a process was doing when it died is taken
again by the next one. What a tag was seen to name is kept beside it, in the same transactions; and
which updates of an image were made and found not to be worth their place.

Write order: one transaction a step, durable when it returns (WAL, synchronous=FULL); a crash leaves
the step before. A file that cannot be read is put aside and begun anew: whoever fills the queue can
fill it again. One process at a time holds the folder. Safe for threads.
"""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from layerkit.edges.disk import Disk
from layerkit.errors import (
    BusyError,
    LayerkitError,
    StoreError,
    StoreFullError,
    StoreLockedError,
)

__all__ = ["Failure", "QueueCounts", "Task", "WorkQueue"]

MAX_TASK_COUNT: Final = 10_000  # about 3 MB of disk
MAX_FAILURE_COUNT: Final = 100
MAX_VERSION_COUNT: Final = 32  # of a tag
MAX_TAG_COUNT: Final = 100_000  # whose versions are known: some 100 bytes for each version
MAX_UNWORTHY_COUNT: Final = 10_000  # updates: some 300 bytes each
MAX_TEXT_SIZE: Final = 1000  # characters of an error
RETRY_SECONDS: Final = 10  # that whoever finds the queue full is told to wait
BUSY_SECONDS: Final = 10.0
SCHEMA_VERSION: Final = 1
FILE_NAME: Final = "queue.sqlite"
LOCK_NAME: Final = "lock"
_SCHEMA: Final = """
CREATE TABLE tasks (kind TEXT NOT NULL, name TEXT NOT NULL, tag TEXT NOT NULL,
    digest TEXT NOT NULL, put_at REAL NOT NULL, due_at REAL NOT NULL, tries INTEGER NOT NULL,
    turn INTEGER NOT NULL, taken INTEGER NOT NULL, why TEXT NOT NULL,
    PRIMARY KEY (kind, name, tag, digest)) WITHOUT ROWID;
CREATE INDEX tasks_due ON tasks (kind, taken, due_at);
CREATE TABLE versions (at INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL, tag TEXT NOT NULL,
    digest TEXT NOT NULL, UNIQUE (name, tag, digest));
CREATE TABLE failures (at INTEGER PRIMARY KEY AUTOINCREMENT, kind TEXT NOT NULL, name TEXT NOT NULL,
    tag TEXT NOT NULL, digest TEXT NOT NULL, failed_at REAL NOT NULL, tries INTEGER NOT NULL,
    code TEXT NOT NULL, message TEXT NOT NULL, cause TEXT NOT NULL);
"""
# Not of the first version, which takes no notice of it: the file is good for both.
_LATER: Final = """
CREATE TABLE IF NOT EXISTS unworthy (at INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL,
    digest TEXT NOT NULL, what TEXT NOT NULL, UNIQUE (name, digest, what));
"""
_KEY: Final = "kind=? AND name=? AND tag=? AND digest=?"
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Task:
    """Something to do with a tag, or (with a digest) with what it named. `tries` counts this one;
    times are seconds of the epoch."""

    kind: str
    name: str
    tag: str
    digest: str = ""
    put_at: float = 0.0
    tries: int = 0
    turn: int = 0

    @property
    def key(self) -> tuple[str, str, str, str]:
        return (self.kind, self.name, self.tag, self.digest)

    def __str__(self) -> str:
        return f"{self.name}:{self.tag}" + (f"@{self.digest[:19]}" if self.digest else "")


@dataclass(frozen=True, slots=True)
class Failure:
    """A task that was given up."""

    kind: str
    name: str
    tag: str
    digest: str
    failed_at: float
    tries: int
    code: str
    message: str
    cause: str


@dataclass(frozen=True, slots=True)
class QueueCounts:
    """How many tasks wait, run, and wait after a failure; how many were given up, of those kept."""

    waiting: int
    running: int
    retrying: int
    failed: int


class WorkQueue:
    """The queue in `folder`, for as long as it is open. StoreLockedError while another has it."""

    def __init__(
        self,
        folder: Path,
        disk: Disk,
        *,
        max_task_count: int = MAX_TASK_COUNT,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._max_task_count = max_task_count
        self._now = now
        self._mutex = threading.Lock()
        self._disk = disk
        self._path = folder / FILE_NAME
        self._held = contextlib.ExitStack()
        disk.make_folder(folder, 0o700)
        try:
            self._held.enter_context(disk.lock(folder / LOCK_NAME))
        except StoreLockedError as exc:
            raise StoreLockedError(
                f"another process has the queue {folder}", hint="name another one with --queue"
            ) from exc
        try:
            self._db = self._open()
            disk.fsync_folder(folder)
        except BaseException:
            self._held.close()
            raise

    def close(self) -> None:
        with self._mutex:
            self._db.close()
        self._held.close()

    # --- putting ---------------------------------------------------------------------------------

    def put(self, kind: str, tags: Iterable[tuple[str, str]]) -> None:
        """A task for each (repository, tag); durable when this returns. BusyError when the queue is
        full: none of them is in then, but for those that were."""
        with self._transaction() as db:
            for name, tag in tags:
                self._put(db, kind, name, tag, "")
            if self._count(db) > self._max_task_count:
                raise BusyError(
                    f"the queue is full: {self._max_task_count} tasks", cause=str(RETRY_SECONDS)
                )

    def _put(self, db: sqlite3.Connection, kind: str, name: str, tag: str, digest: str) -> None:
        now = self._now()
        db.execute(
            "INSERT INTO tasks VALUES (?, ?, ?, ?, ?, ?, 0, 1, 0, '')"
            " ON CONFLICT DO UPDATE SET turn=turn+1, tries=0, put_at=excluded.put_at,"
            " due_at=min(due_at, excluded.due_at)",
            (kind, name, tag, digest, now, now),
        )

    def saw(self, task: Task, digest: str, following: str, again: float | None) -> bool:
        """The tag of `task` names `digest` ("": nothing). What is news is kept as its newest
        version, with a task `following` for it; the first look has one in any case. In the same
        step `task` is finished, or due in `again` seconds. Was it news?"""
        with self._transaction() as db:
            is_news = bool(digest) and self._versions(db, task.name, task.tag)[:1] != [digest]
            if is_news:
                self._add_version(db, task.name, task.tag, digest)
            if is_news or (digest and task.tries == 1):
                self._put(db, following, task.name, task.tag, digest)
            if again is None:
                self._finish(db, task)
            else:
                db.execute(
                    f"UPDATE tasks SET taken=0, due_at=?, why='' WHERE {_KEY} AND turn=?",
                    (self._now() + again, *task.key, task.turn),
                )
                db.execute(  # it was put again meanwhile
                    f"UPDATE tasks SET taken=0, due_at=? WHERE {_KEY} AND turn<>?",
                    (self._now(), *task.key, task.turn),
                )
            return is_news

    def note(self, name: str, tag: str, digest: str, kind: str) -> bool:
        """What a tag names, seen without being told: its first version is only kept, news are a
        task `kind` as if they had been told. Was it news? Where such a task looks at the tag
        already the first version is left to it: it was told, so it is news."""
        with self._transaction() as db:
            known = self._versions(db, name, tag)
            if known[:1] == [digest]:
                return False
            if known and self._count(db) < self._max_task_count:
                self._put(db, kind, name, tag, "")
            elif not known and not self._has(db, kind, name, tag):
                self._add_version(db, name, tag, digest)
            return bool(known)

    def note_unworthy(self, name: str, digest: str, updates: Iterable[str]) -> None:
        """These updates of an image are not worth their place: a job for it that runs again need
        not make them. The last MAX_UNWORTHY_COUNT are kept."""
        with self._transaction() as db:
            db.executemany(
                "INSERT OR IGNORE INTO unworthy (name, digest, what) VALUES (?, ?, ?)",
                [(name, digest, what) for what in updates],
            )
            db.execute(
                "DELETE FROM unworthy WHERE at <= (SELECT max(at) FROM unworthy) - ?",
                (MAX_UNWORTHY_COUNT,),
            )

    # --- doing -----------------------------------------------------------------------------------

    def take(self, kind: str) -> Task | None:
        """The task that is due for longest; it is this caller's until it is given back."""
        with self._transaction() as db:
            row = db.execute(
                "SELECT name, tag, digest, put_at, tries, turn FROM tasks"
                " WHERE kind=? AND taken=0 AND due_at<=? ORDER BY due_at, put_at LIMIT 1",
                (kind, self._now()),
            ).fetchone()
            if row is None:
                return None
            name, tag, digest, put_at, tries, turn = row
            task = Task(kind, name, tag, digest, put_at, tries + 1, turn)
            db.execute(f"UPDATE tasks SET taken=1, tries=? WHERE {_KEY}", (tries + 1, *task.key))
            return task

    def finish(self, task: Task) -> None:
        """It is done; if it was put again meanwhile it is due once more."""
        with self._transaction() as db:
            self._finish(db, task)

    def _finish(self, db: sqlite3.Connection, task: Task) -> None:
        db.execute(f"DELETE FROM tasks WHERE {_KEY} AND turn=?", (*task.key, task.turn))
        db.execute(
            f"UPDATE tasks SET taken=0, tries=0, why='', put_at=?, due_at=? WHERE {_KEY}",
            (self._now(), self._now(), *task.key),
        )

    def try_again(self, task: Task, seconds: float, why: str) -> None:
        """It is due in `seconds`."""
        with self._transaction() as db:
            db.execute(
                f"UPDATE tasks SET taken=0, due_at=?, why=? WHERE {_KEY}",
                (self._now() + seconds, why[:MAX_TEXT_SIZE], *task.key),
            )

    def give_back(self, task: Task) -> None:
        """It was not tried: the process ends."""
        with self._transaction() as db:
            db.execute(f"UPDATE tasks SET taken=0, tries=max(0, tries-1) WHERE {_KEY}", task.key)

    def give_up(self, task: Task, error: LayerkitError) -> None:
        """It goes, and what it failed of is kept among the last failures."""
        texts = [text[:MAX_TEXT_SIZE] for text in (error.code, error.message, error.cause)]
        with self._transaction() as db:
            db.execute(
                "INSERT INTO failures (kind, name, tag, digest, failed_at, tries, code, message,"
                " cause) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (*task.key, self._now(), task.tries, *texts),
            )
            db.execute(
                "DELETE FROM failures WHERE at <= (SELECT max(at) FROM failures) - ?",
                (MAX_FAILURE_COUNT,),
            )
            self._finish(db, task)

    def next_due(self, kind: str) -> float | None:
        """Seconds until a task of this kind is due, at least 0; None if none waits."""
        rows = self._query("SELECT min(due_at) FROM tasks WHERE kind=? AND taken=0", kind)
        return None if rows[0][0] is None else max(0.0, float(str(rows[0][0])) - self._now())

    # --- looking ---------------------------------------------------------------------------------

    def list_versions(self, name: str, tag: str) -> list[str]:
        """The digests that a tag was seen to name, the newest first."""
        with self._mutex, _mapped(self._path):
            return self._versions(self._db, name, tag)

    def list_unworthy(self, name: str, digest: str) -> list[str]:
        """What `note_unworthy` was told of an image."""
        sql = "SELECT what FROM unworthy WHERE name=? AND digest=? ORDER BY what"
        return [str(row[0]) for row in self._query(sql, name, digest)]

    def list_failures(self) -> list[Failure]:
        """The last ones, the newest first."""
        rows = self._query(
            "SELECT kind, name, tag, digest, failed_at, tries, code, message, cause FROM failures"
            " ORDER BY at DESC"
        )
        return [Failure(*row) for row in rows]  # type: ignore[arg-type]

    def list_retrying(self, count: int) -> list[tuple[Task, str]]:
        """Tasks that failed and will be tried again, with why."""
        rows = self._query(
            "SELECT kind, name, tag, digest, put_at, tries, turn, why FROM tasks WHERE why<>''"
            " ORDER BY due_at LIMIT ?",
            count,
        )
        return [(Task(*row[:7]), str(row[7])) for row in rows]  # type: ignore[arg-type]

    def count(self) -> QueueCounts:
        rows = self._query(
            "SELECT coalesce(sum(taken=0 AND why=''), 0), coalesce(sum(taken=1), 0),"
            " coalesce(sum(taken=0 AND why<>''), 0), (SELECT count(*) FROM failures) FROM tasks"
        )
        return QueueCounts(*rows[0])  # type: ignore[arg-type]

    # --- SQLite ----------------------------------------------------------------------------------

    def _open(self) -> sqlite3.Connection:
        try:
            return self._connect()
        except sqlite3.DatabaseError as exc:
            if isinstance(exc, sqlite3.OperationalError):  # the disk, not what is on it
                raise StoreError(f"cannot open {self._path}", cause=str(exc)) from exc
            _log.error("%s is damaged, it is put aside and begun anew: %s", self._path, exc)
        for end in ("-wal", "-shm"):  # a log of another file is nonsense
            self._disk.remove(self._path.with_name(FILE_NAME + end))
        self._disk.rename(self._path, self._path.with_name(FILE_NAME + ".damaged"))
        with _mapped(self._path):
            return self._connect()

    def _connect(self) -> sqlite3.Connection:
        db = sqlite3.connect(
            self._path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
        )
        try:
            db.execute("PRAGMA journal_mode=WAL")
            db.execute("PRAGMA synchronous=FULL")  # an event is answered once it is durable
            version = db.execute("PRAGMA user_version").fetchone()[0]
            if version == 0:
                script = f"BEGIN; {_SCHEMA} PRAGMA user_version={SCHEMA_VERSION}; COMMIT;"
                db.executescript(script)
            elif version != SCHEMA_VERSION:
                raise StoreError(
                    f"{self._path} has schema {version}, want {SCHEMA_VERSION}",
                    hint="a newer layerkit wrote it: use that one, or name another --queue",
                )
            if db.execute("PRAGMA quick_check(1)").fetchone()[0] != "ok":
                raise sqlite3.DatabaseError("quick_check fails")
            db.execute(_LATER)
            db.execute("UPDATE tasks SET taken=0")  # of a process that died
        except BaseException:
            db.close()
            raise
        return db

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._mutex, _mapped(self._path):
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._disk.act("commit", self._path, lambda: self._db.execute("COMMIT"))
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    def _query(self, sql: str, *values: object) -> list[tuple[object, ...]]:
        with self._mutex, _mapped(self._path):
            return self._db.execute(sql, values).fetchall()

    def _has(self, db: sqlite3.Connection, kind: str, name: str, tag: str) -> bool:
        sql = "SELECT 1 FROM tasks WHERE kind=? AND name=? AND tag=?"
        return db.execute(sql, (kind, name, tag)).fetchone() is not None

    def _count(self, db: sqlite3.Connection) -> int:
        return int(db.execute("SELECT count(*) FROM tasks").fetchone()[0])

    def _versions(self, db: sqlite3.Connection, name: str, tag: str) -> list[str]:
        rows = db.execute(
            "SELECT digest FROM versions WHERE name=? AND tag=? ORDER BY at DESC", (name, tag)
        )
        return [row[0] for row in rows]

    def _add_version(self, db: sqlite3.Connection, name: str, tag: str, digest: str) -> None:
        """As the newest one, also where it had been one before; the oldest go."""
        db.execute(
            "INSERT OR REPLACE INTO versions (name, tag, digest) VALUES (?, ?, ?)",
            (name, tag, digest),
        )
        for old in self._versions(db, name, tag)[MAX_VERSION_COUNT:]:
            db.execute("DELETE FROM versions WHERE name=? AND tag=? AND digest=?", (name, tag, old))
        db.execute(
            "DELETE FROM versions WHERE at <= (SELECT max(at) FROM versions) - ?", (MAX_TAG_COUNT,)
        )


@contextlib.contextmanager
def _mapped(path: Path) -> Iterator[None]:
    """SQLite's errors as ours."""
    try:
        yield
    except sqlite3.Error as exc:
        if "full" in str(exc):
            raise StoreFullError(f"no space left for {path}", cause=str(exc)) from exc
        raise StoreError(f"queue {path} fails", cause=str(exc)) from exc

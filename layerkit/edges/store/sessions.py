"""Who works on a store right now: sessions, what they have claimed, what they are reading.

A session is a file that its owner holds locked for as long as it lives; the kernel drops the lock
however the owner ends. Rows of the index name sessions by token, and mean nothing once that session
is dead. So nothing is ever left locked, and no clock is asked who is alive.

A claim says "I am fetching this": others wait for it in place of fetching it, too. Nobody waits
while it holds claims that it has not fetched yet (fetch and release first), so two pulls that want
each other's chunks both go on. Spec: docs/design.md "The node's store".
"""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from layerkit.digest import Digest
from layerkit.edges.disk import TEMP_PREFIX, Disk
from layerkit.edges.index import Index, as_bytes
from layerkit.errors import StoreError

__all__ = ["Claim", "Sessions", "token_of"]

TOKEN_SIZE: Final = 24  # characters
POLL_SECONDS: Final = 0.05
PATIENCE: Final = 60.0  # seconds without anything coming: then the owner is taken for stuck


def token_of(name: str) -> str:
    """The session in the name of a pack, ``TOKEN-rest``; "" in one from before sessions."""
    token, dash, _ = name.partition("-")
    return token if dash and len(token) == TOKEN_SIZE else ""


@dataclass(frozen=True, slots=True)
class Claim:
    """Which of the wanted ids are ours to fetch, and which a living session is fetching."""

    mine: frozenset[bytes]
    others: frozenset[bytes]


class Sessions:
    """The sessions of one store, and this object's own one."""

    def __init__(self, folder: Path, disk: Disk, index: Index) -> None:
        self._folder = folder
        self._disk = disk
        self._index = index
        self._depth = 0
        self.token = ""  # of the session that is open here
        disk.make_folder(folder)

    @contextlib.contextmanager
    def open(self) -> Iterator[str]:
        """Live, until the end of the outermost `with`; yields the token."""
        if self._depth:
            self._depth += 1
            try:
                yield self.token
            finally:
                self._depth -= 1
            return
        token = secrets.token_hex(TOKEN_SIZE // 2)
        with self._disk.hold_new(self._folder / token):
            self._depth, self.token = 1, token
            try:
                yield token
            finally:
                self._depth, self.token = 0, ""
                with contextlib.suppress(StoreError):  # dead rows harm nobody
                    self._forget([token])

    def is_live(self, token: str) -> bool:
        if not token or not token.isalnum():
            return False
        return token == self.token or self._disk.is_held(self._folder / token)

    def list_live(self) -> list[str]:
        return [name for name in sorted(os.listdir(self._folder)) if self.is_live(name)]

    def sweep(self) -> None:
        """Remove what dead sessions left: their files, claims and uses."""
        dead = [name for name in os.listdir(self._folder) if not self._is_kept(name)]
        rows = self._index.query("SELECT session FROM claims UNION SELECT session FROM uses")
        self._forget([*dead, *(str(row[0]) for row in rows if not self.is_live(str(row[0])))])
        for name in dead:
            self._disk.remove(self._folder / name)

    def _is_kept(self, name: str) -> bool:
        """Is it of a living session, or of one that begins right now?"""
        if name.startswith(TEMP_PREFIX):
            return self._disk.is_held(self._folder / name)
        return self.is_live(name)

    def _forget(self, tokens: Iterable[str]) -> None:
        rows = [(token,) for token in tokens]
        if not rows:
            return
        held = self._index.query("SELECT 1 FROM claims UNION SELECT 1 FROM uses LIMIT 1")
        if held:
            with self._index.transaction(is_hint=True) as db:
                db.executemany("DELETE FROM claims WHERE session = ?", rows)
                db.executemany("DELETE FROM uses WHERE session = ?", rows)

    # --- claims ------------------------------------------------------------------------------

    def claim(self, raw_ids: Iterable[bytes]) -> Claim:
        """Claim those of `raw_ids` (chunk ids, or any other 32 bytes) that no living session has
        claimed, all in one step. Inside a session only."""
        if not self.token:
            raise AssertionError("a claim needs a session")
        wanted = set(raw_ids)
        others: set[bytes] = set()
        with self._index.transaction(is_hint=True) as db:
            taken = db.execute("SELECT id, session FROM claims").fetchall()
            live = {token for token in {str(row[1]) for row in taken} if self.is_live(token)}
            others = {
                as_bytes(raw)
                for raw, token in taken
                if raw in wanted and token in live and token != self.token
            }
            db.executemany(
                "INSERT OR REPLACE INTO claims (id, session) VALUES (?, ?)",
                ((raw, self.token) for raw in sorted(wanted - others)),
            )
        return Claim(frozenset(wanted - others), frozenset(others))

    def release(self, raw_ids: Iterable[bytes]) -> None:
        """Give claims back, fetched or not."""
        with self._index.transaction(is_hint=True) as db:
            db.executemany(
                "DELETE FROM claims WHERE id = ? AND session = ?",
                ((raw, self.token) for raw in raw_ids),
            )

    def wait_for(
        self,
        raw_ids: Iterable[bytes],
        held: Callable[[Iterable[bytes]], set[bytes]],
        *,
        patience: float = PATIENCE,
        sleep: Callable[[float], None] = time.sleep,
        now: Callable[[], float] = time.monotonic,
    ) -> set[bytes]:
        """Wait until each id is held, or no living session claims it; returns those that are still
        missing. `patience` ends the wait when nothing has come for so long."""
        missing = set(raw_ids)
        since = now()
        while missing:
            claimed = self._claimed(missing)  # before `held`: who releases has put before
            came = held(missing)
            missing -= came
            if came:
                since = now()
            if not missing & claimed or now() - since > patience:
                break
            sleep(POLL_SECONDS)
        return missing

    def _claimed(self, wanted: set[bytes]) -> set[bytes]:
        rows = self._index.query("SELECT id, session FROM claims")
        live = {token for token in {str(row[1]) for row in rows} if self.is_live(token)}
        live.discard(self.token)
        return {as_bytes(raw) for raw, token in rows if token in live} & wanted

    # --- uses --------------------------------------------------------------------------------

    @contextlib.contextmanager
    def use(self, digest: Digest) -> Iterator[None]:
        """Image `digest` is being read: it is not evicted meanwhile."""
        with self.open() as token:
            with self._index.transaction(is_hint=True) as db:
                db.execute("INSERT OR IGNORE INTO uses VALUES (?, ?)", (token, str(digest)))
            try:
                yield
            finally:
                with contextlib.suppress(StoreError), self._index.transaction(is_hint=True) as db:
                    db.execute(
                        "DELETE FROM uses WHERE session = ? AND digest = ?", (token, str(digest))
                    )

    def list_used(self) -> set[str]:
        """Digests of images that living sessions read."""
        rows = self._index.query("SELECT session, digest FROM uses")
        return {str(digest) for token, digest in rows if self.is_live(str(token))}

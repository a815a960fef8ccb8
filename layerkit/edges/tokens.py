"""The token file: read by servers, changed by `layerkit token`.

Only its owner may read it: a file that others can read is refused. It is written whole, so a
server sees the old or the new one. Spec: docs/format.md "Token file".
"""

from __future__ import annotations

import logging
import os
import secrets
import stat
import threading
from collections.abc import Sequence
from pathlib import Path

from layerkit.edges.disk import Disk
from layerkit.errors import FormatError, LayerkitError, NotFoundError, StoreError, UsageError
from layerkit.formats.tokens import (
    MAX_FILE_SIZE,
    TOKEN_BITS,
    Caller,
    Token,
    hash_token,
    make_token,
    parse_tokens,
    serialize_tokens,
)

__all__ = ["TokenFile", "add_token", "read_token_file", "remove_token"]

_log = logging.getLogger(__name__)


def read_token_file(path: Path) -> tuple[Token, ...]:
    """The tokens in `path`; StoreError if others could read or change it."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError as exc:
        raise NotFoundError(
            f"token file {path} does not exist", hint="make one with 'layerkit token add'"
        ) from exc
    except OSError as exc:
        raise StoreError(f"cannot read token file {path}", cause=str(exc.strerror)) from exc
    with open(fd, "rb") as file:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode):
            raise StoreError(f"token file {path} is not a file")
        if info.st_mode & 0o077:
            raise StoreError(
                f"token file {path} can be read by others: mode {info.st_mode & 0o777:04o}",
                hint=f"run 'chmod 600 {path}', and renew the tokens if others may have read them",
            )
        if info.st_uid not in (0, os.geteuid()):
            raise StoreError(f"token file {path} belongs to another user")
        raw = file.read(MAX_FILE_SIZE + 1)
    try:
        return parse_tokens(raw)
    except FormatError as exc:
        raise StoreError(
            f"token file {path} is damaged", cause=f"{exc.message}: {exc.cause}"
        ) from exc


class TokenFile:
    """A token file that is read again when it changes. Safe for threads.

    While a changed file cannot be read, nobody is let in: a token that was taken back must not
    work on because of a slip in the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._seen = self.version()
        self._tokens = read_token_file(path)

    def version(self) -> object:
        """Changes with the file. One stat."""
        try:
            info = os.stat(self._path)
        except OSError:
            return None
        return (info.st_ino, info.st_mtime_ns, info.st_size, info.st_mode, info.st_ctime_ns)

    def read(self) -> tuple[Token, ...]:
        seen = self.version()
        with self._lock:
            if seen != self._seen:
                self._seen = seen
                try:
                    self._tokens = read_token_file(self._path)
                    _log.info("%d tokens from %s", len(self._tokens), self._path)
                except LayerkitError as exc:
                    self._tokens = ()
                    _log.error("nobody is let in: %s (%s)", exc.message, exc.cause)
            return self._tokens


def add_token(
    path: Path, name: str, pull: Sequence[str], push: Sequence[str], *, day: str, disk: Disk
) -> str:
    """Make a token and put its hash in the file, which is made if absent. Returns the token: it is
    nowhere else."""
    text = make_token(secrets.token_bytes(TOKEN_BITS // 8))
    try:
        token = Token(Caller(name, tuple(pull), tuple(push)), hash_token(text), day)
    except FormatError as exc:
        raise UsageError(exc.message) from exc
    with disk.lock(_lock_path(path), wait=True):
        known = read_token_file(path) if path.exists() else ()
        if any(other.caller.id == name for other in known):
            raise UsageError(f"token {name} exists", hint=f"run 'layerkit token remove {name}'")
        disk.write_atomic(path, serialize_tokens((*known, token)), 0o600)
    return text


def remove_token(path: Path, name: str, disk: Disk) -> None:
    """Take a token out of the file; servers stop letting it in at once."""
    known = read_token_file(path)
    with disk.lock(_lock_path(path), wait=True):
        known = read_token_file(path)
        left = [token for token in known if token.caller.id != name]
        if len(left) == len(known):
            raise NotFoundError(f"token {name} is not in {path}")
        disk.write_atomic(path, serialize_tokens(left), 0o600)


def _lock_path(path: Path) -> Path:
    """Beside the file, which is replaced whole and so cannot be locked itself."""
    return path.with_name(f".{path.name}.lock")

"""A Disk that stops at its n-th step, as a crash would, and may lose what had no fsync."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from layerkit.edges.disk import Disk

T = TypeVar("T")
STEPS = {"create", "write", "fsync", "rename", "commit", "mkdir", "remove", "link", "chmod"}


class CrashError(BaseException):
    """The machine stopped here; no `except Exception` may soften it."""


class FaultyDisk(Disk):
    """Counts steps; with `stop_at` the n-th and all later ones do not happen.

    `torn`: the step itself half happens (a write is cut). `lose`: files written and never fsynced
    are empty after the crash. `error`: raise this OSError once instead of crashing.
    """

    def __init__(
        self, stop_at: int = 0, *, torn: bool = False, lose: bool = False, error: int = 0
    ) -> None:
        self.count = 0
        self._stop_at = stop_at
        self._torn = torn
        self._lose = lose
        self._error = error
        self._dirty: dict[tuple[int, int], int] = {}

    def act(self, op: str, path: Path | str, call: Callable[[], T]) -> T:
        if op not in STEPS:
            return super().act(op, path, call)
        self.count += 1
        if self._stop_at and self.count == self._stop_at and self._error:

            def fail() -> T:
                raise OSError(self._error, os.strerror(self._error))

            return super().act(op, path, fail)
        if self._stop_at and self.count >= self._stop_at and not self._error:
            raise CrashError(f"{op} {path}")
        return super().act(op, path, call)

    def write_fd(self, fd: int, data: memoryview, path: Path | str) -> None:
        key = (os.fstat(fd).st_dev, os.fstat(fd).st_ino)
        if self._lose and key not in self._dirty:
            self._dirty[key] = os.dup(fd)
        try:
            super().write_fd(fd, data, path)
        except CrashError:
            if self._torn and self.count == self._stop_at:
                os.write(fd, data[: len(data) // 2])
            raise

    def lose_unsynced(self) -> None:
        """What a power cut does to files that were written and not fsynced."""
        for fd in self._dirty.values():
            os.ftruncate(fd, 0)
            os.close(fd)
        self._dirty.clear()

    def fsync_fd(self, fd: int, path: Path | str) -> None:
        super().fsync_fd(fd, path)
        key = (os.fstat(fd).st_dev, os.fstat(fd).st_ino)
        held = self._dirty.pop(key, None)
        if held is not None:
            os.close(held)

    def sync_filesystem(self, fd: int, path: Path | str) -> None:
        super().sync_filesystem(fd, path)
        for held in self._dirty.values():
            os.close(held)
        self._dirty.clear()

"""Bytes that a server makes once and keeps while they fit: updates, changes of chunk manifests."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Final

from layerkit.errors import NotFoundError

__all__ = ["Kept"]

MAX_KEPT_COUNT: Final = 4096
MAX_JOB_COUNT: Final = 32  # that are being made or wait for their turn


class Kept:
    """Bytes by key: made once for all who ask at the same time, kept while they fit. None is an
    answer, too. Safe for threads."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._made: OrderedDict[Hashable, bytes | None] = OrderedDict()
        self._making: dict[Hashable, threading.Lock] = {}
        self._size = 0
        self._jobs: dict[Hashable, Future[bytes | None]] = {}

    def get(self, key: Hashable, make: Callable[[], bytes | None]) -> bytes | None:
        with self._lock:
            making = self._making.setdefault(key, threading.Lock())
        with making:
            with self._lock:
                if key in self._made:
                    self._made.move_to_end(key)
                    return self._made[key]
            made = make()
            with self._lock:
                self._made[key] = made
                self._size += len(made or b"")
                while len(self._made) > 1 and (
                    self._size > self._limit or len(self._made) > MAX_KEPT_COUNT
                ):
                    gone, dropped = self._made.popitem(last=False)
                    self._making.pop(gone, None)
                    self._size -= len(dropped or b"")
            return made

    def get_soon(
        self, key: Hashable, make: Callable[[], bytes | None], seconds: float
    ) -> bytes | None:
        """The same, made in a thread of its own, for who waits `seconds` at most: NotFoundError
        then, and when MAX_JOB_COUNT others are being made. It is kept for who asks later."""
        with self._lock:
            if key in self._made:
                self._made.move_to_end(key)
                return self._made[key]
            job = self._jobs.get(key)
            if job is None:
                if len(self._jobs) >= MAX_JOB_COUNT:
                    raise NotFoundError("too much is being made at once")
                job = self._jobs[key] = Future()
                threading.Thread(target=self._run, args=(key, make, job), daemon=True).start()
        try:
            return job.result(seconds)
        except TimeoutError as exc:
            raise NotFoundError(f"not made within {seconds:.0f} seconds") from exc

    def _run(
        self, key: Hashable, make: Callable[[], bytes | None], job: Future[bytes | None]
    ) -> None:
        try:
            job.set_result(self.get(key, make))
        except BaseException as exc:
            job.set_exception(exc)  # for those who wait
        finally:
            with self._lock:
                del self._jobs[key]
